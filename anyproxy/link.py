"""A link keeps one session between an agent and a gateway, and makes another when it ends.

    connect -> session -> lost -> connect at once
        `-> failed -> wait, longer each time, or until the network changes -> connect
        `-> refused -> wait, long

An established session is checked for what kills connections silently: another route to the gateway,
a sleep of the computer, a missing acknowledgement, silence. If in doubt, the agent asks for a sign
of life; without one, it connects again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Awaitable, Callable
from typing import Protocol

from mtt.address import Endpoint, is_ip
from mtt.errors import MttError, NetworkError, RefusedError, describe
from mtt.layers.base import StreamTransport
from mtt.log import logger
from mtt.net.sockets import source_address
from mtt.outbound.reuse import SLEEP_TIME, ReuseGuard, slept_seconds

# Seconds before the second attempt, and the longest time between two. Each wait is a random part
# of the time, so that the agents of a restarted gateway do not come all at once.
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
GROWTH = 1.5
# A session that lasted this long, seconds, was good: the next attempt comes at once. Others count
# as failures, or a gateway that ends each session would be called in a loop.
GOOD_TIME = 10.0
# Seconds between looks at the network, for sessions and while waiting.
LOOK_INTERVAL = 2.0
# Seconds for a sign of life that was asked for.
SIGN_TIME = 5.0
# Seconds of silence until the agent asks. A gateway that has cut the session while the line was
# down, or a NAT with a new address, tells only if something is sent. With a look on top it is less
# than `forwarded.HOLD_TIME`, for which users wait.
QUIET_TIME = 8.0
# Reasons of failures that are remembered, to name each once; more only if the gateway invents them.
MAX_REASONS = 20

# Options that errors of the engine name, as keys of the configuration file. Those of a server are
# the gateway's.
_OPTION = re.compile(r"(server's )?(?<![\w/.'\"-])-([a-z][a-z-]*)")
_KEYS = {
    "s": "addr", "n": "server_name", "pin": "pin", "ca": "ca", "cert": "client_cert",
    "key": "client_key",
}  # fmt: skip
_SERVER_KEYS = {"cert": "tls_cert", "client-ca": "client_ca"}

# Where routes to the Internet are looked at: addresses for documentation (RFC 5737, RFC 3849).
_INTERNET = (("192.0.2.1", 9), ("2001:db8::1", 9, 0, 0))


class LinkSession(Protocol):
    """The agent's end of a session with a gateway; see `outbound.reuse.Reusable`."""

    lost: bool
    error: Exception | None

    @property
    def lower(self) -> StreamTransport: ...
    @property
    def heard_at(self) -> float: ...
    @property
    def open_streams(self) -> int: ...
    def ping(self) -> None: ...
    def ping_answered(self) -> bool: ...
    def close(self) -> None: ...
    def abort(self, exc: Exception | None = None) -> None: ...


# Makes a session; calls its argument when that is over. Raises MttError.
Connect = Callable[[Callable[[], object]], Awaitable[LinkSession]]


class Link:
    """Keeps one session.

    Args:
        gateway: where to, for the log.
        connect: makes a session.
        hop: where the connection goes, whose route is looked at: a proxy, or else the gateway.

    Attributes:
        session: the session; None while there is none.
        wait_times: see FIRST_WAIT, LONGEST_WAIT.
    """

    def __init__(
        self, gateway: Endpoint, connect: Connect, hop: Endpoint | None = None
    ) -> None:
        self.session: LinkSession | None = None
        self.wait_times = FIRST_WAIT, LONGEST_WAIT
        self._gateway = gateway
        self._connect = connect
        self._task: asyncio.Task[None] | None = None
        self._reasons: set[str] = set()  # of failures since the last session
        hop = hop or gateway
        host, port = hop.host, hop.port
        self._peers: tuple[tuple[object, ...], ...] = _INTERNET
        if is_ip(host) and "%" not in host:
            self._peers = ((host, port, 0, 0) if ":" in host else (host, port),)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Make no more sessions. The present one stays."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        limit = self.wait_times[0]
        while True:
            ending = _Ending()
            try:
                self.session = await self._connect(ending.set)
                self._reasons.clear()
                logger.info("connected to the gateway %s", self._gateway)
                began = loop.time()
                await self._watch(self.session, ending)
                error = self.session.error
                self.session = None
                logger.warning(
                    "disconnected from the gateway %s: %s",
                    self._gateway,
                    _with_keys(describe(error)),
                )
                if isinstance(error, RefusedError):  # the Go program refuses within the session
                    limit = self.wait_times[1]
                elif loop.time() - began >= GOOD_TIME:
                    limit = self.wait_times[0]
                    continue
            except MttError as failure:
                self._log_failure(_with_keys(describe(failure)))
                if isinstance(failure, RefusedError):
                    limit = self.wait_times[1]  # the operator has to act
            except Exception as fault:  # a fault of this program must not end the link
                self._log_failure(f"internal error: {describe(fault)}")
                logger.debug("where it happened:", exc_info=True)
                session, self.session = self.session, None
                if session is not None:
                    session.abort(fault)
            if await self._wait(random.uniform(limit / 2, limit)):
                limit = min(limit * GROWTH, self.wait_times[1])
            else:
                limit = self.wait_times[0]

    def _log_failure(self, reason: str) -> None:
        """Name each reason once, however often the attempts fail."""
        level = logging.DEBUG if reason in self._reasons else logging.WARNING
        logger.log(level, "no session with the gateway, trying again: %s", reason)
        if len(self._reasons) < MAX_REASONS:
            self._reasons.add(reason)

    async def _watch(self, session: LinkSession, ending: _Ending) -> None:
        """Wait for the end of a session; end it if the gateway is out of reach."""
        guard = ReuseGuard()
        guard.add(session)
        suspected_at: float | None = None
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        await ending.wait(LOOK_INTERVAL)
        while not ending.is_set:
            if guard.admits(session):
                suspected_at = None
                is_quiet = loop.time() - max(session.heard_at, asked_at) >= QUIET_TIME
                # Behind data on its way the question could take long; the kernel watches that.
                if is_quiet and not session.lower.unsent():
                    asked_at = loop.time()
                    guard.verify(session)
            elif suspected_at is None:
                suspected_at = loop.time()
                guard.verify(session)
            elif session.heard_at > suspected_at:
                suspected_at = loop.time()  # the network has changed again since then
            elif loop.time() - suspected_at >= SIGN_TIME:
                session.abort(NetworkError("no sign of life from the gateway"))
            await ending.wait(LOOK_INTERVAL)

    async def _wait(self, seconds: float) -> bool:
        """Wait; false after a change of the network or a sleep of the computer, at once."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        routes, slept = self._routes(), slept_seconds()
        while (left := end - loop.time()) > 0:
            await _Ending().wait(min(left, LOOK_INTERVAL))
            if self._routes() != routes or slept_seconds() - slept > SLEEP_TIME:
                return False
        return True

    def _routes(self) -> list[str | None]:
        return [source_address(peer) for peer in self._peers]


class _Ending:
    """The end of something, for which one task waits."""

    def __init__(self) -> None:
        self.is_set = False
        self._wakes = asyncio.Event()

    def set(self) -> None:
        self.is_set = True
        self._wakes.set()

    async def wait(self, seconds: float) -> None:
        """Wait for the end, but not longer than this."""
        timer = asyncio.get_running_loop().call_later(seconds, self._wakes.set)
        try:
            await self._wakes.wait()
        finally:
            timer.cancel()
        if not self.is_set:
            self._wakes.clear()


def _with_keys(text: str) -> str:
    """`text` with keys of the configuration file instead of options."""

    def key(found: re.Match[str]) -> str:
        server, option = found[1] or "", found[2]
        known = (_SERVER_KEYS if server else _KEYS).get(option)
        return f"{server}{known}" if known else found[0]

    return _OPTION.sub(key, text)
