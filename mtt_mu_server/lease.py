"""A user's rate limit across workers: the hub has the bucket, and workers lease tokens from it.

A worker asks only for the tokens that its waiting connections need, so that no token is idle in one
worker while another one needs it. The bucket serves the waiting workers in turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mtt.tunnels.rate_limit import Bucket, TokenSource, Waiter


class LeasedBucket(TokenSource):
    """The worker's end: what `RateLimiter`s there take their tokens from.

    Args:
        ask: asks the hub for a number of tokens; they arrive in pieces by `given()`.
    """

    __slots__ = ("_ask", "_asked")

    def __init__(self, ask: Callable[[int], object]) -> None:
        super().__init__(0)  # tokens left by rate limiters that stopped waiting meanwhile
        self._ask = ask
        self._asked = 0  # tokens still to come

    def take(self, wanted: int) -> int:
        if self._waiting or not self._tokens:
            return 0
        granted = min(wanted, int(self._tokens))
        self._tokens -= granted
        return granted

    def wait(self, limiter: Waiter) -> None:
        self._waiting[limiter] = None
        if self._tokens:
            # Not now: `limiter` is in the middle of something.
            asyncio.get_running_loop().call_soon(self.given, 0)
        else:
            self._ask_for_all()

    def given(self, tokens: int) -> None:
        """`tokens` have arrived."""
        self._asked -= tokens
        self._tokens += tokens
        self._share()
        self._ask_for_all()

    def _ask_for_all(self) -> None:
        waits = sum(limiter.backlog for limiter in self._waiting)
        missing = waits - int(self._tokens) - self._asked
        if missing > 0:
            self._asked += missing
            self._ask(missing)


class Lessee:
    """The hub's end: one worker, as it waits at `bucket`.

    Args:
        give: hands tokens to the worker.
    """

    __slots__ = ("_bucket", "_give", "backlog")

    def __init__(self, bucket: Bucket, give: Callable[[int], object]) -> None:
        self._bucket = bucket
        self._give = give
        self.backlog = 0  # tokens that the worker waits for

    def want(self, tokens: int) -> None:
        """The worker asks for more tokens."""
        self.backlog += tokens
        self.pass_on(self._bucket.take(self.backlog))

    def pass_on(self, limit: int) -> int:
        granted = min(limit, self.backlog)
        self.backlog -= granted
        if granted:
            self._give(granted)
        if self.backlog:
            self._bucket.wait(self)
        return granted

    def leave(self) -> None:
        """The worker is gone, or has no waiting connections any more."""
        self.backlog = 0
        self._bucket.leave(self)
