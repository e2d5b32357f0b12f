"""A user's rate limit across workers: the hub has the bucket, and workers lease tokens from it.

A worker asks only for the tokens that its waiting connections need, so that no token is idle in one
worker while another one needs it. The bucket serves the waiting workers in turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mtt.tunnels.rate_limit import Bucket, RateLimiter


class LeasedBucket:
    """The worker's end: what `RateLimiter`s there take their tokens from.

    Args:
        ask: asks the hub for a number of tokens; they arrive in pieces by `given()`.
    """

    __slots__ = ("_ask", "_asked", "_tokens", "_waiting")

    def __init__(self, ask: Callable[[int], object]) -> None:
        self._ask = ask
        self._asked = 0  # tokens still to come
        self._tokens = 0  # left by rate limiters that stopped waiting meanwhile
        self._waiting: dict[RateLimiter, None] = {}  # in the order in which it is their turn

    def take(self, wanted: int) -> int:
        if self._waiting:
            return 0
        granted = min(wanted, self._tokens)
        self._tokens -= granted
        return granted

    def wait(self, limiter: RateLimiter) -> None:
        self._waiting[limiter] = None
        if self._tokens:
            # Not now: `limiter` is in the middle of something.
            asyncio.get_running_loop().call_soon(self.given, 0)
        else:
            self._ask_for_all()

    def leave(self, limiter: RateLimiter) -> None:
        self._waiting.pop(limiter, None)

    def given(self, tokens: int) -> None:
        """`tokens` have arrived: share them equally between the waiting rate limiters."""
        self._asked -= tokens
        self._tokens += tokens
        share = max(1, self._tokens // max(1, len(self._waiting)))
        for limiter in list(self._waiting):
            if not self._tokens:
                break
            if limiter not in self._waiting:  # it ended by what another one was given
                continue
            del self._waiting[limiter]
            self._tokens -= limiter.pass_on(min(share, self._tokens))
        self._ask_for_all()

    def _ask_for_all(self) -> None:
        waits = sum(limiter.backlog for limiter in self._waiting)
        missing = waits - self._tokens - self._asked
        if missing > 0:
            self._asked += missing
            self._ask(missing)


class Lessee:
    """The hub's end: one worker, as it waits at `bucket`.

    Args:
        give: hands tokens to the worker.
    """

    __slots__ = ("_bucket", "_give", "_wanted")

    def __init__(self, bucket: Bucket, give: Callable[[int], object]) -> None:
        self._bucket = bucket
        self._give = give
        self._wanted = 0

    def want(self, tokens: int) -> None:
        """The worker asks for more tokens."""
        self._wanted += tokens
        self.pass_on(self._bucket.take(self._wanted))

    def pass_on(self, limit: int) -> int:
        granted = min(limit, self._wanted)
        self._wanted -= granted
        if granted:
            self._give(granted)
        if self._wanted:
            self._bucket.wait(self)
        return granted

    def leave(self) -> None:
        """The worker is gone, or has no waiting connections any more."""
        self._wanted = 0
        self._bucket.leave(self)
