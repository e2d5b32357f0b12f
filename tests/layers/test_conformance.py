"""The transport contract, checked on every stack of layers there is.

Whoever is above a transport relies on these rules and knows nothing else about it, so each holds
for the socket at the bottom, and for every layer and stack of layers above it.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import pytest

from mtt.layers import anytls, linger
from mtt.layers.reads import READ_SIZE
from mtt.layers.smux import RECEIVE_BUDGET
from mtt.layers.smux_stream import STOP_AT
from tests.support.certs import Certs
from tests.support.stacks import STACKS, End, Stack
from tests.support.transports import Recorder, turns


class Open(Protocol):
    def __call__(
        self, small: bool, *, greeted: bool = True
    ) -> AbstractAsyncContextManager[tuple[End, End]]: ...


Check = Callable[[Stack, Open], Awaitable[None]]


def capacity(stack: Stack) -> int:
    """What a clogged connection may hold in all: kernel buffers of both sides, the
    high-water mark, one read in the layers, and what the sessions allow to queue."""
    limit = 6 * READ_SIZE
    if "smux" in stack.layers:
        limit += STOP_AT if stack.half_close else RECEIVE_BUDGET
    if "anytls" in stack.layers:
        limit += anytls.RECEIVE_BUDGET
    if "throttle" in stack.layers:
        limit += READ_SIZE
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
            if not (stack.half_close and "smux" in stack.layers):  # whose peer tells it to stop
                assert sender.transport.unsent() > 0
            receiver.transport.resume_reading()
            assert receiver.transport.is_reading()
            assert receiver.recorder.data == before, "data inside of resume_reading"
            await receiver.recorder.received(len(written))
            assert receiver.recorder.data == before + written
            await sender.recorder.can_write()


async def check_take_over_of_clogged(stack: Stack, open_pair: Open) -> None:
    """Who takes over a transport that can take nothing is told so, and when it can again."""
    async with open_pair(True) as (client, server):
        server.transport.pause_reading()
        await client.clog(capacity(stack))
        assert not client.recorder.writable
        successor = Recorder()
        client.transport.set_protocol(successor)
        assert not successor.writable
        server.transport.resume_reading()
        await successor.can_write()
        other = Recorder()
        client.transport.set_protocol(other)
        assert other.writable


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


async def check_loss_behind_a_pause(stack: Stack, open_pair: Open) -> None:
    """A reader that pauses at each piece, the last one too, hears of the loss behind it."""
    for how in (lambda end: end.transport.abort(), lambda end: end.tcp.abort()):
        async with open_pair(False) as (client, server):
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


async def check_write_eof(stack: Stack, open_pair: Open) -> None:
    """Where there is half-close, each direction ends by itself; else the end is that of both."""
    data = random.Random(10).randbytes(400_000)
    async with open_pair(True) as (client, server):
        assert client.transport.can_write_eof() is stack.half_close
        assert server.transport.can_write_eof() is stack.half_close
        if not stack.half_close:
            return
        if stack.ends_both:
            await check_end_of_site(client, server, data)
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


async def check_end_of_site(client: End, server: End, data: bytes) -> None:
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


class Ending:
    """Ends a transport with `how`, in the middle of data that come."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.__name__ = f"check_{how}_in_the_middle"

    async def __call__(self, stack: Stack, open_pair: Open) -> None:
        """connection_lost comes once, nothing comes behind it, and nothing up from the end on."""
        async with open_pair(True) as (client, server):
            recorder = client.recorder
            ended = bytearray()

            def end(_piece: bytes) -> None:
                getattr(client.transport, self.how)()
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


async def check_cut_delivers(stack: Stack, open_pair: Open) -> None:
    """cut() delivers what was written before the peer sees a failure."""
    data = random.Random(14).randbytes(100_000)
    async with open_pair(False) as (client, server):
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


async def check_half_close_is_asked_once(stack: Stack, open_pair: Open) -> None:
    """half_closes() sends nothing; ask_half_close() asks once, and nothing when it is known."""
    async with open_pair(False, greeted=False) as (client, server):
        for end in (client, server):
            bottom = end.transport.bottom
            sent = bottom.handed_over
            for _ in range(3):
                assert end.transport.half_closes() in (stack.half_close, None)
                assert end.transport.can_write_eof() in (stack.half_close, False)
            assert bottom.handed_over == sent
            is_known = end.transport.half_closes() is not None
            end.transport.ask_half_close()
            asked = bottom.handed_over
            assert asked == sent or not is_known
            end.transport.ask_half_close()
            assert bottom.handed_over == asked
            assert end.transport.unsent() == 0  # nothing that the protocol above has written
        await turns(100)
        for end in (client, server):
            assert end.transport.half_closes() is stack.half_close
            sent = end.transport.bottom.handed_over
            end.transport.ask_half_close()
            assert end.transport.half_closes() is stack.half_close
            assert end.transport.bottom.handed_over == sent
            assert not end.recorder.data


async def check_counts(stack: Stack, open_pair: Open) -> None:
    """`handed_over` is the socket's count; `unsent` is of what was written, until it is there."""
    async with open_pair(False) as (client, server):
        for end, other in ((client, server), (server, client)):
            transport = end.transport
            assert transport.bottom is end.tcp
            written = 0
            for size in (1, 100, 40_000):
                before = transport.handed_over
                transport.write(bytes(size))
                written += size
                assert transport.handed_over >= before + size
                assert transport.handed_over == end.tcp.handed_over
                # With what the layers put around it: padding, above all.
                assert transport.unsent() <= written + (4000 if "anytls" in stack.layers else 500)
            await other.recorder.received(written)
            while transport.unsent():
                await asyncio.sleep(0)
            # What the other one has not read, or has not written yet, does not count.
            other.transport.write(b"x")
            assert transport.unsent() == 0


NAMES = {
    "tls": "TLS",
    "websocket": "WebSocket",
    "smux": "smux stream",
    "anytls": "AnyTLS stream",
    "throttle": "rate limiter",
    "visit": "visit",
}


async def check_repr(stack: Stack, open_pair: Open) -> None:
    """repr() shows the whole stack, from its top to the socket, whatever its state."""

    def check(end: End) -> None:
        layers = [layer for layer in stack.layers if layer != "visit" or end is server]
        shown = repr(end.transport).split(" over ")
        assert len(shown) == len(layers) + 1
        for layer, text in zip(reversed(layers), shown, strict=False):
            assert text.startswith(NAMES[layer])
        assert shown[-1].startswith("TCP")

    async with open_pair(False) as (client, server):
        for step in (
            lambda: None,
            client.transport.pause_reading,
            client.transport.write_eof,
            client.transport.close,
            server.transport.close,
        ):
            step()
            check(client)
            check(server)
            await turns()
            check(client)
            check(server)
        await client.recorder.ended()
        await server.recorder.ended()
        check(client)
        check(server)


CHECKS: list[Check] = [
    check_exchange,
    check_back_pressure,
    check_take_over_of_clogged,
    check_pauses,
    check_close_while_paused,
    check_close_delivers,
    check_close_with_unread_input,
    check_close_to_clogged_peer,
    check_last_data_when_writing_fails,
    check_abort,
    check_abort_of_clogged,
    check_loss_behind_a_pause,
    check_write_eof,
    check_after_close,
    check_kinds_of_data,
    *(Ending(how) for how in ("close", "cut", "abort")),
    check_cut_delivers,
    check_half_close_is_asked_once,
    check_counts,
    check_repr,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("stack", STACKS, ids=lambda stack: stack.name)
async def test_check_transport(
    stack: Stack, check: Check, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Both ends close here: what waits for this time does not see the other one's end.
    monkeypatch.setattr(linger, "LINGER_TIME", 1000.0)
    await check(stack, functools.partial(_open, stack, certs))


def _open(
    stack: Stack, certs: Certs, small: bool, *, greeted: bool = True
) -> AbstractAsyncContextManager[tuple[End, End]]:
    return stack.open(certs, small=small, greeted=greeted)
