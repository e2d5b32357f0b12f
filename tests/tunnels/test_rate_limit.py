"""Rate limits: the bucket and the layer in memory, mostly on a fake clock.

Rate-limited tunnels are in tests.mu.test_server_limits.
"""

from __future__ import annotations

import asyncio

import pytest

from mtt.layers.parked import Parked
from mtt.tunnels import rate_limit
from mtt.tunnels.rate_limit import BURST_TIME, TICK, Bucket, RateLimiter
from tests.support.clock import Clock
from tests.tunnels.limiters import Above, Below, stack

# Largest rounding error of sums of fractions of a second.
INEXACT = 1e-6


async def test_data_within_tokens_passes_at_once() -> None:
    below, layer, above = stack(Bucket(4000))
    layer.data_received(b"x" * 1000)
    assert (len(above.data), below.reading) == (1000, True)


async def test_excess_waits_and_pauses_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(40_000)
    below, layer, above = stack(bucket)
    start = clock.now
    layer.data_received(bytes(range(256)) * 80)
    burst = int(40_000 * BURST_TIME)
    assert len(above.data) == burst
    assert not below.reading
    assert (layer.throttled_bytes(), layer.unsent()) == (256 * 80 - burst, 0)
    assert layer.is_throttled
    layer.pause_reading()  # now the reader is the reason
    assert not layer.is_throttled
    layer.resume_reading()
    await clock.until(lambda: len(above.data) == 256 * 80)
    ideal = (256 * 80 - burst) / 40_000
    assert ideal - INEXACT <= clock.now - start <= ideal + TICK
    assert above.data == bytes(range(256)) * 80
    assert below.reading
    assert not (layer.is_throttled or clock.pending)


async def test_rate_holds_in_real_time() -> None:
    """The other tests use a fake clock."""
    below, layer, above = stack(Bucket(100_000))
    loop = asyncio.get_running_loop()
    start = loop.time()
    layer.data_received(bytes(30_000))
    await above.has(30_000)
    assert loop.time() - start >= (30_000 - 100_000 * BURST_TIME) / 100_000 * 0.99
    assert below.reading


async def test_throughput_matches_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(50_000)
    below, layer, above = stack(bucket)
    given = 0
    end = clock.now + 1.0
    while clock.now < end:
        while below.reading:
            layer.data_received(bytes(3000))
            given += 3000
        await clock.passes(TICK / 4)
        assert len(above.data) <= 50_000 * (clock.now - end + 1.0) + bucket.burst + 1
    assert len(above.data) >= 50_000 * (1.0 - TICK) + bucket.burst - 1
    assert given - len(above.data) <= 3000
    layer.abort()


async def test_rate_limiters_share_a_bucket_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(40_000)
    stacks = [stack(bucket) for _ in range(4)]
    for _, layer, _ in stacks:
        layer.data_received(bytes(20_000))
    burst = int(bucket.burst)
    sizes: list[int] = []
    for _ in range(20):
        await clock.passes(0.02)
        sizes = [len(above.data) for _, _, above in stacks]
        sizes[0] -= burst  # which the first one took
        # At any time: the tokens of a turn are shared, not given to one after another.
        assert max(sizes) - min(sizes) <= 40_000 * TICK / len(stacks)
    assert 40_000 * (0.4 - 2 * TICK) <= sum(sizes) <= 40_000 * 0.4 + 1
    for _, layer, _ in stacks:
        layer.abort()
    assert not clock.pending


async def test_rate_of_one_byte_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(1)
    _, layer, above = stack(bucket)
    layer.data_received(b"abc")
    assert above.data == b"a"
    served = bucket._timer
    await clock.passes(0.9)
    assert above.data == b"a"
    assert bucket._timer is served  # not a busy loop
    await clock.passes(0.2)
    assert above.data == b"ab"
    await clock.passes(1.0)
    assert above.data == b"abc"


async def test_paused_rate_limiter_does_not_block_others() -> None:
    bucket = Bucket(40_000)
    _, first, paused = stack(bucket)
    _, second, above = stack(bucket)
    first.data_received(bytes(12_000))
    first.pause_reading()
    size = len(paused.data)
    second.data_received(bytes(4000))
    await above.has(4000)
    assert len(paused.data) == size
    first.resume_reading()
    await paused.has(12_000)


async def test_early_data_is_delivered() -> None:
    below, layer, above = Below(), RateLimiter(Bucket(4000)), Above()
    held = Parked()
    held.early = b"early"
    below.upper = held
    layer.start(below)
    layer.set_protocol(above)
    layer.resume_reading()
    await above.has(5)
    assert above.data == b"early"
    await asyncio.sleep(0)
    assert below.reading


async def test_written_data_is_not_limited() -> None:
    below, layer, _ = stack(Bucket(1))
    layer.write(bytes(100_000))
    assert layer.can_write_eof()
    layer.write_eof()
    assert (len(below.sent), below.calls) == (100_000, ["eof"])


async def test_paused_rate_limiter_passes_nothing() -> None:
    below, layer, above = Below(), RateLimiter(Bucket(20_000)), Above()
    layer.start(below)
    layer.set_protocol(above)
    layer.data_received(b"early")
    assert (above.data, layer.backlog) == (b"", 5)
    layer.resume_reading()
    await above.has(5)
    layer.abort()


async def test_delivery_that_ends_another_rate_limiter(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(20_000)
    _, first, one = stack(bucket)
    _, second, other = stack(bucket)
    first.data_received(bytes(6000))
    second.data_received(bytes(6000))
    take = one.data_received

    def end(data: bytes) -> None:
        take(data)
        second.abort()

    one.data_received = end  # type: ignore[method-assign]
    await clock.passes(1)
    assert len(one.data) == 6000
    assert other.data == b""
    assert not clock.pending
