"""Which sockets are ready: asked of the kernel directly, for all of them at once.

An event loop makes of everything that is ready a list, of that a list of handles, and runs each in
a context of its own; then it looks at its timers, and asks the kernel again. That is a tenth and
more of what a small message costs (docs/performance.md), so here the loop watches one descriptor,
which is ready when any socket is: epoll(7) can itself be watched. Whoever waits for a socket is
called from there. Systems without epoll leave the sockets to the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import time
from collections.abc import Callable
from typing import Protocol
from weakref import ReferenceType, WeakKeyDictionary

# EPOLLIN and EPOLLOUT of <sys/epoll.h>. Anything else that is told is a reset or an end, and both
# reading and writing find out about it.
READ = 0x001
WRITE = 0x004

# Sockets that are told at once; who comes after them is not forgotten, but first next time.
MOST = 64

# As long as so many are found ready at a time they are served without going through the loop; but
# when that has waited for TURN_TIME seconds, with timers, newcomers and all else, it has its turn.
AGAIN = 2
TURN_TIME = 0.001

Ready = Callable[[int], object]


class Poller(Protocol):
    """Watches sockets by their descriptors, from `watch()` until `forget()`."""

    def watch(self, fd: int, events: int, ready: Ready) -> None:
        """Call `ready` with what has happened, whenever one of `events` has: READ, WRITE, both.

        Instead of what was asked for before, if that is not over.
        """

    def forget(self, fd: int) -> None:
        """Call nobody for `fd` any more; to be said before it is closed."""


class EpollPoller:
    """By epoll(7).

    Args:
        loop: has a turn whenever something is ready.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Ready] = {}
        loop.add_reader(self._epoll.fileno(), self._serve)

    def watch(self, fd: int, events: int, ready: Ready) -> None:
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = ready

    def forget(self, fd: int) -> None:
        if self._watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):  # closed, and so forgotten
                self._epoll.unregister(fd)

    def _serve(self) -> None:
        watched = self._watched
        until = time.monotonic() + TURN_TIME
        while True:
            found = self._epoll.poll(0, MOST)
            for fd, events in found:
                ready = watched.get(fd)
                if ready is None:  # one of those before has had it forgotten
                    continue
                try:
                    ready(events)
                except Exception as error:  # the others are to be served all the same
                    context = {"message": "internal error, serving a socket", "exception": error}
                    asyncio.get_running_loop().call_exception_handler(context)
            if len(found) < AGAIN or time.monotonic() >= until:
                break


class LoopPoller:
    """By the event loop's own means."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # libuv, and so uvloop, does not go on watching a socket that has been reset, even if what
        # came before that has still to be read.
        self._insists = not isinstance(loop, asyncio.BaseEventLoop)
        self._readers: dict[int, Ready] = {}

    def watch(self, fd: int, events: int, ready: Ready) -> None:
        self.forget(fd)
        if events & READ:
            self._readers[fd] = ready
            self._loop.add_reader(fd, self._readable, fd)
        if events & WRITE:
            self._loop.add_writer(fd, ready, WRITE)

    def forget(self, fd: int) -> None:
        self._readers.pop(fd, None)
        self._loop.remove_reader(fd)
        self._loop.remove_writer(fd)

    def _readable(self, fd: int) -> None:
        self._readers[fd](READ)
        if self._insists and fd in self._readers:
            self._loop.remove_reader(fd)
            self._loop.add_reader(fd, self._readable, fd)


# By reference: pollers refer to their loops, by way of what they watch or themselves. What keeps
# one is the loop, and the transports.
_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, ReferenceType[Poller]] = WeakKeyDictionary()


def poller() -> Poller:
    """The poller of the running event loop."""
    loop = asyncio.get_running_loop()
    reference = _pollers.get(loop)
    found = reference() if reference is not None else None
    if found is None:
        found = (EpollPoller if hasattr(select, "epoll") else LoopPoller)(loop)
        _pollers[loop] = ReferenceType(found)
    return found
