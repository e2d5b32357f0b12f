"""Half-close of WebSocket connections whose peer is this program too."""

from __future__ import annotations

import pytest

from mtt.errors import PeerError
from mtt.layers import websocket
from mtt.wire.websocket import BINARY, CLOSE, NO_MASK, PING, PONG, TEXT, frame
from tests.layers.websocket_side import QUESTION, SIGN, Side, closing, up
from tests.support.transports import turns


async def test_both_sides_learn_of_half_close_and_use_it() -> None:
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
async def test_ask_half_close_sends_one_ping(client: bool) -> None:
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


async def test_late_sign_enables_half_close() -> None:
    side = Side(client=True, half_close=True)
    side.layer.ask_half_close()
    side.feed(frame(TEXT, b""))
    assert side.layer.can_write_eof()
    assert side.layer.half_closes() is not None
    assert side.said() == [(PING, QUESTION), (TEXT, b"")]
    await side.over()


async def test_unanswered_question_times_out_as_no_half_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "ANSWER_TIME", 0.0)
    side = Side(client=True, half_close=True)
    side.layer.ask_half_close()
    assert side.layer.half_closes() is False
    await side.over()


@pytest.mark.parametrize("client", [False, True])
async def test_peer_without_sign_has_no_half_close(client: bool) -> None:
    side = Side(client=client, half_close=True)
    side.feed(frame(BINARY, b"data", None if client else NO_MASK))
    assert not side.layer.can_write_eof()
    await side.over()


async def test_sign_is_ignored_without_half_close() -> None:
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


async def test_close_frame_after_end_of_data_is_a_reset() -> None:
    server = Side(half_close=True)
    server.feed(SIGN, up(BINARY, b"x"), SIGN, SIGN, closing(1000))
    assert server.upper.data == b"x"
    assert server.upper.eof
    assert server.layer.is_closing()
    assert server.lower.aborted
    assert isinstance(await server.upper.ended(), ConnectionResetError)


async def test_close_frame_after_both_ends_is_an_ordinary_end() -> None:
    server = Side(half_close=True)
    server.feed(SIGN, up(BINARY, b"x"), SIGN)
    server.layer.write_eof()
    server.feed(closing(1000))
    assert not server.lower.aborted
    server.lower.lose(None)
    assert await server.upper.ended() is None


async def test_data_after_end_of_data_is_a_peer_error() -> None:
    server = Side(half_close=True)
    server.feed(SIGN, SIGN, up(BINARY, b"x"))
    assert isinstance(await server.upper.ended(), PeerError)
    assert not server.upper.data
    server.lower.lose(None)
    await turns()
