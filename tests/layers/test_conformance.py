"""The transport contract, checked on every stack of layers.

The protocol above a transport relies on these rules and knows nothing else about it, so each holds
for the socket at the bottom, and for every layer and stack of layers above it.
"""

from __future__ import annotations

import asyncio
import random

from tests.support.certs import Certs
from tests.support.stacks import End, Stack
from tests.support.transports import Recorder, turns


async def test_both_directions_carry_every_byte(stack: Stack, certs: Certs) -> None:
    """Both directions at once carry every byte, in order, whatever the sizes of the writes."""
    rng = random.Random(4)
    up, down = rng.randbytes(1_500_000), rng.randbytes(1_200_000)
    async with stack.open(certs) as (client, server):
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


async def test_paused_reader_stops_the_writer(stack: Stack, certs: Certs) -> None:
    """A reader that pauses stops the writer, and everything arrives when it goes on."""
    async with stack.open(certs, small=True) as (client, server):
        for sender, receiver in ((client, server), (server, client)):
            receiver.transport.pause_reading()
            assert not receiver.transport.is_reading()
            before = bytes(receiver.recorder.data)
            written = await sender.clog(stack.capacity)
            assert receiver.recorder.data == before, "data in spite of pause_reading"
            assert sender.recorder.pauses
            if not (stack.half_close and stack.has_tunnel_session):  # whose peer tells it to stop
                assert sender.transport.unsent() > 0
            receiver.transport.resume_reading()
            assert receiver.transport.is_reading()
            assert receiver.recorder.data == before, "data inside of resume_reading"
            await receiver.recorder.received(len(written))
            assert receiver.recorder.data == before + written
            await sender.recorder.can_write()


async def test_new_protocol_is_told_of_a_full_transport(stack: Stack, certs: Certs) -> None:
    """A protocol that takes over a full transport is told so, and when it can write again."""
    async with stack.open(certs, small=True) as (client, server):
        server.transport.pause_reading()
        await client.clog(stack.capacity)
        assert not client.recorder.writable
        successor = Recorder()
        client.transport.set_protocol(successor)
        assert not successor.writable
        server.transport.resume_reading()
        await successor.can_write()
        other = Recorder()
        client.transport.set_protocol(other)
        assert other.writable


async def test_pausing_at_any_moment_loses_nothing(stack: Stack, certs: Certs) -> None:
    """Pausing and resuming at any moment, also repeatedly, neither loses nor repeats anything."""
    rng = random.Random(7)
    data = rng.randbytes(600_000)
    async with stack.open(certs, small=True) as (client, server):
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


async def test_write_takes_all_kinds_of_bytes(stack: Stack, certs: Certs) -> None:
    """write() takes all kinds of bytes, empty ones too, and keeps none of the caller's memory."""
    async with stack.open(certs) as (client, server):
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


async def test_half_close_is_asked_once(stack: Stack, certs: Certs) -> None:
    """half_closes() sends nothing; ask_half_close() asks once, and nothing when it is known."""
    async with stack.open(certs, greeted=False) as (client, server):
        for end in (client, server):
            bottom = end.transport.bottom
            sent = bottom.socket_written
            for _ in range(3):
                assert end.transport.half_closes() in (stack.half_close, None)
                assert end.transport.can_write_eof() in (stack.half_close, False)
            assert bottom.socket_written == sent
            is_known = end.transport.half_closes() is not None
            end.transport.ask_half_close()
            asked = bottom.socket_written
            assert asked == sent or not is_known
            end.transport.ask_half_close()
            assert bottom.socket_written == asked
            assert end.transport.unsent() == 0  # nothing that the protocol above has written
        await turns(100)
        for end in (client, server):
            assert end.transport.half_closes() is stack.half_close
            sent = end.transport.bottom.socket_written
            end.transport.ask_half_close()
            assert end.transport.half_closes() is stack.half_close
            assert end.transport.bottom.socket_written == sent
            assert not end.recorder.data


async def test_socket_written_and_unsent_count_bytes(stack: Stack, certs: Certs) -> None:
    """`socket_written` counts what the socket got; `unsent` counts until the peer has it."""
    async with stack.open(certs) as (client, server):
        for end, other in ((client, server), (server, client)):
            transport = end.transport
            assert transport.bottom is end.tcp
            written = 0
            for size in (1, 100, 40_000):
                before = transport.socket_written
                transport.write(bytes(size))
                written += size
                assert transport.socket_written >= before + size
                assert transport.socket_written == end.tcp.socket_written
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
    "reverse-smux": "smux stream",
    "mux-cool": "Mux.Cool stream",
    "anytls": "AnyTLS stream",
    "messages": "WebSocket",
    "anyproxy": "AnyProxy stream",
    "throttle": "rate limiter",
    "two-way-throttle": "rate limiter",
    "counter": "byte counter",
    "visit": "visit",
}


async def test_repr_shows_the_whole_stack(stack: Stack, certs: Certs) -> None:
    """repr() shows the whole stack, from its top to the socket, whatever its state."""

    def check(end: End) -> None:
        layers = [layer for layer in stack.layers if layer != "visit" or end is server]
        shown = repr(end.transport).split(" over ")
        assert len(shown) == len(layers) + 1
        for layer, text in zip(reversed(layers), shown, strict=False):
            assert text.startswith(NAMES[layer])
        assert shown[-1].startswith("TCP")

    async with stack.open(certs) as (client, server):
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
