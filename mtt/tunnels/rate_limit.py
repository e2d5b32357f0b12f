"""Rate limits of users: token buckets, and the layer that spends their tokens.

Theory of operation
-------------------
A `Bucket` gains `rate` tokens per second, up to `BURST_TIME` seconds' worth. All streams of a user
share one bucket per direction. A `RateLimiter` is a layer between a transport and the relay. It
passes received bytes on while there are tokens. The excess waits in the rate limiter, which pauses
the transport meanwhile. So at most one read waits, and TCP's back-pressure reaches the sender.

Waiting rate limiters form a queue. One timer serves them in turn, each with an equal share of the
tokens. Many small pieces, rather than whole reads one after another, keep every relay from its idle
timeout at any rate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

from mtt.layers.base import Data, StreamTransport
from mtt.layers.layer import Layer
from mtt.layers.parked import Parked

# Seconds of the rate that a bucket can store: enough that short requests do not notice the limit,
# and longer than the timer is ever late.
BURST_TIME = 0.25
# Seconds between turns of the queue: short enough for a steady flow, at negligible load.
TICK = 0.02
# Longest time between two looks at the tokens, seconds: the rate may rise meanwhile.
LONGEST_TICK = 1.0


class Waiter(Protocol):
    """A rate limiter that waits for tokens."""

    @property
    def backlog(self) -> int:
        """Number of tokens that it waits for."""

    def pass_on(self, limit: int) -> int:
        """Spend up to `limit` tokens; queue again if bytes remain. Returns the number spent."""


class TokenSource:
    """The source of tokens for rate limiters, with a queue of those that wait."""

    __slots__ = ("_tokens", "_waiting")

    def __init__(self, tokens: float) -> None:
        self._tokens = tokens
        self._waiting: dict[Waiter, None] = {}  # the queue

    def take(self, wanted: int) -> int:
        """Take up to `wanted` tokens at once; none while others wait. Returns their number."""
        raise NotImplementedError

    def wait(self, limiter: Waiter) -> None:
        """Queue `limiter`."""
        raise NotImplementedError

    def leave(self, limiter: Waiter) -> None:
        """Remove `limiter` from the queue."""
        self._waiting.pop(limiter, None)

    def _share(self) -> None:
        """Give the waiting rate limiters equal shares of the tokens, in turn."""
        share = max(1, int(self._tokens) // max(1, len(self._waiting)))
        for limiter in list(self._waiting):
            if self._tokens < 1:
                break
            if limiter not in self._waiting:  # ended by data passed to another
                continue
            del self._waiting[limiter]
            self._tokens -= limiter.pass_on(min(share, int(self._tokens)))


class Bucket(TokenSource):
    """The token bucket of one user for one direction, in the running event loop.

    `rate`: bytes per second, above 0; may change at any time.
    """

    __slots__ = ("_filled", "_loop", "_timer", "rate")

    def __init__(self, rate: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.rate = rate
        super().__init__(self.burst)
        self._filled = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def burst(self) -> float:
        """Capacity in tokens; at least one, or nothing would ever pass."""
        return max(1.0, self.rate * BURST_TIME)

    def take(self, wanted: int) -> int:
        if self._waiting:
            return 0
        granted = min(wanted, self._fill())
        self._tokens -= granted
        return granted

    def wait(self, limiter: Waiter) -> None:
        self._waiting[limiter] = None
        self._arm()

    def charge(self, size: int) -> None:
        """Take `size` tokens, although some of them may still have to be gained."""
        self._fill()
        self._tokens -= size

    def leave(self, limiter: Waiter) -> None:
        super().leave(limiter)
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fill(self) -> int:
        """Add the tokens gained since the last call. Returns the number of whole tokens."""
        now = self._loop.time()
        self._tokens = min(self.burst, self._tokens + (now - self._filled) * self.rate)
        self._filled = now
        return max(0, int(self._tokens))

    def _arm(self) -> None:
        if self._timer is None:
            missing = (1.0 - self._tokens) / self.rate  # seconds until there is a whole token
            delay = min(max(TICK, missing), LONGEST_TICK)
            self._timer = self._loop.call_later(delay, self._serve)

    def _serve(self) -> None:
        self._timer = None
        self._fill()
        self._share()
        if self._waiting:
            self._arm()


class RateLimiter(Layer):
    """A layer that limits the rate of received data. Written data passes unchanged.

    The rate limiter at the other end of the relay limits the opposite direction.
    """

    name = "rate limiter"

    __slots__ = ("_backlog", "_bucket", "_closed", "_eof", "_lost")

    def __init__(self, bucket: TokenSource) -> None:
        super().__init__(Parked())
        self._bucket = bucket
        self._backlog = bytearray()  # received, and waiting for tokens
        self._paused = True
        self._eof = False  # received the end; delivered after the backlog
        self._lost: Callable[[], None] | None = None  # reports the loss of `lower`
        self._closed = False  # by the protocol above

    def start(self, transport: StreamTransport) -> None:
        """Take over `transport`. The protocol above is attached with `set_protocol()`."""
        transport.limit_reads()  # a whole read waits here for tokens
        held = transport.get_protocol()
        if isinstance(held, Parked) and held.error and not (held.eof and held.early):
            # Nothing must wait: the next owner finds the early data and the error in the Parked.
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
        return True  # the rate limiter closes

    def connection_lost(self, exc: Exception | None) -> None:
        if self._backlog:
            # Deliver what it sent before.
            self._lost = lambda: self.report_lost(exc)
            self.upper.pause_writing()
            self._queue_up()
        else:
            self._drop()
            self.report_lost(exc)

    @property
    def is_throttled(self) -> bool:
        return bool(self._backlog) and not self._paused

    # For the bucket.

    @property
    def backlog(self) -> int:
        """Number of waiting bytes."""
        return len(self._backlog)

    def pass_on(self, limit: int) -> int:
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
        lost, self._lost = self._lost, None  # break the cycle: it refers to `self`
        assert lost is not None
        self._closed = True
        lost()

    def _drop(self) -> None:
        """End it at once; nothing waits any more. Subclasses may have more to drop."""
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
        self._bucket.wait(self)  # the bucket chooses the time

    def _pause_below(self) -> None:
        if self._backlog:
            self._bucket.leave(self)
        else:
            self.lower.pause_reading()

    def _resume_below(self) -> None:
        if not self._closed:
            self.lower.resume_reading()

    def throttled_bytes(self) -> int:
        return len(self._backlog) + self.lower.throttled_bytes()

    def half_closes(self) -> bool | None:
        return self.lower.half_closes()

    def write(self, data: Any) -> None:
        if not (self._closed or self._lost):
            self.lower.write(data)

    def write_eof(self) -> None:
        if not (self._closed or self._lost):
            self.lower.write_eof()

    def close(self) -> None:
        if not self._closed:
            self._end(self.lower.close)

    def cut(self) -> None:
        self._end(self.lower.cut)

    def abort(self) -> None:
        self._end(self.lower.abort)

    def _end(self, how: Callable[[], None]) -> None:
        """End `lower` as in `how`, or report its loss. The backlog is dropped."""
        lost = None if self._closed else self._lost
        self._lost = None
        self._drop()
        if lost is not None:
            asyncio.get_running_loop().call_soon(lost)
        else:
            how()
