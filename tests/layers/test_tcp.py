"""The transport at the bottom, on every event loop, with a bare socket as the peer."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mtt.layers import pieces, reads
from mtt.layers.pieces import FULL_PIECE, MAX_PIECES
from mtt.layers.reads import LARGE_READ, READ_SIZE
from mtt.layers.tcp import HIGH_WATER, LOW_WATER, SocketTransport
from tests.support.bottom import (
    Told,
    at_end,
    exactly,
    mutable_view,
    narrow,
    on_every_loop,
    reports,
)
from tests.support.transports import attach, raw_peer, tcp_sockets, turns

assert on_every_loop  # a fixture of every test here

# The beginning.


async def test_connection_made_runs_inside_the_constructor() -> None:
    near, far = tcp_sockets()
    recorder = Told()
    transport = SocketTransport(near, recorder)
    assert recorder.transport is transport
    assert transport.get_protocol() is recorder
    far.close()
    assert await recorder.at_eof() == b""
    transport.abort()


@pytest.mark.parametrize("end", ["abort", "close", "exception"])
async def test_connection_may_end_inside_connection_made(end: str) -> None:
    recorder = Told(fails="connection_made" if end == "exception" else "")
    recorder.begin = getattr(SocketTransport, end, recorder.begin)
    reason = recorder.bug if end == "exception" else None
    near, far = tcp_sockets()
    with far, reports() as found:
        transport = SocketTransport(near, recorder, ("192.0.2.1", 5))
        assert transport.is_closing()
        assert not recorder.lost
        if end == "close":
            assert await at_end(far)
            far.shutdown(socket.SHUT_WR)
        assert await recorder.ended() is reason
        await turns(1)
        assert near.fileno() < 0
        if end == "abort":
            with pytest.raises(ConnectionResetError):
                await at_end(far)
        else:
            assert await at_end(far)
    assert found == [reason] * (end == "exception")
    assert transport.get_extra_info("socket") is near
    assert transport.get_extra_info("peername") == ("192.0.2.1", 5)
    assert transport.get_extra_info("sockname", "gone") == "gone"


async def test_ended_transport_leaves_a_reused_descriptor_alone() -> None:
    near, far = tcp_sockets()
    other, there = tcp_sockets()
    number = near.fileno()
    stale = attach(near, Told())
    heir = Told()

    def take_over() -> None:
        assert near.fileno() < 0
        os.dup2(other.fileno(), number)
        attach(socket.socket(fileno=number), heir)

    stale.pause_reading()
    stale.abort()
    asyncio.get_running_loop().call_soon(take_over)
    await heir.opened()
    with far, other, there:
        for _ in range(2):
            stale.write(b"late")
            stale.write_eof()
            stale.pause_reading()
            stale.resume_reading()
            stale.close()
            stale.abort()
            await turns(3)
        heir.transport.write(b"there")
        assert await exactly(there, 5) == b"there"
        there.send(b"back")
        assert await heir.received(4) == b"back"
        heir.transport.abort()


# Reading.


@pytest.mark.parametrize("paused", [False, True])
async def test_end_of_data_is_reported_once(paused: bool) -> None:
    recorder = Told()
    if paused:
        recorder.begin = SocketTransport.pause_reading
    async with raw_peer(recorder) as far:
        far.send(b"all")
        far.shutdown(socket.SHUT_WR)
        await turns()
        assert (recorder.ends, len(recorder.data)) == ((0, 0) if paused else (1, 3))
        recorder.transport.resume_reading()
        assert await recorder.at_eof() == b"all"
        recorder.transport.pause_reading()
        recorder.transport.resume_reading()
        await turns()
        assert recorder.ends == 1
        recorder.transport.write(b"answer")
        assert await exactly(far, 6) == b"answer"
        assert not recorder.lost


async def test_protocol_that_does_not_stay_closes() -> None:
    recorder = Told(stay=False)
    with narrow(recorder) as (near, transport, far):
        transport.write(b"last")
        far.shutdown(socket.SHUT_WR)
        await recorder.at_eof()
        await turns()
        assert transport.is_closing()
        assert not recorder.lost
        near.room = 100
        assert await exactly(far, 4) == b"last"
        assert await recorder.ended() is None


async def test_protocol_may_change_amid_a_read() -> None:
    first, second = Told(), Told()
    async with raw_peer(first) as far:
        second.connection_made(first.transport)
        first.on_data = lambda _: first.transport.set_protocol(second)
        far.send(b"one")
        await first.received(3)
        assert first.transport.get_protocol() is second
        far.send(b"two")
        await second.received(3)
        far.shutdown(socket.SHUT_WR)
        await second.at_eof()
        first.transport.abort()
        await second.ended()
    assert [bytes(first.data), bytes(second.data)] == [b"one", b"two"]
    assert not (first.ends or first.lost)


# Writing.


@pytest.mark.parametrize("room", [0, 3, 100])
@pytest.mark.parametrize("kind", [bytes, bytearray, mutable_view])
async def test_written_memory_is_not_kept(
    kind: Callable[[bytes], Any], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "SMALL_PIECE", 1)
    recorder = Told()
    with narrow(recorder) as (near, transport, far):
        near.room = room
        first, second = kind(b"first and "), kind(b"second")
        before = sys.getrefcount(first)
        transport.write(first)
        assert transport.get_write_buffer_size() == max(0, 10 - room)
        # What cannot change is not copied, and what has been sent is not kept.
        assert (sys.getrefcount(first) > before) is (kind is bytes and room < 10)
        near.room = 100
        transport.write(second)
        for data in (first, second):
            if kind is not bytes:
                data[:] = b"?" * len(data)
        assert await exactly(far, 16) == b"first and second"
        assert transport.get_write_buffer_size() == 0


@pytest.mark.parametrize("gathers", [True, False])
@pytest.mark.parametrize("small", [1, 11])
async def test_many_pieces_arrive_in_order(
    gathers: bool, small: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_GATHERS", gathers)
    monkeypatch.setattr(pieces, "SMALL_PIECE", small)
    rng = random.Random(90)
    written = [rng.randbytes(rng.choice((0, 1, 10, 500))) for _ in range(10 * MAX_PIECES)]
    data = b"".join(written)
    recorder = Told()
    with narrow(recorder) as (near, transport, far):
        for piece in written:
            transport.write(rng.choice((bytes, bytearray))(piece))
        received = b""
        while len(received) < len(data):
            near.room = rng.choice((1, 20, 511, 3000))
            received += await exactly(far, min(near.room, len(data) - len(received)))
        assert received == data
        assert transport.get_write_buffer_size() == 0
    assert max(near.gathered, default=0) == (MAX_PIECES if gathers else 0)


async def test_small_pieces_are_put_together() -> None:
    rng = random.Random(91)
    written = [rng.randbytes(rng.randrange(60)) for _ in range(10_000)]
    data = b"".join(written)
    recorder = Told()
    with narrow(recorder) as (near, transport, far):
        for piece in written:
            buffer = bytearray(piece)
            transport.write(memoryview(buffer))
            buffer[:] = b"?" * len(buffer)
        assert transport.get_write_buffer_size() == len(data)
        assert len(transport._pieces) == -(-len(data) // FULL_PIECE)
        received = b""
        while len(received) < len(data):
            near.room = rng.choice((1, 5000, 100_000))
            received += await exactly(far, min(near.room, len(data) - len(received)))
            if len(received) < 200_000:  # also behind a piece of which a part has been sent
                transport.write(b"!")
                data += b"!"
        assert received == data


async def test_writer_pauses_and_resumes_at_the_water_marks() -> None:
    recorder = Told()
    with narrow(recorder) as (near, transport, far):
        transport.write(bytes(HIGH_WATER))
        assert recorder.writable
        for _ in range(3):
            transport.write(b"x")
            assert (recorder.writable, recorder.pauses) == (False, 1)
        near.room = HIGH_WATER + 2 - LOW_WATER
        await exactly(far, near.room)
        await turns()
        assert transport.get_write_buffer_size() == LOW_WATER + 1
        assert not recorder.resumes
        for _ in range(3):
            near.room = 1
            await exactly(far, 1)
            await turns()
            assert (recorder.writable, recorder.resumes) == (True, 1)
        transport.write(bytes(HIGH_WATER))
        assert recorder.pauses == 2


async def test_write_eof_follows_waiting_data() -> None:
    recorder = Told()
    with narrow(recorder) as (near, transport, far):
        transport.write(b"all")
        transport.write_eof()
        transport.write(b"late")
        await turns()
        near.room = 100
        assert await exactly(far, 3) == b"all"
        assert await at_end(far)
        far.send(b"answer")
        assert await recorder.received(6) == b"answer"
        assert not transport.is_closing()


async def test_limit_reads_keeps_reads_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "QUICK_TIME", float("inf"))
    recorder = Told()
    async with raw_peer(recorder):
        for limit in (False, True):
            if limit:
                recorder.transport.limit_reads()
            taken = recorder.transport._read_sizer
            for _ in range(2 * reads.QUICK_READS):
                taken.update(READ_SIZE)
            assert len(taken.buffer) == (READ_SIZE if limit else LARGE_READ)
