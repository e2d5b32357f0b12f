"""Streams that a peer opens on a session: dealt with in turn, and not too many at a time.

A frame of a few bytes opens a stream, and each has us connect to somewhere: what one read brings
would take all descriptors, and the event loop for seconds. So new streams are looked at when the
whole read has been: those that are over by then are not begun at all. The others begin a few in
each turn of the loop, and wait while too many that the same peer opened are still being carried.
When the session ends, those that the peer has ended with FIN before still begin.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

# To connect takes 0.1 to 0.2 ms: a turn stays below a few milliseconds.
STREAMS_A_TURN = 16
# What a session has us carry at a time, connections that are being made or closed included. A
# client opens 16 at most, and one that uses a session for many streams one by one has a few that
# are not quite over.
MAX_CARRIED = 256


class Stream(Protocol):
    """What is needed of a stream that the peer has opened."""

    @property
    def is_over(self) -> bool: ...
    def begin(self) -> None: ...
    def is_closing(self) -> bool: ...
    def pause_reading(self) -> None: ...
    def close(self) -> None: ...


class Arrivals:
    """Those of one session.

    Attributes:
        waiting: streams that have not begun, in the order in which they were opened.
    """

    __slots__ = ("_carried", "_scheduled", "waiting")

    def __init__(self) -> None:
        self._carried = 0
        self._scheduled = False
        # A session has 256 streams at most, and an empty deque takes 600 bytes.
        self.waiting: list[Stream] = []

    def add(self, stream: Stream) -> None:
        """A stream has been opened; `admit` is to be called before the turn is over."""
        stream.pause_reading()
        self.waiting.append(stream)

    def admit(self) -> None:
        """Begin streams, unless a turn of their own is due."""
        if not self._scheduled:
            self._admit()

    def engage(self, count: int) -> None:
        """Note that one more, or one less, is being carried."""
        self._carried += count
        if self.waiting and not self._scheduled and self._carried < MAX_CARRIED:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._admit)

    def _admit(self) -> None:
        self._scheduled = False
        waiting = self.waiting
        left = STREAMS_A_TURN
        while waiting and self._carried < MAX_CARRIED:
            if waiting[0].is_closing():
                waiting.pop(0)
            elif waiting[0].is_over:
                waiting.pop(0).close()
            elif left:
                left -= 1
                waiting.pop(0).begin()
            else:
                self._schedule()
                break
