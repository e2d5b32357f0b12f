"""How the transport at the bottom ends, on every event loop, with a bare socket as the peer."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
import weakref
from typing import Any

import pytest

from mtt.layers import linger
from mtt.layers.reads import READ_SIZE
from mtt.layers.tcp import HIGH_WATER, SocketTransport
from tests.support.bottom import (
    Told,
    at_end,
    exactly,
    narrow,
    on_every_loop,
    reports,
    reset,
)
from tests.support.transports import attach, raw_peer, tcp_sockets, turns

assert on_every_loop  # a fixture of every test here


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """The far end does not close; how long that is waited for is tested in test_linger.py."""
    monkeypatch.setattr(linger, "TICK", 0.02)
    monkeypatch.setattr(linger, "LINGER_TIME", 0.04)


async def test_close_sends_waiting_data_and_nothing_else(short_linger: None) -> None:
    recorder = Told()
    with narrow(recorder) as (near, transport, far):
        transport.write(bytes(HIGH_WATER + 1))
        transport.pause_reading()
        for _ in range(2):
            transport.close()
            transport.write(b"late")
            transport.write_eof()
            transport.resume_reading()
            transport.pause_reading()
            transport.resume_reading()
        assert transport.is_closing()
        assert not transport.is_reading()
        far.send(b"in vain")
        near.room = 10
        await exactly(far, 10)
        await turns()
        assert not recorder.lost
        near.room = 2 * HIGH_WATER
        await exactly(far, HIGH_WATER + 1 - 10)
        assert await recorder.ended() is None
        await turns(1)
        assert near.fileno() < 0
        with contextlib.suppress(ConnectionResetError):  # "in vain" was not read
            assert await at_end(far)
        assert not (recorder.data or recorder.resumes)


@pytest.mark.parametrize("closing", [False, True])
async def test_abort_drops_waiting_data(closing: bool) -> None:
    recorder = Told()
    with narrow(recorder) as (near, transport, far):
        data = bytes(HIGH_WATER + 1)
        before = sys.getrefcount(data)
        transport.write(data)
        if closing:
            transport.close()
        transport.abort()
        assert transport.is_closing()
        assert transport.get_write_buffer_size() == 0
        assert sys.getrefcount(data) == before
        assert not recorder.lost
        near.room = 100
        assert await recorder.ended() is None
        with pytest.raises(ConnectionResetError):
            await at_end(far)
        assert not recorder.resumes


# uvloop forgets a socket that has an error after the first event.


@pytest.mark.parametrize("count", [0, 10, READ_SIZE + 10])
async def test_reset_is_reported_after_received_data(count: int) -> None:
    near, far = socket.socketpair()  # TCP drops what is still under way
    near.setblocking(False)
    near.send(b"unread, so that close() resets")
    recorder = Told()
    recorder.begin = SocketTransport.pause_reading
    transport = attach(near, recorder)
    far.sendall(bytes(count))
    far.close()
    transport.resume_reading()
    try:
        assert isinstance(await recorder.ended(), ConnectionResetError)
    finally:
        transport.abort()
    assert len(recorder.data) == count
    assert not recorder.ends


async def test_reset_after_the_end_is_ignored() -> None:
    recorder = Told(stay=False)
    recorder.begin = SocketTransport.pause_reading
    async with raw_peer(recorder) as far:
        recorder.transport.write(b"unread, so that close() resets")
        await turns()
        far.send(b"all")
        far.shutdown(socket.SHUT_WR)
        far.close()
        recorder.transport.resume_reading()
        assert await recorder.at_eof() == b"all"
        assert await recorder.ended() is None


@pytest.mark.parametrize("call", ["write", "write_eof"])
async def test_reset_is_found_by_writing(call: str) -> None:
    recorder = Told()
    async with raw_peer(recorder) as far:
        recorder.transport.pause_reading()
        reset(far)
        await turns()
        getattr(recorder.transport, call)(*[b"x"] * (call == "write"))
        assert recorder.transport.is_closing()
        assert not recorder.lost
        assert isinstance(await recorder.ended(), OSError)


@pytest.mark.parametrize("fin", [False, True])
@pytest.mark.parametrize("paused", [False, True])
async def test_data_received_before_a_failed_write_come_first(paused: bool, fin: bool) -> None:
    data = bytes(range(256)) * 40
    recorder = Told()
    recorder.begin = SocketTransport.pause_reading
    async with raw_peer(recorder) as far:
        far.sendall(data)
        if fin:
            far.shutdown(socket.SHUT_WR)
            far.close()
        else:
            reset(far)
        while not recorder.pauses:
            recorder.transport.write(b"in vain")
            await asyncio.sleep(0)
        assert not recorder.transport.get_write_buffer_size()
        await turns(5)
        assert not recorder.lost
        assert not recorder.data
        if paused:
            recorder.transport.resume_reading()
            recorder.transport.pause_reading()
            await turns(5)
            assert not recorder.data
        recorder.transport.resume_reading()
        error = await recorder.ended()
        assert recorder.data == data
        assert isinstance(error, BrokenPipeError if fin else ConnectionResetError)
        assert recorder.ends == (1 if fin else 0)


async def test_close_after_a_failed_write_reports_the_failure() -> None:
    recorder = Told()
    recorder.begin = SocketTransport.pause_reading
    async with raw_peer(recorder) as far:
        far.sendall(b"unread")
        reset(far)
        while not recorder.pauses:
            recorder.transport.write(b"in vain")
            await asyncio.sleep(0)
        recorder.transport.close()
        assert isinstance(await recorder.ended(), ConnectionResetError)
        assert not recorder.data


async def test_end_of_a_silent_peer_comes_before_a_failed_write() -> None:
    recorder = Told()
    recorder.begin = SocketTransport.pause_reading
    async with raw_peer(recorder) as far:
        far.shutdown(socket.SHUT_WR)
        far.close()
        while not (recorder.pauses or recorder.lost):
            recorder.transport.write(b"in vain")
            await asyncio.sleep(0)
        recorder.transport.resume_reading()
        assert isinstance(await recorder.ended(), BrokenPipeError)
        assert recorder.ends == 1


class Server(Told):
    """Has no use for requests that it cannot answer."""

    reads_after_send_error = False  # type: ignore[assignment]


async def test_failed_write_ends_a_protocol_that_reads_no_more() -> None:
    recorder = Server()
    recorder.begin = SocketTransport.pause_reading
    async with raw_peer(recorder) as far:
        far.sendall(b"more requests")
        reset(far)
        while not recorder.lost:
            recorder.transport.write(b"in vain")
            await asyncio.sleep(0)
        assert isinstance(recorder.error, ConnectionResetError)
        assert not recorder.data


async def test_writing_to_a_closed_peer_is_a_broken_pipe() -> None:
    recorder = Told()
    async with raw_peer(recorder) as far:
        far.shutdown(socket.SHUT_WR)
        await recorder.at_eof()
        far.close()
        while not recorder.lost:
            recorder.transport.write(b"in vain")
            await asyncio.sleep(0.001)
        assert isinstance(recorder.error, BrokenPipeError)


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("closing", [False, True])
async def test_reset_drops_waiting_data(closing: bool, pieces: int) -> None:
    recorder = Told()
    with narrow(recorder) as (near, transport, far):
        transport.pause_reading()
        for _ in range(pieces):
            transport.write(bytes(HIGH_WATER))
        if closing:
            transport.close()
        near.room = 100
        reset(far)
        assert isinstance(await recorder.ended(), ConnectionResetError)
        assert transport.get_write_buffer_size() == 0
        assert not recorder.resumes


@pytest.mark.parametrize("name", ["pause_writing", "resume_writing"])
async def test_failure_in_pause_or_resume_ends_the_connection(name: str) -> None:
    recorder = Told(fails=name)
    with reports() as found, narrow(recorder) as (near, transport, _):
        transport.write(bytes(HIGH_WATER + 1))
        near.room = HIGH_WATER
        assert await recorder.ended() is recorder.bug
        assert found == [recorder.bug]
        transport.write(b"x")


@pytest.mark.parametrize("name", ["data_received", "eof_received", "connection_lost"])
async def test_failing_protocol_ends_the_connection(name: str) -> None:
    recorder = Told(fails=name)
    with reports() as found:
        async with raw_peer(recorder) as far:
            sock = recorder.transport.get_extra_info("socket")
            if name == "data_received":
                far.send(b"x")
            elif name == "eof_received":
                far.shutdown(socket.SHUT_WR)
            else:
                recorder.transport.drop()
            error = await recorder.ended()
            assert error is (None if name == "connection_lost" else recorder.bug)
            await turns()
            assert found == [recorder.bug]
            assert sock.fileno() < 0
            assert await at_end(far)


class Forgetful(Told):
    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(None)  # a kept exception keeps all that it passed through


@pytest.mark.parametrize("end", ["close", "abort", "reset", "exception"])
async def test_lost_transport_is_in_no_cycle(end: str, short_linger: None) -> None:
    class Transport(SocketTransport):
        __slots__ = ("__weakref__",)

    gc.disable()
    try:
        near, far = tcp_sockets()
        recorder = Forgetful(fails="data_received" if end == "exception" else "")
        transport = Transport(near, recorder)
        alive: list[weakref.ref[Any]] = [weakref.ref(transport), weakref.ref(recorder)]
        with reports() as found:
            if end == "reset":
                reset(far)
            elif end == "exception":
                far.send(b"x")
            else:
                getattr(transport, end)()
            await recorder.ended()
            await turns()
            found.clear()
        far.close()
        recorder.bug = RuntimeError()  # the old one came from the recorder
        del transport, recorder
        assert [ref() for ref in alive] == [None, None]
    finally:
        gc.enable()
