"""Receivers that borrow keep nothing: the memory that data came in is used again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from mtt.layers.anytls_client import ClientSession, ServerState
from mtt.layers.anytls_server import ServerSession
from mtt.layers.base import Data
from mtt.layers.mux_cool import MuxCoolSession
from mtt.layers.smux import SmuxSession
from mtt.layers.tls import TlsLayer
from mtt.layers.websocket import WebSocketLayer
from mtt.wire import anytls, mux_cool, smux, websocket
from mtt.wire.padding import DEFAULT
from tests.support.certs import Certs
from tests.support.stacks import client_context, server_context
from tests.support.transports import FakeLayer, FakeTransport, Recorder, turns

SETTINGS = anytls.frame(
    anytls.SETTINGS, 0, anytls.client_settings("test/1", DEFAULT.md5) + b"\nhalf-close=1"
)
GREETING = anytls.frame(anytls.SERVER_SETTINGS, 0, b"v=2\nhalf-close=1")
KEY = b"\x01\x02\x03\x04"


class Keeper(Recorder):
    """Does not borrow, and so may keep what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[Data] = []

    def data_received(self, data: Data) -> None:
        super().data_received(data)
        self.kept.append(data)


def lend(give: Callable[[memoryview], object], data: bytes, rng: random.Random) -> None:
    """Give `data` in pieces, each in memory that holds something else as soon as it was taken."""
    memory = bytearray(70_000)
    at = 0
    while at < len(data):
        # Mostly small ones: they are to end everywhere, in headers too.
        piece = data[at : at + rng.choice((1, 3, 8, 20, 100) if rng.random() < 0.99 else (70_000,))]
        memory[: len(piece)] = piece
        give(memoryview(memory)[: len(piece)])
        memory[:] = b"\xee" * len(memory)
        at += len(piece)


def pieces(rng: random.Random) -> list[bytes]:
    return [rng.randbytes(rng.choice((1, 5, 30, 300))) for _ in range(600)] + [
        rng.randbytes(60_000) for _ in range(5)
    ]


def smux_server(upper: Recorder, lower: FakeLayer) -> Any:
    session = SmuxSession(accept=lambda: upper)
    lower.set_protocol(session)
    session.connection_made(lower)
    session.data_received(smux.frame(smux.SYN, 3))
    return session


def smux_client(upper: Recorder, lower: FakeLayer) -> Any:
    session = SmuxSession()
    lower.set_protocol(session)
    session.connection_made(lower)
    session.open_stream(upper)
    return session


def mux_cool_server(upper: Recorder, lower: FakeLayer) -> Any:
    session = MuxCoolSession(accept=lambda: upper)
    lower.set_protocol(session)
    session.connection_made(lower)
    session.data_received(mux_cool.new(1))
    return session


def anytls_server(upper: Recorder, lower: FakeLayer) -> Any:
    session = ServerSession(lambda: upper, scheme=DEFAULT)
    lower.set_protocol(session)
    session.connection_made(lower)
    session.data_received(SETTINGS + anytls.frame(anytls.SYN, 1))
    return session


def anytls_client(upper: Recorder, lower: FakeLayer) -> Any:
    session = ClientSession(bytes(32), ServerState(), half_close=True)
    lower.set_protocol(session)
    session.connection_made(lower)
    session.open_stream(upper, b"dest")
    session.data_received(GREETING + anytls.frame(anytls.SYNACK, 1))
    return session


def websocket_server(upper: Recorder, lower: FakeLayer) -> Any:
    layer = WebSocketLayer(upper, client=False)
    layer.start(lower)
    return layer


def websocket_client(upper: Recorder, lower: FakeLayer) -> Any:
    layer = WebSocketLayer(upper, client=True)
    layer.start(lower)
    return layer


PROTOCOLS = [
    (smux_server, lambda data: smux.frame(smux.PSH, 3, data)),
    (smux_client, lambda data: smux.frame(smux.PSH, 3, data)),
    (mux_cool_server, lambda data: mux_cool.header(1, len(data)) + data),
    (anytls_server, lambda data: anytls.frame(anytls.PSH, 1, data)),
    (anytls_client, lambda data: anytls.frame(anytls.PSH, 1, data)),
    (websocket_server, lambda data: websocket.frame(websocket.BINARY, data, websocket.NO_MASK)),
    (websocket_server, lambda data: websocket.frame(websocket.BINARY, data, KEY)),
    (websocket_client, lambda data: websocket.frame(websocket.BINARY, data)),
]


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize(("make", "frame"), PROTOCOLS)
async def test_protocols_keep_no_borrowed_memory(
    make: Any, frame: Callable[[bytes], bytes], paused: bool
) -> None:
    rng = random.Random(77)
    upper, lower = Keeper(), FakeLayer()
    protocol = make(upper, lower)
    assert protocol.borrows
    said = pieces(rng)
    if paused:
        upper.transport.pause_reading()
    lend(protocol.data_received, b"".join(map(frame, said)), rng)
    if paused:
        assert not upper.data
        upper.transport.resume_reading()
        await turns()
    assert b"".join(upper.kept) == upper.data == b"".join(said)
    protocol.abort()
    await turns()


@pytest.mark.parametrize(
    "make",
    [smux_server, smux_client, anytls_server, anytls_client, websocket_server, websocket_client],
)
async def test_transports_keep_no_borrowed_memory(make: Any) -> None:
    """The fake transport below would not take memory that can change."""
    rng = random.Random(78)
    upper, lower = Recorder(), FakeLayer()
    protocol = make(upper, lower)
    lower.take()
    assert upper.transport.borrows
    said = rng.randbytes(300_000)
    lend(upper.transport.write, said, rng)
    payloads = decoded(make, lower.take())
    assert b"".join(payloads) == said
    protocol.abort()
    await turns()


def decoded(make: Any, stream: bytes) -> list[bytes]:
    """The payload of all data frames."""
    if make in (websocket_server, websocket_client):
        decoder: Any = websocket.Decoder(masked=make is websocket_client)
        return [bytes(data) for code, data in decoder.feed(stream) if code == websocket.BINARY]
    wire: Any = smux if make in (smux_server, smux_client) else anytls
    return [bytes(data) for code, _, data in wire.Decoder().feed(stream) if code == wire.PSH]


async def test_tls_keeps_no_borrowed_memory(certs: Certs) -> None:
    rng = random.Random(79)
    uppers = Keeper(), Keeper()
    client = TlsLayer(uppers[0], client_context(certs), server_side=False, server_name=certs.name)
    server = TlsLayer(uppers[1], server_context(certs), server_side=True)
    below = FakeTransport(client), FakeTransport(server)
    client.connection_made(below[0])
    server.connection_made(below[1])

    def exchange() -> None:
        for lower, layer in ((below[0], server), (below[1], client)):
            if data := lower.take():
                lend(layer.data_received, data, rng)

    for _ in range(4):
        exchange()
        await turns()
    assert client.borrows
    said = rng.randbytes(400_000)
    lend(client.write, said, rng)
    exchange()
    assert b"".join(uppers[1].kept) == said
    client.abort()
    server.abort()
    await turns()
