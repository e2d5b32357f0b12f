"""Rates over several workers: both ends of the lease in memory, with time that the test makes."""

from __future__ import annotations

import asyncio
import random

import pytest

from mtt.tunnels import rate_limit
from mtt.tunnels.rate_limit import BURST_TIME, TICK, Bucket
from mtt_mu_server.lease import LeasedBucket, Lessee
from tests.support.clock import Clock


class Waiter:
    """Stands for a rate limiter with a backlog."""

    def __init__(self, bucket: LeasedBucket, backlog: int) -> None:
        self._bucket = bucket
        self.backlog = backlog
        self.passed = 0

    def wait(self) -> None:
        self._bucket.wait(self)  # type: ignore[arg-type]

    def pass_on(self, limit: int) -> int:
        passed = min(limit, self.backlog)
        self.backlog -= passed
        self.passed += passed
        if self.backlog:
            self.wait()
        return passed


def worker(bucket: Bucket) -> LeasedBucket:
    """A worker whose messages arrive at once."""
    loop = asyncio.get_running_loop()
    lessee = Lessee(bucket, lambda tokens: loop.call_soon(leased.given, tokens))
    leased = LeasedBucket(lambda tokens: loop.call_soon(lessee.want, tokens))
    return leased


async def test_workers_share_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    rate, size = 1_000_000, 300_000
    bucket = Bucket(rate)
    workers = [worker(bucket) for _ in range(2)]
    busy = [Waiter(workers[0], size) for _ in range(3)]
    alone = Waiter(workers[1], size)
    start = clock.now
    for waiter in (*busy, alone):
        waiter.wait()
    await clock.until(lambda: not alone.backlog)
    # The first waiter had the burst. Then each worker had the same share.
    passed = sum(waiter.passed for waiter in busy) - rate * BURST_TIME
    assert abs(passed - size) <= rate * TICK
    await clock.until(lambda: not any(waiter.backlog for waiter in busy))
    # No token lies idle in one worker while the other wants it.
    ideal = (4 * size - rate * BURST_TIME) / rate
    assert ideal - TICK / 100 <= clock.now - start <= ideal + 2 * TICK


async def test_no_tokens_for_ended_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(1000)
    gone = Lessee(bucket, given.append)
    gone.want(10_000)
    assert given == [250]  # the burst
    gone.leave()
    other: list[int] = []
    Lessee(bucket, other.append).want(100)
    await clock.until(lambda: sum(other) == 100)
    assert given == [250]


async def test_unused_tokens_serve_the_next_connection() -> None:
    asked: list[int] = []
    bucket = LeasedBucket(asked.append)
    first = Waiter(bucket, 100)
    first.wait()
    bucket.leave(first)  # type: ignore[arg-type]
    bucket.given(100)
    assert bucket.take(30) == 30
    second = Waiter(bucket, 120)
    second.wait()
    await asyncio.sleep(0)
    assert second.passed == 70
    assert asked == [100, 50]
    assert bucket.take(1) == 0  # waiters come first
    bucket.given(50)
    assert (second.passed, second.backlog) == (120, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_only_requested_tokens_are_leased(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(seed)
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(10_000_000)
    workers = [worker(bucket) for _ in range(3)]
    waiters = [Waiter(dice.choice(workers), dice.randrange(1, 100_000)) for _ in range(20)]
    total = sum(waiter.backlog for waiter in waiters)
    for waiter in waiters:
        waiter.wait()
        if dice.random() < 0.3:
            waiter._bucket.leave(waiter)  # type: ignore[arg-type]
            await asyncio.sleep(0)
            waiter.wait()
    await clock.until(lambda: not any(waiter.backlog for waiter in waiters))
    await asyncio.sleep(0)
    assert sum(waiter.passed for waiter in waiters) == total
    assert all(each._asked == 0 for each in workers)
