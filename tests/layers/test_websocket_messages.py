"""The WebSocket layer that keeps the boundaries of messages."""

from __future__ import annotations

import random

import pytest

from mtt.errors import NetworkError, PeerError
from mtt.layers import keepalive
from mtt.layers.base import Data
from mtt.layers.parked import park
from mtt.layers.websocket_messages import MessageLayer
from mtt.wire.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_MASK,
    PING,
    PONG,
    TEXT,
    Decoder,
    close_payload,
    frame,
)
from tests.support.clock import Clock
from tests.support.transports import FakeLayer, Recorder, turns
from tests.support.vectors import stream_of, vector

LIMIT = 100_000
KEY = b"\x12\x34\x56\x78"


class Messages(Recorder):
    """Remembers messages, empty ones too."""

    def __init__(self, *, borrows: bool = False) -> None:
        super().__init__()
        self.borrows = borrows
        self.messages: list[bytes] = []

    def data_received(self, data: Data) -> None:
        assert self.borrows or isinstance(data, bytes)
        self.messages.append(bytes(data))
        if data:
            super().data_received(data)


class Side:
    def __init__(self, *, client: bool = False, borrows: bool = False) -> None:
        self.upper = Messages(borrows=borrows)
        self.lower = FakeLayer()
        self.layer = MessageLayer(self.upper, client=client, limit=LIMIT)
        park(self.lower, b"")
        self.layer.start(self.lower)

    def feed(self, *frames: bytes) -> None:
        self.lower.protocol.data_received(b"".join(frames))

    async def over(self) -> None:
        self.lower.lose(None)
        await turns()
        assert self.upper.lost


def up(opcode: int, payload: bytes = b"", *, final: bool = True, key: bytes = KEY) -> bytes:
    """A client's frame."""
    made = frame(opcode, payload, key)
    return made if final else bytes((made[0] & 0x7F,)) + made[1:]


async def test_each_message_comes_in_one_call() -> None:
    server = Side()
    server.feed(up(BINARY, b"one"), up(TEXT, b"two"), up(BINARY), up(TEXT), up(BINARY, b"three"))
    assert server.upper.messages == [b"one", b"two", b"", b"", b"three"]
    await server.over()


async def test_each_write_is_one_whole_frame() -> None:
    client = Side(client=True)
    data = bytes(90_000)
    client.layer.write(data)
    client.layer.write_framed(b"head", b"data")
    assert bytes(client.lower.sent) == frame(BINARY, data, NO_MASK) + frame(
        BINARY, b"headdata", NO_MASK
    )
    await client.over()


async def test_fragments_are_joined_with_control_frames_in_between() -> None:
    server = Side()
    server.feed(
        up(BINARY, b"a" * 4096, final=False), up(PONG), up(CONTINUATION, b"b" * 4096, final=False)
    )
    server.feed(up(PING, b"?"), up(CONTINUATION, b"c" * 22), up(BINARY, b"next"))
    assert server.upper.messages == [b"a" * 4096 + b"b" * 4096 + b"c" * 22, b"next"]
    assert Decoder(masked=False).feed(server.lower.take()) == [(PONG, b"?")]
    await server.over()


@pytest.mark.parametrize("borrows", [False, True])
async def test_boundaries_stay_however_reads_are_cut(borrows: bool) -> None:
    rng = random.Random(3)
    for _ in range(60):
        expected, wire = [], b""
        for _ in range(rng.randrange(1, 12)):
            parts = [
                rng.randbytes(rng.choice((0, 0, 1, 5, 200)))
                for _ in range(rng.choice((1, 1, 2, 4)))
            ]
            expected.append(b"".join(parts))
            for number, part in enumerate(parts):
                opcode = CONTINUATION if number else rng.choice((BINARY, TEXT))
                key = rng.choice((KEY, NO_MASK))
                wire += up(opcode, part, final=number == len(parts) - 1, key=key)
                if rng.random() < 0.2:
                    wire += up(PONG)
        server = Side(borrows=borrows)
        shared = bytearray(len(wire))  # as the sockets' buffer, which is used again
        at = 0
        while at < len(wire):
            size = rng.choice((1, 2, 7, 100, 1000))
            piece = wire[at : at + size]
            shared[: len(piece)] = piece
            server.lower.protocol.data_received(memoryview(shared)[: len(piece)])
            shared[:] = bytes(len(shared))
            at += size
        assert server.upper.messages == expected
        await server.over()


async def test_message_above_the_limit_ends_the_connection_early() -> None:
    for before in ([], [up(BINARY, bytes(LIMIT - 100), final=False)]):
        server = Side()
        server.feed(up(BINARY, bytes(LIMIT)), *before)
        assert len(server.upper.messages) == 1
        opcode = CONTINUATION if before else BINARY
        server.feed(up(opcode, bytes(LIMIT + 1))[:14])  # its header
        await turns()
        assert isinstance(server.upper.error, PeerError)
        assert "message of more than 100000 bytes" in str(server.upper.error)
        assert len(server.upper.messages) == 1


async def test_tiny_fragments_take_no_more_memory_than_their_bytes() -> None:
    server = Side()
    server.feed(up(BINARY, b"0", final=False))
    for _ in range(50):
        server.feed(up(CONTINUATION, b"x", final=False) * 100)
    assert not server.layer._parts
    assert len(server.layer._held) == 5001
    server.feed(up(CONTINUATION))
    assert server.upper.messages == [b"0" + b"x" * 5000]
    await server.over()


async def test_recorded_fragments_are_one_message() -> None:
    events = vector("p-anyproxy-fragmented-message")
    expected = [
        bytes.fromhex(event["message"])
        for event in events
        if event["dir"] == "c2s" and "message" in event
    ]
    server = Side()
    server.feed(stream_of(events, "c2s").partition(b"\r\n\r\n")[2])
    assert server.upper.messages == expected
    await server.over()


async def test_close_frame_and_bare_end_are_ordinary_ends() -> None:
    for end in (up(CLOSE, close_payload(1000)), b""):
        server = Side()
        server.feed(up(BINARY, b"x") + end)
        if not end:
            server.lower.protocol.eof_received()
        assert server.upper.eof
        server.layer.close()
        await turns()
        assert server.upper.error is None


async def test_nothing_follows_when_the_protocol_above_closes() -> None:
    server = Side()
    server.upper.on_data = lambda _: server.layer.close()
    server.feed(up(BINARY, b"one"), up(BINARY, b"two"))
    assert server.upper.messages == [b"one"]
    await server.over()


async def test_peer_that_sends_nothing_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    server = Side()
    server.lower.buffered = 100_000  # an upload that the peer does not answer
    await clock.passes(keepalive.INTERVAL[1])
    assert Decoder(masked=False).feed(server.lower.take()) == [(PING, b"")]
    server.feed(up(PONG))
    assert server.layer.heard_at == clock.now
    await clock.passes(keepalive.DEAD_TIME - 1)
    assert not server.upper.lost
    await clock.passes(keepalive.CHECK_INTERVAL + 1)
    assert isinstance(server.upper.error, NetworkError)
    assert server.lower.aborted
