"""The WebSocket layer over a fake connection: data, control frames, noise."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mtt.errors import PeerError
from mtt.layers.websocket import CONTROL_BACKLOG
from mtt.wire.websocket import (
    BINARY,
    CLOSE,
    MAX_CONTROL,
    NO_MASK,
    PING,
    PONG,
    TEXT,
    Decoder,
    WebSocketError,
    frame,
)
from tests.layers.websocket_side import Side, closing, up
from tests.support.transports import FakeLayer, FakeTransport, Recorder, turns

# Data.


async def test_data_both_ways() -> None:
    server = Side()
    assert server.lower.reading
    server.feed(up(BINARY, b"one"), up(TEXT, b"two"), up(BINARY), up(BINARY, b"three"))
    assert server.upper.data == b"onetwothree"
    assert server.upper.calls == 1
    server.layer.write(b"reply")
    assert server.lower.take() == b"\x82\x05reply"
    await server.over()


async def test_only_the_matching_pong_answers_ask() -> None:
    client = Side(client=True)
    assert client.layer.ping()
    (first,) = client.said()
    client.feed(frame(PONG, b""), frame(BINARY, b"data"))
    assert not client.layer.ping_answered()
    client.layer.ping()
    (second,) = client.said()
    client.feed(frame(PONG, first[1]))
    assert not client.layer.ping_answered()
    client.feed(frame(PONG, second[1]))
    assert client.layer.ping_answered()
    await client.over()


@pytest.mark.parametrize("random_mask", [False, True])
async def test_client_masks_with_zero_or_random_key(random_mask: bool) -> None:
    client = Side(client=True, random_mask=random_mask)
    client.layer.write(b"secret")
    client.layer.write(b"secret")
    first, second = client.lower.writes
    assert first[1] & 0x80
    assert (first[2:6] == NO_MASK) is not random_mask
    assert (first == second) is not random_mask
    assert Decoder(masked=True).feed(first) == [(BINARY, b"secret")]
    await client.over()


async def test_data_right_after_the_upgrade_are_read() -> None:
    server = Side(early=up(BINARY, b"early") + up(PING, b"?")[:3])
    assert server.upper.data == b"early"
    server.feed(up(PING, b"?")[3:])
    assert server.said() == [(PONG, b"?")]
    await server.over()


async def test_protocol_that_pauses_at_once_gets_data_later() -> None:
    class NotReady(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    server = Side(early=up(BINARY, b"early") + closing(1000), upper=NotReady())
    assert not server.lower.reading
    await turns()
    assert not server.upper.data
    assert not server.upper.eof
    server.layer.resume_reading()
    server.layer.pause_reading()
    server.layer.resume_reading()
    server.feed(up(BINARY, b"ignored after a close"))
    await turns()
    assert server.upper.data == b"early"
    assert server.upper.eof
    await server.over()


# Control frames.


async def test_pings_are_answered_and_pongs_are_not() -> None:
    server = Side()
    payload = bytes(range(MAX_CONTROL))
    server.feed(up(BINARY, b"a")[:4], up(BINARY, b"a")[4:], up(PING, payload), up(PONG, b"!"),
                up(PING), up(BINARY, b"b"))  # fmt: skip
    assert server.upper.data == b"ab"
    assert server.said() == [(PONG, payload), (PONG, b"")]
    await server.over()


async def test_pongs_are_dropped_while_the_peer_does_not_read() -> None:
    server = Side()
    server.lower.buffered = CONTROL_BACKLOG
    server.feed(up(PING, b"1"))
    server.lower.buffered = 0
    server.feed(up(PING, b"2"))
    assert server.said() == [(PONG, b"2")]
    await server.over()


@pytest.mark.parametrize("lower", [FakeTransport, FakeLayer])
async def test_pongs_are_not_unsent_data(lower: type[FakeTransport]) -> None:
    server = Side(lower=lower)
    server.feed(up(PING, b"1"))
    server.lower.buffered = len(server.lower.sent)
    assert server.layer.unsent() == 0
    server.layer.write(b"data")
    server.lower.buffered = size = len(server.lower.sent)
    assert server.layer.unsent() == size
    server.feed(up(PING, b"2"))
    server.lower.buffered = len(server.lower.sent)
    assert server.layer.unsent() == size
    server.lower.buffered -= size
    assert server.layer.unsent() == 0
    await server.over()


# Noise.


@pytest.mark.parametrize("half_close", [False, True])
async def test_noise_is_a_peers_error_or_does_no_harm(half_close: bool) -> None:
    rng = random.Random(61)
    failures = 0
    for _ in range(400):
        server = Side(half_close=half_close)
        stream = b""
        for _ in range(rng.randrange(1, 12)):
            opcode = rng.choice((TEXT, BINARY, BINARY, PING, PONG, rng.choice((CLOSE, BINARY))))
            stream += frame(opcode, rng.randbytes(rng.choice((0, 1, 2, 30))), rng.randbytes(4))
        if rng.random() < 0.5:
            noise = bytearray(stream)
            noise[rng.randrange(len(noise))] = rng.randrange(256)
            stream = bytes(noise)
        while stream:
            size = rng.randrange(1, 40)
            server.feed(stream[:size])
            stream = stream[size:]
            if rng.random() < 0.2:
                server.layer.pause_reading()
            if rng.random() < 0.3:
                server.layer.resume_reading()
                await turns(2)
        server.layer.resume_reading()
        await turns(2)
        if server.upper.lost:
            failures += 1
            assert isinstance(server.upper.error, PeerError)
            assert not isinstance(server.upper.error, WebSocketError)  # but what the layer says
            code, _ = server.said()[-1]
            assert code == CLOSE
        server.lower.lose(None)
        await turns(3)
        assert server.upper.lost
    assert 50 < failures < 400
