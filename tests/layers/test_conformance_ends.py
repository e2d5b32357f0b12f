"""How connections end by the transport contract, on every stack of layers."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from tests.support.certs import Certs
from tests.support.stacks import End, Stack
from tests.support.transports import turns


async def test_close_while_reading_is_paused_delivers(stack: Stack, certs: Certs) -> None:
    """close() of a transport that does not read delivers what was written, and sees the end."""
    reply = random.Random(11).randbytes(500_000)
    async with stack.open(certs, small=True) as (client, server):
        before = bytes(client.recorder.data)
        client.transport.pause_reading()
        await server.clog(stack.capacity)
        client.transport.write(reply)
        client.close()
        if stack.layers:  # a socket belongs to `linger` now
            client.transport.pause_reading()
            assert client.transport.is_closing()
            client.transport.resume_reading()
            client.transport.pause_reading()
        assert await server.recorder.at_eof() == reply
        server.close()
        assert await client.recorder.ended() is None
        assert client.recorder.data == before


async def test_close_delivers_a_large_write(stack: Stack, certs: Certs) -> None:
    """close() right behind a large write delivers all of it, then an ordinary end."""
    data = random.Random(8).randbytes(700_000)
    async with stack.open(certs, small=True) as (client, server):
        client.transport.write(data)
        client.close()
        if stack.layers:  # a socket has only said its FIN
            assert client.transport.is_closing()
        client.transport.write(b"late")
        await server.recorder.at_eof()
        assert server.recorder.data == data
        assert server.recorder.eof
        server.close()
        assert await client.recorder.ended() is None
        assert await server.recorder.ended() is None


async def test_close_with_unread_input_delivers(stack: Stack, certs: Certs) -> None:
    """Unread input does not destroy what was sent before close()."""
    data = random.Random(9).randbytes(300_000)
    async with stack.open(certs, small=True) as (client, server):
        client.transport.pause_reading()
        server.transport.pause_reading()
        server.transport.write(b"x" * 20_000)  # stays unread
        await turns()
        client.transport.write(data)
        client.close()
        await turns(100)
        server.transport.resume_reading()
        await server.recorder.at_eof()
        assert server.recorder.data == data
        assert server.recorder.eof


async def test_close_delivers_once_the_peer_reads_again(stack: Stack, certs: Certs) -> None:
    """close() towards a peer that does not read now delivers when it reads again."""
    async with stack.open(certs, small=True) as (client, server):
        server.transport.pause_reading()
        written = await client.clog(stack.capacity)
        client.close()
        await turns(100)
        server.transport.resume_reading()
        await server.recorder.at_eof()
        assert server.recorder.data == written
        assert server.recorder.eof


async def test_received_data_arrive_though_writing_fails(stack: Stack, certs: Certs) -> None:
    """What the peer sent before it closed arrives, and as data, though our writing fails first."""
    data = random.Random(12).randbytes(5000)
    async with stack.open(certs) as (client, server):
        await turns()
        before = bytes(server.recorder.data)
        server.tcp.pause_reading()
        client.transport.write(data)
        client.tcp.close()
        await turns()
        for _ in range(10):
            server.transport.write(b"in vain")
            time.sleep(0.002)
        server.tcp.resume_reading()
        recorder = server.recorder
        await recorder.until(lambda: recorder.eof or recorder.lost)
        assert recorder.data == before + data


async def test_abort_ends_at_once_as_a_failure(stack: Stack, certs: Certs) -> None:
    """abort() ends at once, and the peer can tell it from an ordinary end."""
    async with stack.open(certs, small=True) as (client, server):
        client.transport.write(b"begun")
        await server.recorder.received(5)
        client.abort()
        assert client.transport.is_closing()
        client.abort()
        assert await client.recorder.ended() is None
        if stack.knows_failure:
            assert await server.recorder.ended() is not None
            assert not server.recorder.eof
            assert server.transport.is_closing()
        else:
            await server.recorder.at_eof()


async def test_abort_does_not_wait_for_a_peer_that_does_not_read(
    stack: Stack, certs: Certs
) -> None:
    """abort() does not wait for a peer that does not read."""
    async with stack.open(certs, small=True) as (client, server):
        server.transport.pause_reading()
        await client.clog(stack.capacity)
        client.abort()
        assert await client.recorder.ended() is None
        server.transport.resume_reading()
        if stack.knows_failure:
            assert await server.recorder.ended() is not None
            assert not server.recorder.eof


async def test_loss_is_reported_to_a_reader_that_pauses(stack: Stack, certs: Certs) -> None:
    """A reader that pauses at each piece, the last one too, hears of the loss behind it."""
    for how in (lambda end: end.transport.abort(), lambda end: end.tcp.abort()):
        async with stack.open(certs) as (client, server):
            transport = server.transport
            transport.pause_reading()
            client.transport.write(bytes(50_000))
            await turns()
            how(client)
            await turns()

            def pause(_piece: bytes, transport: Any = transport) -> None:
                transport.pause_reading()
                asyncio.get_running_loop().call_later(0.001, transport.resume_reading)

            server.recorder.on_data = pause
            transport.resume_reading()
            recorder = server.recorder
            await recorder.until(lambda: recorder.lost or recorder.eof)  # noqa: B023
            assert recorder.lost or not stack.knows_failure


async def test_write_eof_ends_one_direction(stack: Stack, certs: Certs) -> None:
    """Where there is half-close, each direction ends by itself; else the end is that of both."""
    data = random.Random(10).randbytes(400_000)
    async with stack.open(certs, small=True) as (client, server):
        assert client.transport.can_write_eof() is stack.half_close
        assert server.transport.can_write_eof() is stack.half_close
        if not stack.half_close:
            return
        if stack.ends_both:
            await site_ends(client, server, data)
            return
        for sender, receiver in ((client, server), (server, client)):
            await sender.send(data)
            sender.transport.write_eof()
            sender.transport.write_eof()
            await receiver.recorder.at_eof()
            assert receiver.recorder.data == data
            assert not receiver.recorder.lost
            assert not sender.recorder.lost
        client.close()
        server.close()
        assert await client.recorder.ended() is None
        assert await server.recorder.ended() is None


async def site_ends(client: End, server: End, data: bytes) -> None:
    """A visitor may end first and is still answered; the site's end is that of both."""
    client.transport.write_eof()
    await server.recorder.at_eof()
    await server.send(data)
    server.transport.write_eof()
    server.transport.write_eof()
    server.transport.write(b"late")
    assert server.transport.is_closing()
    # Without close_notify, as nginx leaves a visitor who has ended first.
    assert await client.recorder.ended() is not None
    assert client.recorder.data == data
    await server.recorder.ended()


async def test_calls_after_the_end_are_harmless(stack: Stack, certs: Certs) -> None:
    """After the end every call is harmless, and connection_lost has come exactly once."""
    async with stack.open(certs) as (client, server):
        client.close()
        await server.recorder.at_eof()
        server.close()
        await client.recorder.ended()
        await server.recorder.ended()
        for end in (client, server):
            transport = end.transport
            assert transport.is_closing()
            if stack.layers:
                transport.write(b"late")
                transport.write(bytearray(b"late"))
            transport.pause_reading()
            transport.resume_reading()
            assert transport.unsent() == 0
            if stack.layers and transport.can_write_eof():
                transport.write_eof()
            transport.close()
            end.close()
            transport.abort()
            end.abort()
        await turns()  # a second connection_lost would be reported to the loop


@pytest.mark.parametrize("how", ["close", "cut", "abort"])
async def test_nothing_follows_an_end_amid_arriving_data(
    how: str, stack: Stack, certs: Certs
) -> None:
    """connection_lost comes once, nothing comes behind it, and nothing up from the end on."""
    async with stack.open(certs, small=True) as (client, server):
        recorder = client.recorder
        ended = bytearray()

        def end(_piece: bytes) -> None:
            getattr(client.transport, how)()
            ended[:] = recorder.data
            client.transport.pause_reading()
            client.transport.resume_reading()
            client.transport.write(b"late")

        recorder.on_data = end
        server.transport.write(random.Random(13).randbytes(200_000))
        server.transport.write_eof()
        await recorder.until(lambda: ended)
        server.abort()
        await recorder.ended()
        told, pauses = recorder.calls, recorder.pauses
        for again in (client.transport.close, client.transport.cut, client.transport.abort):
            again()
        client.transport.pause_reading()
        client.transport.resume_reading()
        await turns()
        assert recorder.data == ended
        assert (recorder.calls, recorder.pauses) == (told, pauses)
        assert client.transport.is_closing()


async def test_cut_delivers_before_the_failure(stack: Stack, certs: Certs) -> None:
    """cut() delivers what was written before the peer sees a failure."""
    data = random.Random(14).randbytes(100_000)
    async with stack.open(certs) as (client, server):
        client.transport.write(data)
        client.transport.cut()
        assert client.transport.is_closing()
        client.transport.write(b"late")
        await server.recorder.received(len(data))
        if stack.knows_failure:
            assert await server.recorder.ended() is not None
            assert not server.recorder.eof
        else:
            await server.recorder.at_eof()
        assert server.recorder.data == data
        await client.recorder.ended()
