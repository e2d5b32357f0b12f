"""Reports which sockets are ready, by one epoll(7) descriptor for all of them.

An event loop turns ready descriptors into a list of handles, runs each in a context of its own,
checks its timers, and polls again. That is more than a tenth of the cost of a small message
(docs/performance.md). So here a poller calls the sockets' callbacks. The programs' own loop waits
in the poller. Other loops watch only the epoll descriptor, which is ready when any socket is.
Without epoll, the loop watches the sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import selectors
import time
from collections.abc import Callable, Mapping
from contextvars import copy_context
from functools import partial
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary

from mtt.log import subject

# EPOLLIN and EPOLLOUT of <sys/epoll.h>. Other events mean a reset or an end, which reading and
# writing both notice.
READ = 0x001
WRITE = 0x004

# Sockets reported by one poll; epoll reports the others first next time.
MAX_EVENTS = 64

# While at least this many sockets are ready, they are served without returning to the loop, for at
# most MAX_TURN_TIME seconds. Then timers, new connections and everything else have their turn.
BUSY_EVENTS = 2
MAX_TURN_TIME = 0.001

Ready = Callable[[int], object]


class EpollPoller:
    """Uses epoll(7). `loop` watches its descriptor; None if a `PollerSelector` waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Ready] = {}
        if loop is not None:
            loop.add_reader(self._epoll.fileno(), self.serve, 0)

    def watch(self, fd: int, events: int, ready: Ready) -> None:
        """Call `ready` with the events that occur, until `forget()` or another call for `fd`.

        `events`: READ, WRITE, or both.
        """
        if subject.get() is not None:  # as event loops do; without several tunnels, it is a waste
            run: Callable[..., object] = copy_context().run
            ready = partial(run, ready)
        if fd in self._watched:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._watched[fd] = ready

    def forget(self, fd: int) -> None:
        """Stop watching `fd`; to be called before it is closed."""
        if self._watched.pop(fd, None) is not None:
            with contextlib.suppress(OSError):  # closed, which unregisters it
                self._epoll.unregister(fd)

    def serve(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds (None: no limit) for events, and call the callbacks."""
        watched = self._watched
        found = self._epoll.poll(timeout, MAX_EVENTS)
        until = time.monotonic() + MAX_TURN_TIME
        while True:
            for fd, events in found:
                ready = watched.get(fd)
                if ready is None:  # forgotten by the callback of another one
                    continue
                try:
                    ready(events)
                except Exception as error:  # the others must still be served
                    context = {"message": "internal error, serving a socket", "exception": error}
                    asyncio.get_running_loop().call_exception_handler(context)
            if len(found) < BUSY_EVENTS or time.monotonic() >= until:
                break
            found = self._epoll.poll(0, MAX_EVENTS)


class PollerSelector(selectors.BaseSelector):
    """The selector of an event loop that waits in a poller, which serves sockets meanwhile.

    What the loop itself watches is in a selector of its own, whose descriptor the poller watches.
    """

    def __init__(self) -> None:
        self.poller = EpollPoller(None)
        self._others = selectors.EpollSelector()
        self._others_ready = False
        self.poller.watch(self._others.fileno(), READ, self._note_others)

    def _note_others(self, _events: int) -> None:
        self._others_ready = True

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._others_ready = False
        self.poller.serve(timeout)
        # Not earlier: callbacks of sockets may change what the loop watches.
        return self._others.select(0) if self._others_ready else []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._others.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._others.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._others.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._others.get_map()

    def close(self) -> None:
        self.poller.forget(self._others.fileno())
        self._others.close()


class LoopPoller:
    """Does the same with the event loop's readers and writers."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # libuv, and so uvloop, stops watching a socket that has been reset, even if earlier data is
        # still to be read.
        self._rewatches = not isinstance(loop, asyncio.BaseEventLoop)
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
        if self._rewatches and fd in self._readers:
            self._loop.remove_reader(fd)
            self._loop.add_reader(fd, self._readable, fd)


Poller = EpollPoller | LoopPoller

# Weak references, because pollers refer to their loops. The loop and the transports keep a poller
# alive.
_pollers: WeakKeyDictionary[asyncio.AbstractEventLoop, ReferenceType[Poller]] = WeakKeyDictionary()


def poller() -> Poller:
    """Return the poller of the running event loop."""
    loop = asyncio.get_running_loop()
    reference = _pollers.get(loop)
    found = reference() if reference is not None else None
    if found is None:
        found = (EpollPoller if hasattr(select, "epoll") else LoopPoller)(loop)
        _pollers[loop] = ReferenceType(found)
    return found


def new_event_loop() -> asyncio.SelectorEventLoop:
    """Return an event loop of asyncio's that waits in its poller, where there is epoll."""
    if not hasattr(select, "epoll"):
        return asyncio.SelectorEventLoop()
    selector = PollerSelector()
    loop = asyncio.SelectorEventLoop(selector)
    _pollers[loop] = ReferenceType(selector.poller)
    return loop
