"""The WebSocket layer over a fake connection: control frames, ends, half-close."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mtt.errors import NetworkError, PeerError
from mtt.layers import websocket
from mtt.layers.parked import park
from mtt.layers.websocket import CONTROL_BACKLOG, WebSocketLayer
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
    close_payload,
    frame,
)
from tests.support.transports import FakeLayer, FakeTransport, Recorder, turns

QUESTION = b"half-close"  # what a ping says that asks for it
SIGN = frame(TEXT, b"", NO_MASK)  # of our own clients


class Side:
    """A layer, a server's unless told otherwise, and what happened above and below it."""

    def __init__(
        self, *, client: bool = False, lower: type[FakeTransport] = FakeLayer, early: bytes = b"",
        half_close: bool = False, random_mask: bool = False, upper: Recorder | None = None,
    ) -> None:  # fmt: skip
        self.upper = upper or Recorder()
        self.lower = lower()
        self.layer = WebSocketLayer(
            self.upper, client=client, half_close=half_close, random_mask=random_mask
        )
        self._client = client
        self.lower.pause_reading()
        park(self.lower, early)
        self.layer.start(self.lower)

    def feed(self, *frames: bytes) -> None:
        self.lower.protocol.data_received(b"".join(frames))

    def said(self) -> list[tuple[int, bytes]]:
        events = Decoder(masked=self._client).feed(self.lower.take())
        return [(opcode, bytes(payload)) for opcode, payload in events]

    async def over(self) -> None:
        self.lower.lose(None)
        await turns()
        assert self.upper.lost


def up(opcode: int, payload: bytes = b"") -> bytes:
    """A client's frame."""
    return frame(opcode, payload, b"\x12\x34\x56\x78")


def closing(code: int, reason: str = "") -> bytes:
    return up(CLOSE, close_payload(code, reason))


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


async def test_a_question_is_answered_by_its_own_pong_only() -> None:
    client = Side(client=True)
    assert client.layer.ask()
    (first,) = client.said()
    client.feed(frame(PONG, b""), frame(BINARY, b"data"))
    assert not client.layer.has_answered()
    client.layer.ask()
    (second,) = client.said()
    client.feed(frame(PONG, first[1]))
    assert not client.layer.has_answered()
    client.feed(frame(PONG, second[1]))
    assert client.layer.has_answered()
    await client.over()


@pytest.mark.parametrize("random_mask", [False, True])
async def test_a_client_masks(random_mask: bool) -> None:
    client = Side(client=True, random_mask=random_mask)
    client.layer.write(b"secret")
    client.layer.write(b"secret")
    first, second = client.lower.writes
    assert first[1] & 0x80
    assert (first[2:6] == NO_MASK) is not random_mask
    assert (first == second) is not random_mask
    assert Decoder(masked=True).feed(first) == [(BINARY, b"secret")]
    await client.over()


async def test_what_came_right_behind_the_upgrade() -> None:
    server = Side(early=up(BINARY, b"early") + up(PING, b"?")[:3])
    assert server.upper.data == b"early"
    server.feed(up(PING, b"?")[3:])
    assert server.said() == [(PONG, b"?")]
    await server.over()


async def test_an_upper_that_is_not_ready_gets_it_later() -> None:
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
    server.feed(up(BINARY, b"nobody listens behind a close"))
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


async def test_a_peer_that_pings_but_does_not_read_gets_no_more_pongs() -> None:
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


# Ends.


@pytest.mark.parametrize("code", [1000, 1001, 1005])
@pytest.mark.parametrize("lower", [FakeTransport, FakeLayer])
async def test_an_orderly_close_is_the_end_of_both(code: int, lower: type[FakeTransport]) -> None:
    server = Side(lower=lower, upper=Recorder(stay=False))
    server.feed(up(BINARY, b"all"), closing(code, "ignored" if code != 1005 else ""))
    assert server.upper.data == b"all"
    assert server.upper.eof
    assert server.layer.is_closing()
    server.layer.write(b"late")
    # The same code, no text (as gorilla does it), and once.
    assert server.said() == [(CLOSE, close_payload(code))]
    server.layer.close()
    server.lower.lose(None)
    assert await server.upper.ended() is None


async def test_nothing_counts_behind_a_close_frame() -> None:
    server = Side()
    server.feed(closing(1000), up(BINARY, b"x"), closing(1000), up(PING))
    server.feed(up(BINARY, b"y"), up(PING), closing(1000), b"\xff\xff")
    assert not server.upper.data
    assert server.said() == [(CLOSE, b"\x03\xe8")]
    assert not server.layer.is_closing()  # the upper wanted to stay
    server.layer.write(b"nobody reads it")
    server.layer.close()
    assert server.said() == []
    server.lower.lose(None)
    assert await server.upper.ended() is None


@pytest.mark.parametrize("lower", [FakeTransport, FakeLayer])
@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (closing(1011, "out of coffee"), "code 1011: 'out of coffee'"),
        (closing(4000), "code 4000"),
        (closing(1006), "invalid close code"),
        (up(CLOSE, b"\x03"), "invalid close code"),
        (up(CLOSE, b"\x03\xe8\xff"), "utf8"),
        (frame(BINARY, b"unmasked"), "mask"),
        (up(0xB), "opcode"),
    ],
)
async def test_failures_are_told_once_and_answered(
    stream: bytes, words: str, lower: type[FakeTransport]
) -> None:
    server = Side(lower=lower)
    server.feed(stream)
    ((opcode, answer),) = server.said()
    code = int.from_bytes(answer[:2], "big")
    assert opcode == CLOSE
    assert code == (int(words[5:9]) if words.startswith("code") else 1002)
    assert (len(answer) > 2) is (code == 1002)
    assert server.layer.is_closing()
    assert isinstance(await server.upper.ended(), PeerError)
    assert words in str(server.upper.error)
    assert not server.upper.eof
    server.feed(up(BINARY, b"late"))
    server.lower.lose(None)
    await turns()  # a second connection_lost would fail in the recorder


@pytest.mark.parametrize("lower", [FakeTransport, FakeLayer])
async def test_the_end_without_a_close_frame_is_a_cut(lower: type[FakeTransport]) -> None:
    whole = up(BINARY, b"some")
    for half_close, received in (
        (True, SIGN + whole),  # one of our own ends
        (False, whole + up(BINARY, b"cut off")[:-1]),
        (False, whole + b"\x82"),
        (False, b""),  # a Go server that could not connect
    ):
        server = Side(lower=lower, half_close=half_close)
        server.feed(received)
        assert server.lower.protocol.eof_received()
        error = await server.upper.ended()
        assert isinstance(error, NetworkError)
        assert "without a WebSocket close" in str(error)
        assert not server.upper.eof
        server.lower.lose(None)
        await turns()


@pytest.mark.parametrize("half_close", [False, True])
async def test_a_go_peer_may_end_without_a_close_frame(half_close: bool) -> None:
    server = Side(half_close=half_close)
    server.feed(up(BINARY, b"whole"))
    assert server.lower.protocol.eof_received()
    await turns()
    assert server.upper.data == b"whole"
    assert server.upper.eof
    assert not server.upper.lost
    await server.over()


async def test_cut_delivers_and_sends_no_close_frame() -> None:
    server = Side()
    server.layer.write(b"last")
    server.layer.cut()
    server.layer.cut()
    assert server.said() == [(BINARY, b"last")]
    assert server.layer.is_closing()
    assert await server.upper.ended() is None


async def test_cut_behind_our_end_tells_a_peer_of_ours_at_once() -> None:
    server = Side(half_close=True)
    server.feed(SIGN)
    server.lower.take()
    server.layer.write_eof()
    server.layer.cut()
    assert server.said() == [(TEXT, b""), (CLOSE, b"\x03\xe8")]
    assert await server.upper.ended() is None


async def test_a_lost_connection_is_a_failure() -> None:
    for exc in (None, ConnectionResetError(104, "reset")):
        server = Side()
        server.lower.lose(exc)
        error = await server.upper.ended()
        assert error is exc or isinstance(error, NetworkError)
        assert server.layer.is_closing()


async def test_close_says_1000() -> None:
    client = Side(client=True)
    client.layer.write(b"last")
    client.layer.close()
    client.layer.close()
    client.layer.write(b"late")
    assert client.said() == [(BINARY, b"last"), (CLOSE, b"\x03\xe8")]
    assert await client.upper.ended() is None


async def test_abort_says_nothing() -> None:
    client = Side(client=True)
    client.layer.abort()
    assert client.lower.aborted
    assert client.lower.take() == b""
    assert await client.upper.ended() is None


async def test_the_upper_closes_on_the_data_before_a_close_frame() -> None:
    server = Side()
    server.upper.on_data = lambda _data: server.layer.close()
    server.feed(up(BINARY, b"bye"), closing(1000))
    assert server.said() == [(CLOSE, b"\x03\xe8")]
    assert await server.upper.ended() is None
    assert not server.upper.eof


async def test_a_closed_layer_leaves_the_lingering_connection_alone() -> None:
    # Paused, it would never see the peer's end.
    server = Side(lower=FakeTransport)
    server.layer.close()
    server.layer.pause_reading()
    assert server.lower.reading
    server.lower.lose(None)
    assert await server.upper.ended() is None


async def test_data_before_a_violation_are_handed_up() -> None:
    server = Side()
    server.feed(up(BINARY, b"whole, "), up(BINARY, b"all of it"), b"\xff\xff")
    assert server.upper.data == b"whole, all of it"
    error = await server.upper.ended()
    assert isinstance(error, PeerError)
    assert "reserved bits" in str(error)
    assert not server.upper.eof
    server.lower.lose(None)
    await turns()


# Half-close between our own ends.


async def test_the_ends_get_to_know_each_other() -> None:
    server = Side(half_close=True)
    client = Side(client=True, half_close=True)
    assert not client.layer.can_write_eof()
    client.layer.write(b"before")
    client.feed(server.lower.take())
    assert client.layer.can_write_eof()
    server.layer.ask_half_close()
    assert server.layer.half_closes() is None
    client.layer.write(b"behind")
    server.feed(client.lower.take())
    assert server.layer.can_write_eof()
    assert server.upper.data == b"beforebehind"
    assert server.upper.calls == 1  # the upper may have paused in the first
    client.layer.write_eof()
    client.layer.write_eof()
    client.layer.write(b"late")
    server.feed(client.lower.take())
    assert server.upper.eof
    server.layer.write(b"reply")
    server.layer.write_eof()
    client.feed(server.lower.take())
    assert client.upper.data == b"reply"
    assert client.upper.eof
    client.layer.close()
    assert client.said() == [(PONG, QUESTION), (CLOSE, b"\x03\xe8")]
    await client.over()
    await server.over()


@pytest.mark.parametrize("client", [False, True])
async def test_a_peer_is_asked_once_when_its_greeting_is_wanted(client: bool) -> None:
    side = Side(client=client, half_close=True)
    side.lower.take()
    assert side.layer.half_closes() is None
    assert side.said() == []
    side.layer.ask_half_close()
    side.layer.ask_half_close()
    assert side.layer.half_closes() is None
    assert side.said() == [(PING, QUESTION)]
    assert side.layer.unsent() == 0
    key = None if client else NO_MASK
    side.feed(frame(PONG, b"another", key))
    assert side.layer.half_closes() is None
    side.feed(frame(PONG, QUESTION, key))
    assert side.layer.half_closes() is not None
    assert not side.layer.can_write_eof()
    await side.over()


async def test_a_greeting_that_comes_late() -> None:
    side = Side(client=True, half_close=True)
    side.layer.ask_half_close()
    side.feed(frame(TEXT, b""))
    assert side.layer.can_write_eof()
    assert side.layer.half_closes() is not None
    assert side.said() == [(PING, QUESTION), (TEXT, b"")]
    await side.over()


async def test_a_question_is_not_open_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "ANSWER_TIME", 0.0)
    side = Side(client=True, half_close=True)
    side.layer.ask_half_close()
    assert side.layer.half_closes() is False
    await side.over()


@pytest.mark.parametrize("client", [False, True])
async def test_a_peer_that_never_greets_has_no_half_close(client: bool) -> None:
    side = Side(client=client, half_close=True)
    side.feed(frame(BINARY, b"data", None if client else NO_MASK))
    assert not side.layer.can_write_eof()
    await side.over()


async def test_signs_mean_nothing_where_they_were_not_agreed_upon() -> None:
    server = Side()
    server.feed(SIGN, SIGN, up(BINARY, b"x"))
    assert server.upper.data == b"x"
    assert not server.upper.eof
    assert not server.layer.can_write_eof()
    assert server.lower.take() == b""
    await server.over()


async def test_a_close_frame_ends_half_close() -> None:
    server = Side(half_close=True)
    server.feed(SIGN, closing(1000))
    assert server.upper.eof
    assert not server.layer.can_write_eof()
    await server.over()


async def test_a_close_frame_behind_the_end_of_data() -> None:
    server = Side(half_close=True)
    server.feed(SIGN, up(BINARY, b"x"), SIGN, SIGN, closing(1000))
    assert server.upper.data == b"x"
    assert server.upper.eof
    assert server.layer.is_closing()
    assert server.lower.aborted
    assert isinstance(await server.upper.ended(), ConnectionResetError)


async def test_an_end_in_both_directions_closes() -> None:
    server = Side(half_close=True)
    server.feed(SIGN, up(BINARY, b"x"), SIGN)
    server.layer.write_eof()
    server.feed(closing(1000))
    assert not server.lower.aborted
    server.lower.lose(None)
    assert await server.upper.ended() is None


async def test_data_behind_the_end_of_data_is_the_peers_fault() -> None:
    server = Side(half_close=True)
    server.feed(SIGN, SIGN, up(BINARY, b"x"))
    assert isinstance(await server.upper.ended(), PeerError)
    assert not server.upper.data
    server.lower.lose(None)
    await turns()


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
