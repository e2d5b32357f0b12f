"""The transport contract, checked on every stack of layers there is.

Whoever is above a transport relies on these rules and knows nothing else about it, so each holds
for the socket at the bottom, and for every layer and stack of layers above it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from mtt.layers import anytls, linger
from mtt.layers.reads import READ_SIZE
from mtt.layers.smux import RECEIVE_BUDGET
from mtt.layers.smux_stream import STOP_AT, SmuxStream
from tests.support.certs import Certs
from tests.support.stacks import STACKS, End, Stack
from tests.support.transports import turns

Open = Callable[[bool], AbstractAsyncContextManager[tuple[End, End]]]
Check = Callable[[Stack, Open], Awaitable[None]]


def capacity(stack: Stack) -> int:
    """What a clogged connection may hold in all: kernel buffers of both sides, the
    high-water mark, one read in the layers, and what the sessions allow to queue."""
    limit = 6 * READ_SIZE
    if "smux" in stack.layers:
        limit += STOP_AT if stack.half_close else RECEIVE_BUDGET
    if "anytls" in stack.layers:
        limit += anytls.RECEIVE_BUDGET
    return limit


async def check_exchange(stack: Stack, open_pair: Open) -> None:
    """Both directions at once carry every byte, in order, whatever the sizes of the writes."""
    rng = random.Random(4)
    up, down = rng.randbytes(1_500_000), rng.randbytes(1_200_000)
    async with open_pair(False) as (client, server):
        await asyncio.gather(
            client.send(up, random.Random(5)),
            server.send(down, random.Random(6)),
            server.recorder.received(len(up)),
            client.recorder.received(len(down)),
        )
        assert server.recorder.data == up
        assert client.recorder.data == down
        await turns()
        assert not client.recorder.lost
        assert not server.recorder.eof


async def check_back_pressure(stack: Stack, open_pair: Open) -> None:
    """A reader that pauses stops the writer, and everything arrives when it goes on."""
    async with open_pair(True) as (client, server):
        for sender, receiver in ((client, server), (server, client)):
            receiver.transport.pause_reading()
            assert not receiver.transport.is_reading()
            before = bytes(receiver.recorder.data)
            written = await sender.clog(capacity(stack))
            assert receiver.recorder.data == before, "data in spite of pause_reading"
            assert sender.recorder.pauses
            if not isinstance(sender.transport, SmuxStream):  # whose peer tells it to stop
                assert sender.transport.unsent() > 0
            receiver.transport.resume_reading()
            assert receiver.transport.is_reading()
            await receiver.recorder.received(len(written))
            assert receiver.recorder.data == before + written
            await sender.recorder.can_write()


async def check_pauses(stack: Stack, open_pair: Open) -> None:
    """Pausing and resuming at any moment, also repeatedly, neither loses nor repeats anything."""
    rng = random.Random(7)
    data = rng.randbytes(600_000)
    async with open_pair(True) as (client, server):
        paused: list[bool] = []

        def react(_piece: bytes) -> None:
            assert not paused, "data in spite of pause_reading"
            if rng.random() < 0.5:
                server.transport.pause_reading()
                server.transport.pause_reading()
                paused.append(True)
                asyncio.get_running_loop().call_later(rng.random() / 500, resume)

        def resume() -> None:
            paused.clear()
            server.transport.resume_reading()
            server.transport.resume_reading()
            if rng.random() < 0.3:
                server.transport.pause_reading()
                paused.append(True)
                asyncio.get_running_loop().call_soon(resume)

        server.recorder.on_data = react
        await client.send(data, rng)
        await server.recorder.received(len(data))
        assert server.recorder.data == data


async def check_close_while_paused(stack: Stack, open_pair: Open) -> None:
    """close() of a transport that does not read delivers what was written, and sees the end."""
    reply = random.Random(11).randbytes(500_000)
    async with open_pair(True) as (client, server):
        before = bytes(client.recorder.data)
        client.transport.pause_reading()
        await server.clog(capacity(stack))
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


async def check_close_delivers(stack: Stack, open_pair: Open) -> None:
    """close() right behind a large write delivers all of it, then an ordinary end."""
    data = random.Random(8).randbytes(700_000)
    async with open_pair(True) as (client, server):
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


async def check_close_with_unread_input(stack: Stack, open_pair: Open) -> None:
    """Input that nobody reads any more does not destroy what was sent before close()."""
    data = random.Random(9).randbytes(300_000)
    async with open_pair(True) as (client, server):
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


async def check_close_to_clogged_peer(stack: Stack, open_pair: Open) -> None:
    """close() towards a peer that does not read now delivers when it reads again."""
    async with open_pair(True) as (client, server):
        server.transport.pause_reading()
        written = await client.clog(capacity(stack))
        client.close()
        await turns(100)
        server.transport.resume_reading()
        await server.recorder.at_eof()
        assert server.recorder.data == written
        assert server.recorder.eof


async def check_last_data_when_writing_fails(stack: Stack, open_pair: Open) -> None:
    """What the peer sent before it closed arrives, and as data, though our writing fails first."""
    data = random.Random(12).randbytes(5000)
    async with open_pair(False) as (client, server):
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


async def check_abort(stack: Stack, open_pair: Open) -> None:
    """abort() ends at once, and the peer can tell it from an ordinary end."""
    async with open_pair(True) as (client, server):
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


async def check_abort_of_clogged(stack: Stack, open_pair: Open) -> None:
    """abort() does not wait for a peer that does not read."""
    async with open_pair(True) as (client, server):
        server.transport.pause_reading()
        await client.clog(capacity(stack))
        client.abort()
        assert await client.recorder.ended() is None
        server.transport.resume_reading()
        if stack.knows_failure:
            assert await server.recorder.ended() is not None
            assert not server.recorder.eof


async def check_write_eof(stack: Stack, open_pair: Open) -> None:
    """Where there is half-close, each direction ends by itself; else the end is that of both."""
    data = random.Random(10).randbytes(400_000)
    async with open_pair(True) as (client, server):
        assert client.transport.can_write_eof() is stack.half_close
        assert server.transport.can_write_eof() is stack.half_close
        if not stack.half_close:
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


async def check_after_close(stack: Stack, open_pair: Open) -> None:
    """After the end every call is harmless, and connection_lost has come exactly once."""
    async with open_pair(False) as (client, server):
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


async def check_kinds_of_data(stack: Stack, open_pair: Open) -> None:
    """write() takes all kinds of bytes, empty ones too, and keeps none of the caller's memory."""
    async with open_pair(False) as (client, server):
        client.transport.pause_reading()  # of no matter for writing
        buffer = bytearray(b"one")
        client.transport.write(buffer)
        buffer[:] = b"XXX"
        client.transport.write(b"")
        client.transport.write(memoryview(b"two!")[:3])
        client.transport.writelines([b"th", b"", bytearray(b"ree")])
        assert await server.recorder.received(11) == b"onetwothree"
        assert client.transport.get_extra_info("no such thing", 5) == 5
        assert client.transport.get_extra_info("peername") == server.tcp.get_extra_info("sockname")


CHECKS: list[Check] = [
    check_exchange,
    check_back_pressure,
    check_pauses,
    check_close_while_paused,
    check_close_delivers,
    check_close_with_unread_input,
    check_close_to_clogged_peer,
    check_last_data_when_writing_fails,
    check_abort,
    check_abort_of_clogged,
    check_write_eof,
    check_after_close,
    check_kinds_of_data,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
async def test_check_transport(
    stack: Stack, check: Check, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both ends close here: what waits for this time does not see the other one's end.
    monkeypatch.setattr(linger, "LINGER_TIME", 1000.0)
    await check(stack, lambda small: stack.open(certs, small=small))
