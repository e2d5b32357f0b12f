"""The client's CONNECT: what it takes for an answer, and what happens without one."""

from __future__ import annotations

import asyncio

import pytest

from mtt.errors import MttError, NetworkError, PeerError
from mtt.layers.connect import ConnectClient
from mtt.layers.parked import hand_over
from mtt.wire.http1 import MAX_HEAD
from tests.support.transports import FakeTransport, Recorder, turns

REQUEST = b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"
ANSWER = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n"


def asking() -> tuple[ConnectClient, FakeTransport]:
    """A client that has asked."""
    client = ConnectClient(REQUEST)
    transport = FakeTransport(client)
    client.connection_made(transport)
    assert transport.take() == REQUEST
    return client, transport


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("interim", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_answer_may_come_in_pieces(size: int, interim: bytes) -> None:
    client, transport = asking()
    waiting = asyncio.create_task(client.answer())
    answer = interim + ANSWER
    for at in range(0, len(answer), size):
        await turns(2)
        assert not waiting.done()
        assert transport.reading
        client.data_received(answer[at : at + size])
    response = await waiting
    assert (response.status, response.reason) == (200, "Connection established")
    assert not transport.reading  # until the next protocol takes over
    assert client.early == b""


async def test_next_protocol_takes_over() -> None:
    client, transport = asking()
    client.data_received(ANSWER)
    await client.answer()
    upper = Recorder()
    hand_over(transport, upper)
    assert upper.transport is transport
    assert transport.reading


async def test_failure_after_the_answer_reaches_the_next_protocol() -> None:
    client, transport = asking()
    client.data_received(ANSWER)
    await client.answer()
    transport.lose(ConnectionResetError(104, "x"))
    await turns()
    upper = Recorder()
    hand_over(transport, upper)
    assert isinstance(upper.error, ConnectionResetError)


async def test_data_behind_the_answer_is_kept() -> None:
    client, transport = asking()
    client.data_received(ANSWER + b"HTTP")
    assert not transport.reading
    client.data_received(b"/1.1")  # read before the pause
    await client.answer()
    assert client.early == b"HTTP/1.1"


async def test_refusal_is_an_answer_too() -> None:
    client, transport = asking()
    client.data_received(b"HTTP/1.0 403 Forbidden\r\n\r\nno")
    assert client.eof_received()
    client.connection_lost(None)
    assert (await client.answer()).status == 403
    assert not transport.closing  # that is for the caller


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "^it does not speak HTTP: malformed status line$"),
        (b"\x05\xff\r\n\r\n", "^it does not speak HTTP: "),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD, "larger than"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 6, "^more than 5 interim responses"),
    ],
    ids=["ssh", "socks", "endless", "interim"],
)
async def test_what_is_no_answer(answer: bytes, words: str) -> None:
    client, transport = asking()
    client.data_received(answer)
    client.data_received(b"whatever comes then")
    client.connection_lost(None)
    for _ in range(2):
        with pytest.raises(PeerError, match=words):
            await client.answer()
    assert not transport.reading


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (None, "it closed the connection without an answer"),
        (ConnectionResetError(104, "x"), "connection reset by peer"),
    ],
)
@pytest.mark.parametrize("received", [b"", ANSWER[:-1]])
async def test_lost_connection(error: Exception | None, text: str, received: bytes) -> None:
    client, transport = asking()
    if received:
        client.data_received(received)
    transport.lose(error)
    with pytest.raises(NetworkError, match=f"^{text}$"):
        await client.answer()


async def test_end_without_an_answer() -> None:
    client, _ = asking()
    client.eof_received()
    with pytest.raises(MttError, match=r"^it closed the connection without an answer$"):
        await client.answer()
