"""The end of TCP connections, with a bare socket as the peer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

import pytest

from mtt.layers import linger
from tests.support.clock import Clock
from tests.support.transports import FakeTransport, Recorder, attach, raw_peer, turns


async def drain(sock: socket.socket) -> bytes:
    """All that comes until the end."""
    data = bytearray()
    while piece := await asyncio.get_running_loop().sock_recv(sock, 65536):
        data += piece
    return bytes(data)


def close(recorder: Recorder) -> None:
    recorder.transport.close()


# Ordinary ends.


async def test_unread_input_does_not_destroy_what_was_sent() -> None:
    data = random.Random(71).randbytes(500_000)
    recorder = Recorder()
    async with raw_peer(recorder, small=True) as sock:
        recorder.transport.pause_reading()
        await asyncio.get_running_loop().sock_sendall(sock, b"x" * 20_000)
        recorder.transport.write(data)
        close(recorder)
        # And input that still comes, while the peer is busy reading.
        received = bytearray()
        while len(received) < len(data):
            received += await asyncio.get_running_loop().sock_recv(sock, 20_000)
            await asyncio.get_running_loop().sock_sendall(sock, b"y")
        assert received == data
        assert await drain(sock) == b""
        sock.shutdown(socket.SHUT_WR)
        assert await recorder.ended() is None
        assert not recorder.data


async def test_descriptor_is_freed_when_the_peer_closes() -> None:
    recorder = Recorder()
    async with raw_peer(recorder) as sock:
        descriptor = recorder.transport.get_extra_info("socket")
        close(recorder)
        await turns()
        assert not recorder.lost
        assert await drain(sock) == b""
        sock.close()
        assert await recorder.ended() is None
        assert descriptor.fileno() < 0


async def test_a_peer_that_has_ended_is_not_waited_for() -> None:
    recorder = Recorder()
    async with raw_peer(recorder, small=True) as sock:
        sock.shutdown(socket.SHUT_WR)
        await recorder.at_eof()
        recorder.transport.write(b"z" * 300_000)
        close(recorder)
        assert len(await drain(sock)) == 300_000
        assert recorder.lost  # that was no FIN alone
        assert await recorder.ended() is None
        recorder.transport.abort()  # asyncio's own abort() would raise here


async def test_a_peer_that_ends_while_it_is_waited_for_gets_all() -> None:
    data = random.Random(74).randbytes(300_000)
    recorder = Recorder()
    async with raw_peer(recorder, small=True) as sock:
        recorder.transport.write(data)
        close(recorder)
        sock.shutdown(socket.SHUT_WR)
        await turns()
        assert not recorder.lost
        assert await drain(sock) == data
        assert recorder.lost  # that was no FIN alone
        assert recorder.error is None


@pytest.mark.parametrize("eof_seen", [False, True])
async def test_close_takes_over_the_transport(eof_seen: bool) -> None:
    recorder = Recorder()
    async with raw_peer(recorder, small=True) as sock:
        if eof_seen:
            sock.shutdown(socket.SHUT_WR)
            await recorder.at_eof()
        recorder.transport.write(bytes(500_000))
        close(recorder)
        if not eof_seen:
            sock.send(b"late")
        assert len(await drain(sock)) == 500_000
        sock.close()
        assert await recorder.ended() is None
        assert not recorder.data
        assert recorder.eof is eof_seen


async def test_close_reads_on_though_reading_was_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)  # which stands still: nothing but the peer's FIN ends this
    recorder = Recorder()
    async with raw_peer(recorder) as sock:
        recorder.transport.pause_reading()
        close(recorder)
        assert await drain(sock) == b""
        sock.close()
        await recorder.ended()


async def test_peer_that_has_ended_and_has_all_is_not_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linger, "Lingering", None)
    recorder = Recorder()
    async with raw_peer(recorder) as sock:
        sock.shutdown(socket.SHUT_WR)
        await recorder.at_eof()
        close(recorder)
        assert recorder.transport.is_closing()
        await recorder.ended()


async def test_closing_twice_or_after_the_end_of_writing() -> None:
    recorder = Recorder()
    async with raw_peer(recorder) as sock:
        recorder.transport.write(b"all")
        recorder.transport.write_eof()
        close(recorder)
        recorder.transport.close()
        assert await drain(sock) == b"all"
        sock.close()
        assert await recorder.ended() is None


async def test_close_of_a_connection_that_is_closing() -> None:
    recorder = Recorder()
    async with raw_peer(recorder) as sock:
        recorder.transport.drop()
        close(recorder)
        assert await recorder.ended() is None
        assert await drain(sock) == b""


async def test_close_of_a_connection_that_the_peer_has_reset() -> None:
    recorder = Recorder()
    async with raw_peer(recorder) as sock:
        recorder.transport.pause_reading()  # so that it goes unnoticed
        linger.reset_on_close(sock)
        sock.close()
        await turns()
        close(recorder)
        await recorder.ended()


# Ends that are not waited for.


async def test_a_peer_that_never_closes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    recorder = Recorder()
    async with raw_peer(recorder) as sock:
        recorder.transport.write(b"last")
        start = clock.now
        close(recorder)
        await clock.until(lambda: recorder.lost)
        assert recorder.error is None
        assert 0 <= clock.now - start - linger.LINGER_TIME <= 2 * linger.TICK
        assert await drain(sock) == b"last"


async def test_a_peer_that_sends_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "TICK", 0.01)
    monkeypatch.setattr(linger, "LINGER_TIME", 0.05)
    recorder = Recorder()
    async with raw_peer(recorder) as sock:
        close(recorder)

        async def send() -> None:
            while True:
                await asyncio.get_running_loop().sock_sendall(sock, b"more" * 1000)
                await asyncio.sleep(0.001)

        with pytest.raises(ConnectionError):
            await send()
        await recorder.ended()
        assert not recorder.data


async def test_a_peer_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linger, "TICK", 0.01)
    monkeypatch.setattr(linger, "STALL_TIME", 0.05)
    recorder = Recorder()
    async with raw_peer(recorder, small=True) as sock:
        recorder.transport.write(b"w" * 2_000_000)
        close(recorder)
        assert recorder.transport.unsent() > 1_000_000
        assert await recorder.ended() is None
        # What is missing must not look like an ordinary end.
        with pytest.raises(ConnectionResetError):
            await drain(sock)


async def test_a_peer_that_has_ended_and_does_not_read_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linger, "TICK", 0.01)
    monkeypatch.setattr(linger, "STALL_TIME", 0.05)
    recorder = Recorder()
    async with raw_peer(recorder, small=True) as sock:
        sock.shutdown(socket.SHUT_WR)
        await recorder.at_eof()
        recorder.transport.write(b"w" * 2_000_000)
        close(recorder)
        assert recorder.transport.get_write_buffer_size() > 0
        assert await recorder.ended() is None
        with pytest.raises(ConnectionResetError):
            await drain(sock)


async def test_rest_for_a_peer_that_has_ended_is_left_to_the_kernel() -> None:
    recorder = Recorder()
    async with raw_peer(recorder) as sock:
        sock.shutdown(socket.SHUT_WR)
        await recorder.at_eof()
        recorder.transport.write(b"all")
        close(recorder)
        await turns()
        assert recorder.lost  # it is not watched any more
        assert await drain(sock) == b"all"


async def test_a_slow_peer_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    recorder = Recorder()
    async with raw_peer(recorder, small=True) as sock:
        loop = asyncio.get_running_loop()
        data = random.Random(72).randbytes(1_200_000)
        recorder.transport.write(data)
        close(recorder)
        start = clock.now
        received = bytearray()
        while piece := await loop.sock_recv(sock, 16_384):
            received += piece
            await clock.passes(2)
        assert clock.now - start > 2 * (linger.STALL_TIME + linger.LINGER_TIME)
        assert received == data
        sock.close()
        assert await recorder.ended() is None


async def test_connection_reset_after_its_end_has_nothing_to_send() -> None:
    # The event loop does not watch it any more and leaves it open; the kernel keeps the bytes.
    recorder = Recorder()
    async with raw_peer(recorder) as sock:
        recorder.transport.write(b"unread")
        sock.shutdown(socket.SHUT_WR)
        await recorder.at_eof()
        linger.reset_on_close(sock)
        recorder.transport.pause_reading()
        sock.close()
        assert not recorder.lost
        assert recorder.transport.unsent() == 0


async def test_no_timer_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    lingering = linger.Lingering(FakeTransport(), Recorder())
    assert clock.pending
    lingering.connection_lost(None)
    assert not clock.pending


# Resets.


@pytest.mark.parametrize("pending", [0, 10, 2_000_000])
async def test_abort_is_a_reset_for_the_peer(pending: int) -> None:
    recorder = Recorder()
    async with raw_peer(recorder, small=True) as sock:
        recorder.transport.write(b"v" * pending)
        recorder.transport.abort()
        recorder.transport.abort()
        assert await recorder.ended() is None
        with pytest.raises(ConnectionResetError):
            await drain(sock)


async def test_lingering_connection_can_be_reset() -> None:
    recorder = Recorder()
    async with raw_peer(recorder, small=True) as sock:
        recorder.transport.write(b"u" * 2_000_000)
        close(recorder)
        await turns()
        recorder.transport.abort()
        await recorder.ended()
        recorder.transport.abort()
        with pytest.raises(ConnectionResetError):
            await drain(sock)


async def test_a_unix_socket_has_no_reset_and_needs_none() -> None:
    near, far = socket.socketpair()
    far.setblocking(False)
    with far:
        recorder = Recorder()
        transport = attach(near, recorder)
        transport.write(b"said")
        assert await asyncio.get_running_loop().sock_recv(far, 10) == b"said"
        transport.abort()
        await recorder.ended()
        assert await drain(far) == b""


# Cuts.


async def test_cut_delivers_everything_first() -> None:
    data = random.Random(73).randbytes(500_000)
    recorder = Recorder()
    async with raw_peer(recorder, small=True) as sock:
        recorder.transport.write(data)
        recorder.transport.cut()
        received = bytearray()
        with pytest.raises(ConnectionResetError):
            while piece := await asyncio.get_running_loop().sock_recv(sock, 20_000):
                received += piece
        assert received == data
        assert await recorder.ended() is None


@pytest.mark.parametrize("eof", [False, True])
async def test_cut_of_a_connection_with_nothing_unsent_is_immediate(eof: bool) -> None:
    recorder = Recorder()
    async with raw_peer(recorder) as sock:
        recorder.transport.write(b"x")
        if eof:
            recorder.transport.write_eof()
        while recorder.transport.unsent():
            await turns()
        recorder.transport.cut()
        await turns(2)
        assert recorder.lost
        assert sock.recv(10) == b"x"
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            sock.send(b"is anybody there")
            sock.send(b"?")


async def test_cut_gives_up_on_a_peer_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    recorder = Recorder()
    async with raw_peer(recorder, small=True):
        recorder.transport.write(bytes(500_000))
        recorder.transport.cut()
        start = clock.now
        await clock.until(lambda: recorder.lost)
        assert clock.now - start >= linger.STALL_TIME


async def test_one_unacknowledged_byte_is_unsent_before_and_behind_a_fin() -> None:
    recorder = Recorder()
    async with raw_peer(recorder, small=True) as sock:
        while not recorder.transport.get_write_buffer_size():
            recorder.transport.write(bytes(10_000))
        assert recorder.transport.unsent() > recorder.transport.get_write_buffer_size()
        while recorder.transport.unsent():
            with contextlib.suppress(BlockingIOError):
                sock.recv(100_000)
            await turns()
        recorder.transport.write_eof()
        await turns()
        assert not recorder.transport.unsent()
