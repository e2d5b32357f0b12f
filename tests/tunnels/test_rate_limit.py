"""Rate limits: the bucket and the layer in memory, mostly on a fake clock.

Rate-limited tunnels are in tests.mu.test_server_limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.layers.tcp import SocketTransport
from mtt.tunnels import rate_limit
from mtt.tunnels.rate_limit import BURST_TIME, TICK, Bucket, RateLimiter
from tests.support.clock import Clock
from tests.support.transports import raw_peer

# Largest rounding error of sums of fractions of a second.
INEXACT = 1e-6


class Below(StreamTransport):
    """The transport below a rate limiter."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = False
        self.calls: list[str] = []
        self.sent = b""
        self.upper: Any = None

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def unsent(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        self.sent += data

    def half_closes(self) -> bool | None:
        return True

    def write_eof(self) -> None:
        self.calls.append("eof")

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")


class Above(StreamProtocol):
    """The protocol above a rate limiter."""

    def __init__(self) -> None:
        self.data = b""
        self.events: list[str] = []
        self.changed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.changed.set()

    def eof_received(self) -> bool:
        self.events.append("eof")
        self.changed.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(f"lost {exc}")
        self.changed.set()

    def connection_made(self, transport: Any) -> None:
        pass

    async def has(self, size: int) -> None:
        while len(self.data) < size:
            self.changed.clear()
            await self.changed.wait()

    async def had(self, *events: str) -> None:
        while self.events != list(events):
            self.changed.clear()
            await self.changed.wait()


def stack(bucket: Bucket) -> tuple[Below, RateLimiter, Above]:
    below, layer, above = Below(), RateLimiter(bucket), Above()
    layer.start(below)
    layer.set_protocol(above)
    layer.resume_reading()
    assert below.reading
    return below, layer, above


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
    assert (layer.held_back(), layer.unsent()) == (256 * 80 - burst, 0)
    await clock.until(lambda: len(above.data) == 256 * 80)
    ideal = (256 * 80 - burst) / 40_000
    assert ideal - INEXACT <= clock.now - start <= ideal + TICK
    assert above.data == bytes(range(256)) * 80
    assert below.reading
    assert bucket._timer is None


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
    assert not bucket._waiting
    assert bucket._timer is None


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


async def test_end_comes_after_the_backlog() -> None:
    _, layer, above = stack(Bucket(20_000))
    layer.data_received(bytes(6000))
    assert layer.eof_received()
    assert above.events == []
    await above.had("eof")
    assert len(above.data) == 6000


async def test_loss_after_the_end_comes_after_the_backlog() -> None:
    below, layer, above = stack(Bucket(20_000))
    layer.data_received(bytes(6000))
    layer.eof_received()
    layer.connection_lost(OSError("gone"))
    layer.write(b"nobody is there")
    layer.write_eof()
    assert (below.sent, below.calls) == (b"", [])
    assert above.events == []
    await above.had("eof", "lost gone")
    assert len(above.data) == 6000


async def test_loss_before_the_end_comes_after_the_backlog() -> None:
    bucket = Bucket(20_000)
    _, layer, above = stack(bucket)
    layer.data_received(bytes(6000))
    layer.connection_lost(OSError("gone"))
    assert above.events == []
    await above.had("lost gone")
    assert len(above.data) == 6000
    assert not bucket._waiting


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_close_and_abort_from_above(how: str) -> None:
    bucket = Bucket(20_000)
    below, layer, above = stack(bucket)
    layer.data_received(bytes(6000))
    size = len(above.data)
    getattr(layer, how)()
    layer.data_received(b"late")
    assert below.calls == [how]
    assert layer.is_closing()
    assert not bucket._waiting
    assert (layer.held_back(), layer.unsent()) == (0, 0)
    layer.connection_lost(None)
    assert above.events == ["lost None"]
    assert len(above.data) == size


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_close_and_abort_after_the_loss(how: str) -> None:
    below, layer, above = stack(Bucket(20_000))
    layer.data_received(bytes(6000))
    layer.eof_received()
    layer.connection_lost(None)
    getattr(layer, how)()
    await above.had("lost None")
    assert below.calls == []


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


def held_below(early: bytes, *, eof: bool, error: Exception | None = None) -> Below:
    """A transport that received data, and perhaps an end, while it was parked."""
    below, parked = Below(), Parked()
    parked.connection_made(below)
    if early:
        parked.data_received(early)
    if eof:
        parked.eof_received()
    below.upper = parked
    if error is not None:
        parked.connection_lost(error)
    return below


async def test_early_end_comes_after_the_backlog() -> None:
    above, layer = Above(), RateLimiter(Bucket(20_000))
    layer.start(held_below(bytes(6000), eof=True))
    hand_over(layer, above)
    await asyncio.sleep(0)
    assert (len(above.data), above.events) == (0, [])
    await above.had("eof")
    assert len(above.data) == 6000
    layer.abort()


async def test_early_end_without_data() -> None:
    above, layer = Above(), RateLimiter(Bucket(20_000))
    layer.start(held_below(b"", eof=True))
    hand_over(layer, above)
    assert above.events == ["eof"]
    assert not layer.is_closing()
    layer.abort()


async def test_early_loss_comes_after_the_backlog() -> None:
    above, layer = Above(), RateLimiter(Bucket(20_000))
    below = held_below(bytes(6000), eof=True, error=OSError("gone"))
    layer.start(below)
    hand_over(layer, above)
    assert not layer.is_closing()
    assert below.upper is not layer  # which would be a cycle of references
    await above.had("eof", "lost gone")
    assert len(above.data) == 6000
    assert layer.is_closing()


@pytest.mark.parametrize(("early", "eof"), [(b"", False), (b"", True), (b"cut", False)])
async def test_early_loss_without_a_backlog(early: bytes, eof: bool) -> None:
    bucket = Bucket(1)
    layer = RateLimiter(bucket)
    layer.start(held_below(early, eof=eof, error=OSError("gone")))
    parked = layer.get_protocol()
    assert isinstance(parked, Parked)
    assert (str(parked.error), parked.eof, parked.early) == ("gone", eof, early)
    assert layer.is_closing()
    assert not bucket._waiting


@contextlib.asynccontextmanager
async def on_a_socket(bucket: Bucket) -> AsyncIterator[tuple[socket.socket, RateLimiter, Above]]:
    """A rate limiter above a real connection, and the peer's socket."""
    parked = Parked()
    async with raw_peer(parked) as sock:
        assert parked.transport is not None
        layer, above = RateLimiter(bucket), Above()
        layer.start(parked.transport)
        layer.set_protocol(above)
        layer.resume_reading()
        yield sock, layer, above
        layer.abort()


async def leave(sock: socket.socket, data: bytes) -> None:
    """Send `data`, end, and close the socket."""
    await asyncio.get_running_loop().sock_sendall(sock, data)
    sock.shutdown(socket.SHUT_WR)
    sock.close()


async def test_data_before_a_close_is_limited_and_delivered() -> None:
    data = random.Random(7).randbytes(30_000)
    bucket = Bucket(100_000)
    async with on_a_socket(bucket) as (sock, layer, above):
        layer.data_received(bytes(int(bucket.burst)))  # spends all tokens
        above.data = b""
        layer.data_received(data[:100])  # waits, so the rest is not read
        await leave(sock, data[100:])
        while not layer.lower.is_closing():  # EPIPE: their FIN came before their RST
            layer.write(b"in vain")
            await asyncio.sleep(0.001)
        await above.had("eof", "lost [Errno 32] Broken pipe")
        assert above.data == data


async def test_backlog_is_dropped_for_a_closed_reader() -> None:
    bucket = Bucket(100_000)
    async with on_a_socket(bucket) as (sock, layer, above):
        layer.pause_reading()
        await leave(sock, b"unread")
        layer.close()
        layer.connection_lost(BrokenPipeError())
        assert above.events == ["lost "]
        assert layer.backlog == 0
        assert not bucket._waiting
        assert above.data == b""


async def test_reset_comes_after_the_backlog() -> None:
    bucket = Bucket(100_000)
    async with on_a_socket(bucket) as (sock, layer, above):
        size = int(bucket.burst) + 100
        layer.data_received(bytes(size))
        layer.connection_lost(ConnectionResetError("reset"))
        assert above.events == []
        await above.had("lost reset")
        assert len(above.data) == size
        assert layer.backlog == 0
        assert not bucket._waiting
        assert sock.fileno() >= 0


async def test_written_data_is_not_limited() -> None:
    below, layer, _ = stack(Bucket(1))
    layer.write(bytes(100_000))
    assert layer.can_write_eof()
    layer.write_eof()
    assert (len(below.sent), below.calls) == (100_000, ["eof"])


# Calls from inside others.


async def test_paused_rate_limiter_passes_nothing() -> None:
    below, layer, above = Below(), RateLimiter(Bucket(20_000)), Above()
    layer.start(below)
    layer.set_protocol(above)
    layer.data_received(b"early")
    assert (above.data, layer.backlog) == (b"", 5)
    layer.resume_reading()
    await above.has(5)
    layer.abort()


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("waits", [False, True])
async def test_reader_that_closes_during_delivery(
    waits: bool, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, rate_limit)
    bucket = Bucket(20_000)
    below, layer, above = stack(bucket)
    if waits:  # the last piece is from the backlog, followed by the end
        layer.data_received(bytes(5100))
        layer.eof_received()
    given = len(above.data)
    take = above.data_received

    def end(data: bytes) -> None:
        take(data)
        getattr(layer, how)()

    above.data_received = end  # type: ignore[method-assign]
    if waits:
        await clock.passes(1)
        assert len(above.data) == 5100
    else:
        layer.data_received(bytes(6000))
        assert len(above.data) == int(bucket.burst)
    assert len(above.data) > given
    assert above.events == []
    assert below.calls == [how]
    assert layer.backlog == 0
    assert not bucket._waiting


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
    assert not bucket._waiting


async def test_rate_limited_socket_is_read_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    limited: list[SocketTransport] = []
    monkeypatch.setattr(SocketTransport, "limit_reads", lambda self: limited.append(self))
    async with on_a_socket(Bucket(1000)) as (_, layer, _above):
        assert limited == [layer.lower]
