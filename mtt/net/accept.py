"""Accepts connections, and pauses while the process is short of file descriptors.

The event loops' own servers notice a shortage only when no descriptor is left for the outgoing side
of the tunnels either: asyncio then retries every second, and uvloop closes every new connection.
Here, new connections wait in the kernel's queue until other connections end.
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
from mtt.net.sockets import stop_local_pacing

try:
    import resource
except ImportError:  # Windows, where sockets are not descriptors and have no such limit
    resource = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

# The fraction of descriptors (1/8) that new connections must leave free, and its maximum. A new
# connection next dials, which takes a second descriptor; reloads of certificates, name lookups and
# monitoring need some as well.
RESERVED_PART = 8
MAX_RESERVED = 1024

# Seconds between checks for a free descriptor; a check costs two system calls.
REST_TIME = 0.25

# Seconds between log lines about the shortage while connections come and go at the limit.
LOG_INTERVAL = 60.0

# Connections accepted per iteration of the event loop. More would delay the existing tunnels: 64
# with their TLS objects take some 10 ms.
BURST = 64

# The same with other processes on the same queue. Otherwise a few long-lived connections would all
# go to the first process that wakes.
SHARED_BURST = 1

# Seconds for which a connection is left to the process that should have it: as long as a handshake
# keeps that process busy. After that, any process accepts it.
YIELD_TIME = 0.001

ProtocolFactory = Callable[[], StreamProtocol]


class Acceptor:
    """Accepts connections on listening sockets until `close()`.

    `use_reserve`: accept until no descriptor is left at all. `yields`: whether another process that
    shares the sockets should have the next connection.
    """

    def __init__(
        self,
        sockets: list[socket.socket],
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
        self.sockets = sockets
        self._rest: asyncio.TimerHandle | None = None
        poller()  # create it now, while a descriptor is left for it
        self._next_line = float("-inf")
        self._said = False  # the current pause has been logged
        for sock in sockets:
            sock.setblocking(False)
            self._watch(sock)

    def stop(self) -> None:
        """Stop accepting; the sockets stay open."""
        if self._rest is not None:
            self._rest.cancel()
        for timer in self._yielding.values():
            timer.cancel()
        self._yielding.clear()
        for sock in self.sockets:
            self._loop.remove_reader(sock)

    def close(self) -> None:
        """Close the listening sockets, not the connections. Safe in a signal handler."""
        self.stop()
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()

    def _watch(self, sock: socket.socket) -> None:
        self._loop.add_reader(sock, self._accept if self._yields is None else self._share, sock)

    def _share(self, listening: socket.socket) -> None:
        """Accept a connection, unless another process should have it."""
        assert self._yields is not None
        if not self._yields():
            self._accept(listening, SHARED_BURST)
            return
        self._loop.remove_reader(listening)
        self._yielding[listening] = self._loop.call_later(YIELD_TIME, self._take, listening)

    def _take(self, listening: socket.socket) -> None:
        """Accept connections that no other process has taken."""
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
            except OSError as error:  # it would recur in the next iteration of the loop
                self._pause(describe(error), limited=error.errno == errno.EMFILE)
                return
            # The kernel assigns the lowest free descriptor, so all below this one are in use.
            scarce = not self._use_reserve and sock.fileno() >= first_reserved()
            self._open(sock, peer)
            if scarce:
                self._pause("almost all descriptors are in use", limited=True)
                return

    def _open(self, sock: socket.socket, peer: Any) -> None:
        try:
            sock.setblocking(False)
            stop_local_pacing(sock, peer)
            protocol = self._protocol_factory()
        except Exception as error:
            sock.close()
            context = {"message": "cannot handle an accepted connection", "exception": error}
            self._loop.call_exception_handler(context)
        else:
            SocketTransport(sock, protocol, peer)

    def _pause(self, reason: str, *, limited: bool) -> None:
        """Leave new connections in the kernel's queue for a while."""
        if not self.sockets:  # closed meanwhile
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
            hint = f"; raise their limit, {limit} (ulimit -n, or LimitNOFILE= of systemd)"
        log.error("accepting paused until connections end: %s%s", reason, hint)

    def _resume(self) -> None:
        if not self._is_free():
            self._rest = self._loop.call_later(REST_TIME, self._resume)
            return
        self._rest = None
        if self._said:
            self._said = False
            log.info("accepting resumed")
        for sock in self.sockets:
            self._watch(sock)

    def _is_free(self) -> bool:
        """Whether a new connection would get a descriptor outside the reserve."""
        try:
            descriptor = os.dup(self.sockets[0].fileno())
        except OSError:
            return False
        os.close(descriptor)
        return self._use_reserve or descriptor < first_reserved()


def first_reserved() -> float:
    """The first reserved descriptor. Computed each time, because prlimit can change the limit."""
    if resource is None:
        return float("inf")
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    return float(limit - min(limit // RESERVED_PART, MAX_RESERVED))
