"""Holding a user to a rate: token buckets, and a layer that takes from one before it passes on.

Theory of operation
-------------------
A `Bucket` fills with `rate` tokens per second, up to `BURST_TIME` seconds' worth. All streams of a
user share one per direction. A `Throttle` stands between a transport and the relay and lets the
bytes that come from below pass as long as there are tokens. What they do not suffice for waits in
the throttle, and meanwhile it does not read the transport, so at most one read waits and TCP's
back-pressure reaches the sender.

The throttles that wait stand in a queue; a single timer serves them in turn, each with an equal
share of what has come together. Small pieces to everybody, instead of whole reads to one after the
other, so that a relay sees something move before its idle timeout however low the rate is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from mtt.layers.base import Data, StreamTransport
from mtt.layers.layer import Layer
from mtt.layers.parked import Parked

# How much of what was not used may be caught up with later, in seconds of the rate: enough that
# short requests do not feel the limit, and more than the timer is ever late.
BURST_TIME = 0.25
# How often those who wait are served: often enough that a stream flows, and no load worth the name.
TICK = 0.02


class Waiting(Protocol):
    """Who waits for tokens."""

    def pass_on(self, limit: int) -> int:
        """Use `limit` tokens at most, and wait again for more if need be; returns how many."""


class Tokens(Protocol):
    """Where a throttle takes its tokens from."""

    def take(self, wanted: int) -> int:
        """How many of `wanted` bytes may pass at once. Who waits already comes first."""

    def wait(self, throttle: Throttle) -> None:
        """Have `throttle` served when its turn comes."""

    def leave(self, throttle: Throttle) -> None:
        """`throttle` does not wait any more."""


class Bucket:
    """The tokens of one user for one direction; belongs to the running event loop.

    `rate`: bytes per second, above 0; it may be changed at any time.
    """

    __slots__ = ("_filled", "_loop", "_timer", "_tokens", "_waiting", "rate")

    def __init__(self, rate: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.rate = rate
        self._tokens = self.burst
        self._filled = self._loop.time()
        self._waiting: dict[Waiting, None] = {}  # in the order in which it is their turn
        self._timer: asyncio.TimerHandle | None = None

    @property
    def burst(self) -> float:
        """The most tokens that come together; at least one, or nothing would ever pass."""
        return max(1.0, self.rate * BURST_TIME)

    def take(self, wanted: int) -> int:
        """How many of `wanted` bytes may pass at once. Who waits already comes first."""
        if self._waiting:
            return 0
        granted = min(wanted, self._fill())
        self._tokens -= granted
        return granted

    def wait(self, throttle: Waiting) -> None:
        """Have `throttle` served when its turn comes."""
        self._waiting[throttle] = None
        self._arm()

    def leave(self, throttle: Waiting) -> None:
        """`throttle` does not wait any more."""
        self._waiting.pop(throttle, None)
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fill(self) -> int:
        """Add the tokens of the time that has passed; returns how many whole ones there are."""
        now = self._loop.time()
        self._tokens = min(self.burst, self._tokens + (now - self._filled) * self.rate)
        self._filled = now
        return int(self._tokens)

    def _arm(self) -> None:
        if self._timer is None:
            missing = (1.0 - self._tokens) / self.rate  # seconds until there is a whole token
            self._timer = self._loop.call_later(max(TICK, missing), self._serve)

    def _serve(self) -> None:
        self._timer = None
        share = max(1, self._fill() // max(1, len(self._waiting)))
        for throttle in list(self._waiting):
            if self._tokens < 1:
                break
            if throttle not in self._waiting:  # it ended by what another one was given
                continue
            del self._waiting[throttle]
            self._tokens -= throttle.pass_on(min(share, int(self._tokens)))
        if self._waiting:
            self._arm()


class Throttle(Layer):
    """Passes on what comes from the transport below no faster than its bucket allows.

    What goes down passes untouched: the other direction has a throttle of its own.
    """

    name = "rate limiter"

    __slots__ = ("_backlog", "_bucket", "_closed", "_eof", "_lost")

    def __init__(self, bucket: Tokens) -> None:
        super().__init__(Parked())
        self._bucket = bucket
        self._backlog = bytearray()  # came and waits for tokens
        self._paused = True
        self._eof = False  # the end has come from below; told when the backlog is gone
        self._lost: Callable[[], None] | None = None  # tells the loss of what is below
        self._closed = False  # by the protocol above

    def start(self, transport: StreamTransport) -> None:
        """Take over `transport`. Whoever comes above uses `set_protocol()`."""
        transport.limit_reads()  # a read waits here until there are tokens for it
        held = transport.get_protocol()
        if isinstance(held, Parked) and held.error and not (held.eof and held.early):
            # Nothing has to wait; whoever comes next finds what there was, and why it is over.
            self.lower = transport
            self.upper = held
            self._closed = True
        else:
            super().start(transport)

    # The protocol of the transport below.

    def data_received(self, data: Data) -> None:
        if self._closed:
            return
        size = len(data)
        granted = 0 if self._backlog or self._paused else self._bucket.take(size)
        if granted:
            self.upper.data_received(data if granted == size else data[:granted])
        if granted < size and not self._closed:
            self._backlog += data[granted:]
            self.lower.pause_reading()
            self._queue_up()

    def eof_received(self) -> bool:
        self._eof = True
        if not self._backlog:
            self._tell_eof()
        return True  # closing is up to us

    def connection_lost(self, exc: Exception | None) -> None:
        if self._backlog:
            # What it sent before is still owed to the other side.
            self._lost = lambda: self.tell_lost(exc)
            self.upper.pause_writing()
            self._queue_up()
        else:
            self._drop()
            self.tell_lost(exc)

    # For the bucket.

    @property
    def backlog(self) -> int:
        """How many bytes wait."""
        return len(self._backlog)

    def pass_on(self, limit: int) -> int:
        """Hand up to `limit` bytes to the protocol above; returns how many it were."""
        piece = bytes(self._backlog[:limit])
        del self._backlog[:limit]
        self.upper.data_received(piece)
        if self._backlog:
            self._queue_up()
        elif not self._closed:
            if self._eof:
                self._tell_eof()
            elif self._lost is not None:
                self._tell_loss()
            elif not self._paused:
                self.lower.resume_reading()
        return len(piece)

    def _queue_up(self) -> None:
        if not self._paused:
            self._bucket.wait(self)

    def _tell_eof(self) -> None:
        if not self.upper.eof_received():
            self.close()
        if self._lost is not None and not self._closed:
            self._tell_loss()

    def _tell_loss(self) -> None:
        lost, self._lost = self._lost, None  # it refers to us
        assert lost is not None
        self._closed = True
        lost()

    def _drop(self) -> None:
        self._closed = True
        self._backlog.clear()
        self._bucket.leave(self)

    # The transport of the protocol above.

    def is_closing(self) -> bool:
        return self._closed or (self._lost is None and self.lower.is_closing())

    @property
    def _has_more(self) -> bool:
        return bool(self._backlog)

    def _deliver_soon(self) -> None:
        self._bucket.wait(self)  # which is to say when

    def _pause_below(self) -> None:
        if self._backlog:
            self._bucket.leave(self)
        else:
            self.lower.pause_reading()

    def _resume_below(self) -> None:
        if not self._closed:
            self.lower.resume_reading()

    def held_back(self) -> int:
        return len(self._backlog) + self.lower.held_back()

    def half_closes(self) -> bool | None:
        return self.lower.half_closes()

    def write(self, data: Any) -> None:
        if not (self._closed or self._lost):
            self.lower.write(data)

    def write_eof(self) -> None:
        if not (self._closed or self._lost):
            self.lower.write_eof()

    def close(self) -> None:
        """Deliver what was written and close; what waits to pass from below is dropped."""
        if not self._closed:
            lost, self._lost = self._lost, None
            self._drop()
            if lost is not None:
                asyncio.get_running_loop().call_soon(lost)
            else:
                self.lower.close()

    def cut(self) -> None:
        """Deliver what was written, then end the connection so that the peer sees a failure."""
        self._end(lambda: self.lower.cut())

    def abort(self) -> None:
        """Cut the connection so that the peer sees a failure."""
        self._end(lambda: self.lower.abort())

    def _end(self, how: Callable[[], None]) -> None:
        lost = None if self._closed else self._lost
        self._lost = None
        self._drop()
        if lost is not None:
            asyncio.get_running_loop().call_soon(lost)
        else:
            how()
