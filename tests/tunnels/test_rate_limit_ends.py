"""The rate limiter: ends and data that arrived while parked come after the backlog."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator

import pytest

from mtt.layers.parked import Parked, hand_over
from mtt.layers.tcp import SocketTransport
from mtt.tunnels import rate_limit
from mtt.tunnels.rate_limit import Bucket, RateLimiter
from tests.support.clock import Clock
from tests.support.transports import raw_peer
from tests.tunnels.limiters import Above, Below, stack


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
    layer.write(b"after the loss")
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
    assert (layer.throttled_bytes(), layer.unsent()) == (0, 0)
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
    assert not clock.pending


async def test_rate_limited_socket_is_read_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    limited: list[SocketTransport] = []
    monkeypatch.setattr(SocketTransport, "limit_reads", lambda self: limited.append(self))
    async with on_a_socket(Bucket(1000)) as (_, layer, _above):
        assert limited == [layer.lower]
