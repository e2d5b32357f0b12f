"""A link keeps one session between an agent and a gateway, and makes another when it ends.

    connect -> session -> lost -> connect at once
        `-> failed -> wait, longer each time, or until the network changes -> connect

An established session is checked for what kills connections silently: another route to the gateway,
a sleep of the computer, a missing acknowledgement. If in doubt, the agent asks for a sign of life;
without one, it connects again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from mtt.address import Endpoint
from mtt.errors import MttError, NetworkError, describe
from mtt.layers.base import StreamTransport
from mtt.log import Throttle, logger
from mtt.net.sockets import source_address
from mtt.outbound.reuse import ReuseGuard, slept_seconds

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
        gateway: where to, for the log and for looking at the route.
        connect: makes a session.

    Attributes:
        session: the session; None while there is none.
        wait_times: see FIRST_WAIT, LONGEST_WAIT.
    """

    def __init__(self, gateway: Endpoint, connect: Connect) -> None:
        self.session: LinkSession | None = None
        self.wait_times = FIRST_WAIT, LONGEST_WAIT
        self._gateway = gateway
        self._connect = connect
        self._task: asyncio.Task[None] | None = None
        self._failures = Throttle()

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
            over = asyncio.Event()
            began = loop.time()
            try:
                self.session = await self._connect(over.set)
            except MttError as error:
                self._failures.warning("cannot reach the gateway: %s", describe(error))
            else:
                logger.info("connected to the gateway %s", self._gateway)
                began = loop.time()
                await self._watch(self.session, over)
                reason = describe(self.session.error)
                self.session = None
                logger.warning("disconnected from the gateway %s: %s", self._gateway, reason)
                if loop.time() - began >= GOOD_TIME:
                    limit = self.wait_times[0]
                    continue
            await self._wait(random.uniform(limit / 2, limit))
            limit = min(limit * GROWTH, self.wait_times[1])

    async def _watch(self, session: LinkSession, over: asyncio.Event) -> None:
        """Wait for the end of a session; end it if the gateway is out of reach."""
        guard = ReuseGuard()
        guard.add(session)
        suspected_at = 0.0
        loop = asyncio.get_running_loop()
        while not await _happens(over, LOOK_INTERVAL):
            if guard.admits(session):
                suspected_at = 0.0
            elif not suspected_at:
                suspected_at = loop.time()
                guard.verify(session)
            elif loop.time() - suspected_at >= SIGN_TIME:
                session.abort(NetworkError("no sign of life from the gateway"))

    async def _wait(self, seconds: float) -> None:
        """Wait, but not after a change of the network or a sleep of the computer."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        before = self._network()
        while (left := end - loop.time()) > 0 and self._network() == before:
            await asyncio.sleep(min(left, LOOK_INTERVAL))

    def _network(self) -> tuple[str | None, int]:
        """What an attempt depends on, as far as it can be seen here."""
        route = source_address(("192.0.2.1", 9)) or source_address(("2001:db8::1", 9, 0, 0))
        return route, int(slept_seconds())


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    """Whether `event` is set within this time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
