"""Accepting connections, with a rest while the process is short of descriptors.

Not left to the servers of the event loops, which notice only when nothing is left for the other
ends of the tunnels either: asyncio's then tries again every second, uvloop's hangs up on everybody.
Whoever has to wait here waits in the kernel's queue, and is served when others have ended.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from mtt.errors import describe
from mtt.layers.base import StreamProtocol
from mtt.layers.poller import poller
from mtt.layers.tcp import SocketTransport

try:
    import resource
except ImportError:  # Windows, where sockets are no descriptors and have no limit of that kind
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

# Part of the descriptors that is not for newcomers, and the most that is kept so. The next thing
# that a connection does is to dial, which takes a second one; certificates are read again, names
# are looked up, and whoever watches us wants to be let in.
RESERVED_PART = 8
MAX_RESERVED = 1024

# Seconds between two looks whether something has become free: one costs two system calls.
REST_TIME = 0.25

# Seconds from one line about that to the next, while connections come and go at the limit.
LOG_INTERVAL = 60.0

# Connections accepted in one turn of the loop. More would make the tunnels there are wait: 64 with
# their TLS objects take some 10 ms.
BURST = 64

# The same where other processes accept from the same queue: whoever is idle shall find something
# there. A few long-lived connections would otherwise all end up with the first one to wake.
SHARED_BURST = 1

# Seconds that another process has to take a connection that should be its own: as long as a
# handshake keeps it busy. After that whoever is there takes what waits.
YIELD_TIME = 0.001

ProtocolFactory = Callable[[], StreamProtocol]


class Acceptor:
    """Accepts what comes in on listening sockets, which it owns, from `add()` to `close()`.

    Args:
        protocol_factory: makes the protocol of each connection.
        use_reserve: go on until there is no descriptor left at all.
        yields: for sockets from which other processes accept as well: whether one of them should
            have the next connection.
    """

    def __init__(
        self,
        protocol_factory: ProtocolFactory,
        *,
        use_reserve: bool = False,
        yields: Callable[[], bool] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol_factory = protocol_factory
        self._use_reserve = use_reserve
        self._yields = yields
        self._yielding: dict[socket.socket, asyncio.TimerHandle] = {}
        self.sockets: list[socket.socket] = []
        self._rest: asyncio.TimerHandle | None = None
        poller()  # of the connections: now, while there is a descriptor left for it
        self._next_line = float("-inf")
        self._said = False  # that connections have to wait

    def add(self, sock: socket.socket) -> None:
        """Accept what comes in on this one as well."""
        sock.setblocking(False)
        self.sockets.append(sock)
        if self._rest is None:
            self._watch(sock)

    def close(self) -> None:
        """Close the listening sockets; connections live on. May run in a signal handler."""
        if self._rest is not None:
            self._rest.cancel()
        for timer in self._yielding.values():
            timer.cancel()
        self._yielding.clear()
        for sock in self.sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self.sockets.clear()

    def _watch(self, sock: socket.socket) -> None:
        self._loop.add_reader(sock, self._accept if self._yields is None else self._share, sock)

    def _share(self, listening: socket.socket) -> None:
        """Accept a connection, unless another process should."""
        assert self._yields is not None
        if not self._yields():
            self._accept(listening, SHARED_BURST)
            return
        self._loop.remove_reader(listening)
        self._yielding[listening] = self._loop.call_later(YIELD_TIME, self._take, listening)

    def _take(self, listening: socket.socket) -> None:
        """Accept what no other process has wanted."""
        del self._yielding[listening]
        if self._rest is None:
            self._watch(listening)
            self._accept(listening)

    def _accept(self, listening: socket.socket, most: int = 0) -> None:
        for _ in range(most or BURST):
            try:
                sock, peer = listening.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:  # it would come again in the next turn of the loop
                self._pause(describe(error), limited=error.errno == errno.EMFILE)
                return
            # Descriptors are given out from the lowest free number on: all below are in use.
            scarce = not self._use_reserve and sock.fileno() >= _for_newcomers()
            self._open(sock, peer)
            if scarce:
                self._pause("almost all descriptors are in use", limited=True)
                return

    def _open(self, sock: socket.socket, peer: Any) -> None:
        try:
            sock.setblocking(False)
            protocol = self._protocol_factory()
        except Exception as error:
            sock.close()
            self._loop.call_exception_handler(
                {"message": "a connection could not be taken", "exception": error}
            )
        else:
            SocketTransport(sock, protocol, peer)

    def _pause(self, reason: str, *, limited: bool) -> None:
        """Leave newcomers in the kernel's queue for a while."""
        if not self.sockets:  # closed in this moment
            return
        for sock in self.sockets:
            self._loop.remove_reader(sock)
        self._rest = self._loop.call_later(REST_TIME, self._resume)
        now = time.monotonic()
        if now < self._next_line:
            return
        self._next_line = now + LOG_INTERVAL
        self._said = True
        hint = ""
        if limited and resource is not None:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            hint = f"; their limit, {limit}, can be raised (ulimit -n, or LimitNOFILE= of systemd)"
        log.error("new connections have to wait until others end: %s%s", reason, hint)

    def _resume(self) -> None:
        if not self._is_free():
            self._rest = self._loop.call_later(REST_TIME, self._resume)
            return
        self._rest = None
        if self._said:
            self._said = False
            log.info("new connections are accepted again")
        for sock in self.sockets:
            self._watch(sock)

    def _is_free(self) -> bool:
        """Whether a newcomer would get a descriptor outside of the reserve."""
        try:
            descriptor = os.dup(self.sockets[0].fileno())
        except OSError:
            return False
        os.close(descriptor)
        return self._use_reserve or descriptor < _for_newcomers()


def _for_newcomers() -> float:
    """The first descriptor that is reserved. Asked anew, as the limit may be changed (prlimit)."""
    if resource is None:
        return float("inf")
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    return float(limit - min(limit // RESERVED_PART, MAX_RESERVED))
