"""The client's opening handshake: what it waits for, and what it takes for an answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from mtt.errors import MttError, NetworkError, PeerError
from mtt.layers.parked import Parked, hand_over
from mtt.layers.upgrade import UpgradeClient
from mtt.wire.heads import MAX_INTERIM
from mtt.wire.http1 import MAX_HEAD, parse_request
from mtt.wire.upgrade import switching_protocols
from tests.support.transports import FakeTransport, Recorder, turns


def asking() -> tuple[UpgradeClient, FakeTransport, bytes]:
    """A client that has asked, and the proper answer."""
    transport = FakeTransport()
    transport.pause_reading()
    client = UpgradeClient(transport, "/ws?x", "test.local", ("smux_off",))
    request = parse_request(transport.take())
    assert request.target == "/ws?x"
    assert request.host == "test.local"
    assert request.first("sec-websocket-protocol") == "smux_off"
    assert transport.reading
    assert transport.protocol is client
    key = request.first("sec-websocket-key")
    assert key
    return client, transport, switching_protocols(key, "smux_off")


async def test_every_request_has_a_new_key() -> None:
    assert asking()[2] != asking()[2]


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("behind", [b"", b"\x82\x05hello"])
async def test_answer_may_come_in_pieces(size: int, behind: bytes) -> None:
    client, transport, answer = asking()
    waiting = asyncio.create_task(client.answered())
    # No piece carries more than the end of the head and what came with it.
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    pieces[-1] += behind
    for piece in pieces[:-1]:
        client.data_received(piece)
        await turns(2)
        assert not waiting.done()
        assert transport.reading
    client.data_received(pieces[-1])
    assert not transport.reading  # the next protocol decides when to go on
    await waiting
    assert client.early == behind


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\n\r\n404 page not found\n", "404"),
        (b"HTTP/1.1 301 Moved Permanently\r\nLocation: /ws/\r\n\r\n", "301"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
         b"Connection: Upgrade\r\nSec-WebSocket-Accept: bogus=\r\n\r\n", "Sec-WebSocket-Accept"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "does not speak HTTP"),
        (b"\x00\x01\x02\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 101 X\r\nX: " + b"x" * MAX_HEAD, "larger than"),
    ],
    ids=["404", "301", "wrong accept", "ssh", "binary", "endless"],
)  # fmt: skip
async def test_other_answers_are_peer_errors(answer: bytes, words: str) -> None:
    client, transport, _ = asking()
    for at in range(0, len(answer), 1000):
        client.data_received(answer[at : at + 1000])
    with pytest.raises(PeerError, match=words):
        await client.answered()
    client.data_received(b"whatever comes then")
    client.connection_lost(None)
    assert not transport.closing  # that is for who asked


@pytest.mark.parametrize("size", [1, 7, 100_000])
@pytest.mark.parametrize("count", [1, MAX_INTERIM])
async def test_interim_responses_are_skipped(size: int, count: int) -> None:
    client, transport, answer = asking()
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>\r\n\r\n"
    answer = hints * (count - 1) + b"HTTP/1.1 100 Continue\r\n\r\n" + answer
    for at in range(0, len(answer) - 1, size):
        client.data_received(answer[: len(answer) - 1][at : at + size])
    assert transport.reading
    client.data_received(answer[-1:] + b"\x82\x05hello")
    await client.answered()
    assert client.early == b"\x82\x05hello"


async def test_answer_behind_a_longer_interim_response_is_found() -> None:
    client, _, answer = asking()
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </" + b"x" * len(answer) + b">\r\n\r\n"
    client.data_received(hints[:-1])
    client.data_received(hints[-1:] + answer)
    await client.answered()
    assert client.early == b""


async def test_too_many_interim_responses_are_refused() -> None:
    client, _, answer = asking()
    client.data_received(b"HTTP/1.1 103 Early Hints\r\n\r\n" * (MAX_INTERIM + 1) + answer)
    with pytest.raises(PeerError, match="interim"):
        await client.answered()


async def test_interim_responses_do_not_hide_a_refusal() -> None:
    client, _, _ = asking()
    client.data_received(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\n\r\n")
    with pytest.raises(PeerError, match="404"):
        await client.answered()


async def test_an_answer_above_the_bound_in_one_piece_is_refused() -> None:
    client, _, answer = asking()
    client.data_received(answer[:-2] + b"X: " + b"x" * MAX_HEAD + b"\r\n\r\n")
    with pytest.raises(PeerError, match="larger than"):
        await client.answered()


async def test_endless_answer_is_not_collected() -> None:
    client, _, _ = asking()
    waiting = asyncio.create_task(client.answered())
    received = 0
    while not waiting.done():
        client.data_received(b"x" * 10_000)
        received += 10_000
        await turns(3)
    assert received < MAX_HEAD + 20_000
    with pytest.raises(PeerError):
        await waiting


@pytest.mark.parametrize("exc", [None, ConnectionResetError(104, "x"), NetworkError("cut off")])
async def test_lost_connection_is_a_network_error(exc: Exception | None) -> None:
    client, transport, answer = asking()
    client.data_received(answer[:50])
    transport.lose(exc)
    with pytest.raises(NetworkError) as caught:
        await client.answered()
    assert exc is None or str(caught.value) in ("connection reset by peer", "cut off")


async def test_end_without_an_answer_is_a_network_error() -> None:
    client, transport, _ = asking()
    assert client.eof_received()
    with pytest.raises(NetworkError, match="without an HTTP response"):
        await client.answered()
    transport.lose(None)
    await turns()


@pytest.mark.parametrize(
    "happens",
    [
        lambda parked: parked.eof_received(),
        lambda parked: parked.connection_lost(ConnectionResetError(104, "x")),
        lambda parked: parked.data_received(b"SSH-2.0-OpenSSH_9\r\n\r\n"),
    ],
    ids=["end", "loss", "data"],
)
async def test_events_before_the_request_count(happens: Callable[[Parked], object]) -> None:
    parked = Parked()
    transport = FakeTransport(parked)
    parked.connection_made(transport)
    happens(parked)
    with pytest.raises(MttError):
        await UpgradeClient(transport, "/", "test.local", ("smux_off",)).answered()


@pytest.mark.parametrize("dead", [False, True])
async def test_events_after_the_answer_are_kept(dead: bool) -> None:
    """Until the next protocol takes over, as on any held connection."""
    client, transport, answer = asking()
    client.data_received(answer + b"one")
    client.data_received(b"two")  # a layer below had it in hand
    assert client.eof_received()
    if dead:
        transport.lose(ConnectionResetError(104, "reset"))
        await turns()
    await client.answered()
    recorder = Recorder()
    hand_over(transport, recorder)
    assert recorder.data == b"onetwo"
    assert recorder.eof
    assert isinstance(recorder.error, ConnectionResetError) == dead


async def test_cancelled_upgrade_ignores_what_follows() -> None:
    client, _, answer = asking()
    waiting = asyncio.create_task(client.answered())
    await turns()
    waiting.cancel()
    await asyncio.wait([waiting])
    client.pause_writing()
    client.resume_writing()
    client.data_received(answer)
    client.connection_lost(None)


async def test_damaged_answer_is_an_error_or_does_no_harm() -> None:
    rng = random.Random(81)
    for _ in range(300):
        client, _, answer = asking()
        noise = bytearray(answer)
        for _ in range(rng.randrange(1, 4)):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        while noise:
            size = rng.randrange(1, 80)
            client.data_received(bytes(noise[:size]))
            del noise[:size]
        client.connection_lost(None)
        try:
            await client.answered()
        except MttError as error:
            assert str(error)
