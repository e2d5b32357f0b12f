"""A rate limit for both directions of a stream together, at one end of a relay.

    received data -> waits for tokens -> the protocol above
    written data  -> the stream at once; then the protocol above is paused until tokens are there

So it fits where only one end of a relay is known. What was written beyond the tokens is a debt, at
most one read of the relay. The debts wait in the bucket's queue, like received data does.
"""

from __future__ import annotations

from typing import Any

from mtt.layers.base import StreamTransport
from mtt.tunnels.rate_limit import Bucket, RateLimiter


class _Debt:
    """Written bytes that wait for tokens; a `Waiter`."""

    __slots__ = ("_limiter", "backlog")

    def __init__(self, limiter: TwoWayRateLimiter, size: int) -> None:
        self._limiter = limiter
        self.backlog = size

    def pass_on(self, limit: int) -> int:
        paid = min(limit, self.backlog)
        self.backlog -= paid
        self._limiter.debt_changed(self)
        return paid


class TwoWayRateLimiter(RateLimiter):
    """A layer that limits the rate of a stream of a session, received and written data together."""

    shares_connection = True  # as the streams below do; the relay reads less at a time

    __slots__ = ("_debt", "_is_full")

    _bucket: Bucket

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket)
        self._debt: _Debt | None = None
        self._is_full = False  # the transport below takes no more

    def start(self, transport: StreamTransport) -> None:
        super().start(transport)
        if not self._closed:
            self._spend(1)  # waits for its turn: many short streams would exceed the rate

    def write(self, data: Any) -> None:
        if not (self._closed or self._lost):
            self.lower.write(data)
            self._spend(len(data))

    def _spend(self, size: int) -> None:
        if self._debt is not None:
            self._debt.backlog += size
        elif missing := size - self._bucket.take(size):
            self._debt = _Debt(self, missing)
            self._bucket.wait(self._debt)
            if not self._is_full:
                super().pause_writing()

    def debt_changed(self, debt: _Debt) -> None:
        """Called when the bucket has given tokens for written bytes."""
        if debt.backlog:
            self._bucket.wait(debt)
            return
        self._debt = None
        if not self._is_full:
            super().resume_writing()

    def throttled_bytes(self) -> int:
        return super().throttled_bytes() + (self._debt.backlog if self._debt is not None else 0)

    # The transport below takes no more, or more again.

    def pause_writing(self) -> None:
        self._is_full = True
        if self._debt is None:
            super().pause_writing()

    def resume_writing(self) -> None:
        self._is_full = False
        if self._debt is None:
            super().resume_writing()

    # Ends. The other streams pay what is left of the debt.

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        super().connection_lost(exc)

    def _drop(self) -> None:
        self._settle()
        super()._drop()

    def _settle(self) -> None:
        debt, self._debt = self._debt, None
        if debt is not None:
            self._bucket.leave(debt)
            self._bucket.charge(debt.backlog)
