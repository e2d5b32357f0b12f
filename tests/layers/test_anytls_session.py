"""AnyTLS sessions back to back, under a relay, and with peers that say anything at all."""

from __future__ import annotations

import asyncio
import random
import ssl
import struct
from typing import Any

import pytest

from mtt.errors import MttError, PeerError
from mtt.layers.anytls import RECEIVE_BUDGET
from mtt.layers.anytls_client import ClientSession, ServerState
from mtt.layers.anytls_server import ServerSession
from mtt.layers.tcp import SocketTransport
from mtt.layers.tls import TlsLayer
from mtt.tunnels import relay
from mtt.tunnels.relay import Relay
from mtt.wire.anytls import FIN, HEADER_SIZE, PSH, SETTINGS, SYN, PreambleReader, frame
from mtt.wire.padding import Scheme
from tests.layers.anytls_server_side import V2, Server
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.stacks import Stack
from tests.support.transports import FakeLayer, FakeTransport, Recorder, turns


class Pair:
    """A client's session and a server's, and what each has sent to the other."""

    def __init__(self, *, half_close: bool = False) -> None:
        self.client = ClientSession(bytes(32), ServerState(), half_close=half_close)
        self.up = FakeLayer(self.client)
        self.client.connection_made(self.up)
        there = Server()
        self.server, self.down, self.uppers = there.session, there.lower, there.uppers
        reader = PreambleReader()
        reader.feed(self.up.take())
        assert reader.rest == b""

    async def exchange(self) -> None:
        """Let everything that was written arrive, and what is said to it."""
        for _ in range(10):
            await turns(3)
            for session, lower in ((self.server, self.up), (self.client, self.down)):
                if data := lower.take():
                    session.data_received(data)

    async def over(self) -> None:
        self.client.abort()
        self.server.abort()
        await turns()


@pytest.mark.parametrize("half_close", [False, True])
async def test_connection_learns_that_peer_is_ours(half_close: bool) -> None:
    pair = Pair(half_close=half_close)
    pair.client.open_stream(Recorder(), b"destination").write(b"x")
    assert not (pair.up.is_ours or pair.down.is_ours)
    await pair.exchange()
    assert pair.up.is_ours is pair.down.is_ours is half_close
    await pair.over()


@pytest.mark.parametrize("half_close", [False, True])
async def test_streams_one_after_the_other(half_close: bool) -> None:
    pair = Pair(half_close=half_close)
    rng = random.Random(61)
    for number in range(12):  # the padding ends in between
        upper = Recorder()
        stream = pair.client.open_stream(upper, b"dest")
        await pair.exchange()
        server = pair.uppers[number]
        server.transport.acknowledge()
        question, answer = rng.randbytes(rng.randrange(1, 90_000)), rng.randbytes(500)
        stream.write(question)
        await pair.exchange()
        assert server.data == b"dest" + question
        server.transport.write(answer)
        await pair.exchange()
        await stream.acknowledged()
        assert upper.data == answer
        ends = [stream, server.transport]
        rng.shuffle(ends)
        ends[0].close()
        await pair.exchange()
        assert (upper.eof, server.eof) == ((False, True) if ends[0] is stream else (True, False))
        ends[1].close()
        await pair.exchange()
        assert upper.lost
        assert server.lost
        assert (pair.client.used_slots, pair.server.used_slots) == (0, 0)
    await pair.over()


async def test_a_reset_reaches_the_other_end() -> None:
    pair = Pair(half_close=True)
    upper = Recorder()
    stream = pair.client.open_stream(upper, b"dest")
    await pair.exchange()
    stream.write(b"half of it")
    stream.abort()
    await pair.exchange()
    assert isinstance(pair.uppers[0].error, ConnectionResetError)
    assert not pair.uppers[0].eof
    assert pair.client.idle_since is not None
    assert pair.server.idle_since is not None
    await pair.over()


async def test_sender_to_a_closed_stream_gets_a_reset() -> None:
    pair = Pair(half_close=True)
    stream = pair.client.open_stream(Recorder(), b"dest")
    await pair.exchange()
    stream.close()
    await pair.exchange()
    server = pair.uppers[0]
    assert server.eof
    server.transport.write(b"more")
    await pair.exchange()
    assert not server.lost
    pair.client._awaiting_fin[1] -= 10
    server.transport.write(b"and more")
    await pair.exchange()
    assert server.lost
    assert pair.client.idle_since is not None
    await pair.over()


async def test_every_padded_record_is_a_record_of_tls(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme = Scheme.parse(b"stop=4\n0=30-30\n1=500-500\n2=20-20,700-700,90-90\n3=9-9,60-60,c,8-8")
    monkeypatch.setattr("tests.support.stacks.ServerState", lambda: ServerState(scheme))
    monkeypatch.setattr(
        "tests.support.stacks.ServerSession", lambda accept: ServerSession(accept, scheme=scheme)
    )
    wire: dict[TlsLayer, bytes] = {}
    write = SocketTransport.write

    def tapped(transport: SocketTransport, data: bytes) -> None:
        layer = transport.get_protocol()
        wire[layer] = wire.get(layer, b"") + data
        write(transport, data)

    monkeypatch.setattr(SocketTransport, "write", tapped)
    stack = Stack("anytls-tls", ("tls", "anytls"), version=ssl.TLSVersion.TLSv1_3)
    async with stack.open(certs) as (client, server):
        client.transport.write(b"x" * 100)
        client.transport.write(b"y" * 50)
        client.transport.write(b"z" * 40_000)
        await server.recorder.received(40_150)
        (layer,) = (layer for layer in wire if not layer.get_extra_info("ssl_object").server_side)
        sizes = []
        while wire[layer]:
            kind, _, size = struct.unpack_from(">BHH", wire[layer])
            wire[layer] = wire[layer][5 + size :]
            if kind == 23:
                sizes.append(size - 17)  # tag and kind of content (RFC 8446, 5.2)
    # The first is Finished. Behind the padding, a frame has as many records as it needs.
    assert sizes[1:] == [34 + 30, 500, 20, 700, 97, 9, 60, 16384, 16384, 7, 40_007 - 32768]


# Under a relay.


# A Go client is told of a destination's end at once, and ends both directions with it.
@pytest.mark.parametrize(
    ("client_side", "half_close"), [(True, False), (True, True), (False, True)]
)
async def test_the_end_of_one_direction_costs_nothing_of_the_other(
    half_close: bool, client_side: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    pair = Pair(half_close=half_close)
    upper = Recorder()
    ours = pair.client.open_stream(upper, b"")
    ours.write(b"hello")
    await pair.exchange()
    theirs = pair.uppers[0].transport
    far, peer, other = (ours, theirs, pair.uppers[0]) if client_side else (theirs, ours, upper)
    other.data.clear()
    near = FakeTransport(Recorder())
    done: list[Relay] = []
    Relay(*((near, far) if client_side else (far, near)), timeout=60, done=done.append)
    near.protocol.data_received(b"question")
    near.protocol.eof_received()
    for _ in range(5):  # a reply in pieces, with pauses shorter than the quiet
        await clock.passes(relay.QUIET_TIME * 0.7)
        peer.write(b"reply ")
        await pair.exchange()
    assert other.data == b"question"
    assert other.eof is half_close
    assert near.take() == b"reply " * 5
    if half_close:
        peer.close()
    while not (done and other.eof):
        await pair.exchange()
        await clock.passes(relay.QUIET_INTERVALS[1])
    other.transport.close()
    await pair.exchange()
    assert not near.aborted
    assert done[0].error is None
    assert (pair.client.used_slots, pair.server.used_slots) == (0, 0)
    await pair.over()


# Anything at all.


def noise(rng: random.Random) -> bytes:
    pieces = []
    for _ in range(rng.randrange(1, 25)):
        command = rng.choice((SYN, PSH, PSH, PSH, FIN, rng.randrange(12), rng.randrange(256)))
        payload = rng.randbytes(rng.choice((0, 0, 1, 30, 300)))
        if command == SETTINGS and rng.random() < 0.7:
            payload = b"v=2\nhalf-close=%d" % rng.randrange(2)
        pieces.append(frame(command, rng.choice((0, 1, 1, 1, 2, 3)), payload))
    if rng.random() < 0.2:
        pieces.append(rng.randbytes(30))
    return b"".join(pieces)


def meddle(rng: random.Random, upper: Recorder) -> None:
    """Do what a protocol may do with its transport."""
    transport = upper.transport
    what = rng.randrange(12)
    if what < 3:
        transport.pause_reading()
    elif what < 6:
        transport.resume_reading()
    elif what == 6:
        transport.write_eof()
    elif what == 7:
        transport.close()
    elif what == 8:
        transport.abort()
    else:
        transport.write(b"data")


@pytest.mark.parametrize("client_side", [False, True])
async def test_a_peer_may_say_anything(client_side: bool) -> None:
    rng = random.Random(62)
    for _ in range(250):
        uppers: list[Recorder] = []

        def accept(uppers: list[Recorder] = uppers) -> Recorder:
            uppers.append(Recorder())
            return uppers[-1]

        session: Any
        if client_side:
            session = ClientSession(bytes(32), ServerState(), half_close=rng.random() < 0.5)
        else:
            session = ServerSession(accept)
        lower = FakeLayer(session)
        session.connection_made(lower)
        if not client_side and rng.random() < 0.9:
            session.data_received(frame(SETTINGS, 0, b"v=2\nhalf-close=%d" % rng.randrange(2)))
        answers = []
        for _ in range(8):
            if client_side and len(uppers) < 3 and not session.lost:
                stream = session.open_stream(accept(), b"dest")
                answers.append(asyncio.ensure_future(stream.acknowledged()))
            data = noise(rng)
            cut = rng.randrange(len(data))
            session.data_received(data[:cut])
            for upper in uppers:
                if upper.transport is not None:  # else its turn has not come
                    meddle(rng, upper)
            session.data_received(data[cut:])
            if rng.random() < 0.3:
                await turns(1)
        assert session.error is None or isinstance(session.error, PeerError)
        session.connection_lost(None)
        for upper in uppers:
            if upper.transport is not None:
                upper.transport.resume_reading()
        await turns(10)
        assert all(upper.lost or upper.transport.is_closing() for upper in uppers)
        for answer in answers:
            assert answer.done()
            assert answer.exception() is None or isinstance(answer.exception(), MttError)
    await turns()


async def test_memory_held_for_a_hostile_peer_is_bounded() -> None:
    server = Server(V2)
    for number in range(1, 300):
        server.feed(frame(SYN, number))
    for upper in server.uppers:
        upper.transport.pause_reading()
    number = queued = 0
    while server.lower.reading:
        number = number % 256 + 1
        server.feed(frame(PSH, number, bytes(10_000)))
        queued += 10_000
    assert queued <= RECEIVE_BUDGET + 10_000
    assert len(server.lower.sent) < 300 * 50 + HEADER_SIZE
    await server.over()
