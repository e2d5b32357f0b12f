"""How a WebSocket connection ends: close frames, cuts, failures."""

from __future__ import annotations

import pytest

from mtt.errors import NetworkError, PeerError
from mtt.wire.websocket import BINARY, CLOSE, PING, TEXT, close_payload, frame
from tests.layers.websocket_side import SIGN, Side, closing, up
from tests.support.transports import FakeLayer, FakeTransport, Recorder, turns


@pytest.mark.parametrize("code", [1000, 1001, 1005])
@pytest.mark.parametrize("lower", [FakeTransport, FakeLayer])
async def test_orderly_close_ends_both_directions(code: int, lower: type[FakeTransport]) -> None:
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


async def test_frames_after_a_close_frame_are_ignored() -> None:
    server = Side()
    server.feed(closing(1000), up(BINARY, b"x"), closing(1000), up(PING))
    server.feed(up(BINARY, b"y"), up(PING), closing(1000), b"\xff\xff")
    assert not server.upper.data
    assert server.said() == [(CLOSE, b"\x03\xe8")]
    assert not server.layer.is_closing()  # the upper wanted to stay
    server.layer.write(b"ignored")
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
async def test_failures_are_reported_once_and_answered(
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
async def test_end_of_data_without_a_close_frame_is_a_failure(lower: type[FakeTransport]) -> None:
    whole = up(BINARY, b"some")
    for half_close, received in (
        (True, SIGN + whole),  # one of our own ends
        (True, whole),  # the same, known by its key: its marker answers ours, and may be late
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


@pytest.mark.parametrize("client", [False, True])
async def test_a_go_peer_may_end_without_a_close_frame(client: bool) -> None:
    side = Side(client=client, half_close=client)  # a client offers half-close to any server
    side.feed(frame(BINARY, b"whole", None) if client else up(BINARY, b"whole"))
    assert side.lower.protocol.eof_received()
    await turns()
    assert side.upper.data == b"whole"
    assert side.upper.eof
    assert not side.upper.lost
    await side.over()


async def test_a_client_is_known_by_its_key_from_the_start() -> None:
    assert Side(half_close=True).lower.is_ours
    assert not Side().lower.is_ours
    assert not Side(client=True, half_close=True).lower.is_ours


async def test_cut_delivers_and_sends_no_close_frame() -> None:
    server = Side()
    server.layer.write(b"last")
    server.layer.cut()
    server.layer.cut()
    assert server.said() == [(BINARY, b"last")]
    assert server.layer.is_closing()
    assert await server.upper.ended() is None


async def test_cut_after_write_eof_sends_a_close_frame() -> None:
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


async def test_close_sends_code_1000() -> None:
    client = Side(client=True)
    client.layer.write(b"last")
    client.layer.close()
    client.layer.close()
    client.layer.write(b"late")
    assert client.said() == [(BINARY, b"last"), (CLOSE, b"\x03\xe8")]
    assert await client.upper.ended() is None


async def test_abort_sends_nothing() -> None:
    client = Side(client=True)
    client.layer.abort()
    assert client.lower.aborted
    assert client.lower.take() == b""
    assert await client.upper.ended() is None


async def test_protocol_closes_on_data_before_a_close_frame() -> None:
    server = Side()
    server.upper.on_data = lambda _data: server.layer.close()
    server.feed(up(BINARY, b"bye"), closing(1000))
    assert server.said() == [(CLOSE, b"\x03\xe8")]
    assert await server.upper.ended() is None
    assert not server.upper.eof


async def test_pause_reading_after_close_does_not_reach_the_transport() -> None:
    # Paused, it would never see the peer's end.
    server = Side(lower=FakeTransport)
    server.layer.close()
    server.layer.pause_reading()
    assert server.lower.reading
    server.lower.lose(None)
    assert await server.upper.ended() is None


async def test_data_before_a_violation_are_delivered() -> None:
    server = Side()
    server.feed(up(BINARY, b"whole, "), up(BINARY, b"all of it"), b"\xff\xff")
    assert server.upper.data == b"whole, all of it"
    error = await server.upper.ended()
    assert isinstance(error, PeerError)
    assert "reserved bits" in str(error)
    assert not server.upper.eof
    server.lower.lose(None)
    await turns()
