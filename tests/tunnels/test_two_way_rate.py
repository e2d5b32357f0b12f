"""A rate limit for both directions of a stream together, mostly on a fake clock."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from mtt.layers.parked import Parked
from mtt.tunnels import rate_limit
from mtt.tunnels.rate_limit import BURST_TIME, TICK, Bucket
from mtt.tunnels.two_way_rate import TwoWayRateLimiter
from tests.support.clock import Clock
from tests.tunnels.limiters import Above, Below

RATE = 40_000
BURST = int(RATE * BURST_TIME)


class Writer(Above):
    """A protocol that writes as much as it may, and never while it is paused."""

    def __init__(self, piece: int = 2000) -> None:
        super().__init__()
        self.piece = piece
        self.writable = True
        self.written = 0
        self.transport: Any = None

    def pause_writing(self) -> None:
        assert self.writable
        self.writable = False

    def resume_writing(self) -> None:
        assert not self.writable
        self.writable = True

    def write_all(self) -> None:
        while self.writable:
            self.transport.write(bytes(self.piece))
            self.written += self.piece


def stack(bucket: Bucket, piece: int = 2000) -> tuple[Below, TwoWayRateLimiter, Writer]:
    below, layer, above = Below(), TwoWayRateLimiter(bucket), Writer(piece)
    above.transport = layer
    layer.start(below)
    layer.set_protocol(above)
    layer.resume_reading()
    return below, layer, above


async def test_written_data_passes_at_once_and_pauses_the_writer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch, rate_limit)
    below, layer, above = stack(Bucket(RATE))
    start = clock.now
    layer.write(bytes(BURST + 4000))
    assert len(below.sent) == BURST + 4000
    assert not above.writable
    assert 4000 <= layer.throttled_bytes() <= 4001
    await clock.until(lambda: above.writable)
    assert 4000 / RATE <= clock.now - start <= 4001 / RATE + 2 * TICK
    assert layer.throttled_bytes() == 0
    assert not clock.pending


async def test_rate_is_that_of_both_directions_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    below, layer, above = stack(Bucket(RATE))
    start = clock.now
    for _ in range(400):
        above.write_all()
        while below.reading:
            layer.data_received(bytes(2000))
        await clock.passes(TICK / 4)
        total = len(below.sent) + len(above.data)
        assert total <= RATE * (clock.now - start) + BURST + above.piece
    assert total >= RATE * (clock.now - start - TICK)
    assert 0.8 <= len(below.sent) / len(above.data) <= 1.25
    layer.abort()
    assert not clock.pending


async def test_streams_share_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(RATE)
    stacks = [stack(bucket) for _ in range(4)]
    for _ in range(400):
        for _, _, above in stacks:
            above.write_all()
        await clock.passes(TICK / 4)
    sizes = [len(below.sent) for below, _, _ in stacks]
    assert RATE * 2 * 0.95 <= sum(sizes) <= RATE * 2 + BURST + 4 * 2000
    assert max(sizes) - min(sizes) <= BURST + 2 * 2000
    for _, layer, _ in stacks:
        layer.abort()
    assert not clock.pending


async def test_many_short_streams_do_not_exceed_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(RATE)
    total = 0
    start = clock.now
    waiting: list[tuple[Below, TwoWayRateLimiter, Writer]] = []
    for _ in range(400):
        waiting.append(stack(bucket, piece=4000))
        for each in list(waiting):
            below, layer, above = each
            above.write_all()
            if below.sent:
                total += len(below.sent)
                layer.close()
                waiting.remove(each)
        await clock.passes(TICK / 4)
    for _, layer, _ in waiting:
        layer.abort()
    # All that was written too early delays what comes later.
    _, layer, above = stack(bucket)
    await clock.until(lambda: above.writable)
    elapsed = clock.now - start
    assert RATE * elapsed * 0.9 <= total <= RATE * elapsed + BURST
    layer.abort()
    assert not clock.pending


async def test_pause_of_the_stream_and_of_the_rate_count_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch, rate_limit)
    _, layer, above = stack(Bucket(RATE))
    layer.write(bytes(BURST + 4000))
    layer.pause_writing()
    assert not above.writable
    await clock.passes(1)
    assert not above.writable  # the tokens are there, but the stream is full
    layer.write(bytes(BURST + 4000))
    layer.resume_writing()
    assert not above.writable  # the stream has room, but the tokens are missing
    await clock.passes(1)
    assert above.writable
    layer.pause_writing()
    assert not above.writable
    layer.resume_writing()
    assert above.writable


async def test_protocol_that_comes_later_is_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(RATE)
    bucket.charge(BURST + 1000)
    below, layer, _ = stack(bucket)
    later = Writer()
    layer.set_protocol(later)
    assert not later.writable
    await clock.until(lambda: later.writable)
    assert below.sent == b""


async def test_others_pay_the_debt_of_a_stream_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(RATE)
    _, layer, above = stack(bucket)
    layer.write(bytes(BURST + RATE))  # a second's worth
    layer.close()
    start = clock.now
    _, second, other = stack(bucket)
    assert not other.writable
    await clock.until(lambda: other.writable)
    assert 1.0 <= clock.now - start <= 1.1
    assert not above.writable  # it got no call after its end
    second.abort()
    assert not clock.pending


@pytest.mark.parametrize("with_backlog", [False, True])
async def test_loss_of_the_stream_ends_the_waiting(
    monkeypatch: pytest.MonkeyPatch, with_backlog: bool
) -> None:
    clock = Clock(monkeypatch, rate_limit)
    _, layer, above = stack(Bucket(RATE))
    layer.write(bytes(BURST + 4000))
    above.writable = True  # below, a relay may be paused again for its own reasons
    if with_backlog:
        layer.data_received(bytes(4000))
    layer.connection_lost(None)
    await clock.passes(10)
    assert above.events == ["lost None"]
    assert len(above.data) == (4000 if with_backlog else 0)
    layer.write(b"ignored")
    assert not clock.pending


async def test_no_reference_cycle_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, rate_limit)
    below, layer, above = stack(Bucket(RATE))
    layer.write(bytes(BURST + 4000))
    layer.abort()
    layer.connection_lost(None)
    del above.transport, below.upper
    gc.collect()
    gc.disable()
    try:
        del layer, above
        assert not [each for each in gc.get_objects() if isinstance(each, TwoWayRateLimiter)]
    finally:
        gc.enable()


async def test_rate_that_rises_counts_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(1)
    _, layer, above = stack(bucket)
    bucket.charge(1_000_000)
    layer.write(b"x")
    bucket.rate = 1 << 40
    start = clock.now
    await clock.until(lambda: above.writable)
    assert clock.now - start <= 1.1


async def test_stream_that_died_while_parked() -> None:
    below = Below()
    parked = Parked()
    parked.connection_made(below)
    below.upper = parked
    parked.connection_lost(ConnectionResetError())
    layer = TwoWayRateLimiter(Bucket(RATE))
    layer.start(below)
    held = layer.get_protocol()
    assert isinstance(held, Parked)
    assert isinstance(held.error, ConnectionResetError)
    assert layer.is_closing()
