"""Answers in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from mtt.http.exchange import Exchange
from mtt.wire.http1 import Reply
from tests.http.handled import GET, Client, bodies, pieces
from tests.support.transports import turns


@pytest.mark.parametrize(
    ("request_", "framing", "body"),
    [
        (GET, b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n3\r\nyou\r\n0\r\n\r\n"),
        (GET.replace(b"GET", b"HEAD"), b"Transfer-Encoding: chunked\r\n", b""),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", b"", b"helloyou"),
    ],
)
async def test_an_answer_of_unknown_length(request_: bytes, framing: bytes, body: bytes) -> None:
    async def stream(exchange: Exchange) -> None:
        await exchange.stream(Reply(200), pieces(b"hello", b"", b"you"))

    client = Client(stream)
    head, _, rest = (await client.send(request_)).partition(b"\r\n\r\n")
    assert head.partition(b" GMT\r\n")[2] + b"\r\n" == (framing or b"\r\n")
    assert rest == body
    assert client.is_ended is not bool(framing)
    await client.leave()
    assert client.failures == []


@pytest.mark.parametrize("as_nginx", [False, True])
async def test_an_answer_of_known_length(as_nginx: bool) -> None:
    async def stream(exchange: Exchange) -> None:
        await exchange.stream(Reply(200), pieces(b"hello", b"you"), 8)

    client = Client(stream, as_nginx=as_nginx)
    answers = await client.send(GET + GET)
    assert bodies(answers) == [b"helloyou"] * 2
    assert (b"\r\nServer: nginx\r\n" in answers) is as_nginx
    head = await client.send(GET.replace(b"GET", b"HEAD"))
    assert b"\r\nContent-Length: 8\r\n" in head
    assert head.endswith(b"\r\n\r\n")
    await client.leave()


@pytest.mark.parametrize("length", [7, 9])
async def test_a_wrong_length_cuts_the_connection(length: int) -> None:
    async def stream(exchange: Exchange) -> None:
        await exchange.stream(Reply(200), pieces(b"hello", b"you"), length)

    client = Client(stream)
    await client.send(GET)
    assert client.transport.was_cut
    assert len(client.failures) == 1


async def test_an_answer_in_pieces_as_by_nginx() -> None:
    async def stream(exchange: Exchange) -> None:
        await exchange.stream(Reply(200, (("Content-Type", "x/y"),)), pieces(b"hello"))

    client = Client(stream, as_nginx=True)
    head, _, rest = (await client.send(GET)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: ")
    assert head.partition(b" GMT\r\n")[2] == (
        b"Content-Type: x/y\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive"
    )
    assert rest == b"5\r\nhello\r\n0\r\n\r\n"
    answer = await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert b"Content-Type: x/y\r\nConnection: close\r\n\r\nhello" in answer
    assert client.is_ended
    await client.leave()


async def test_a_failure_within_an_answer_cuts_the_connection() -> None:
    async def break_off() -> AsyncGenerator[bytes, None]:
        yield b"hello"
        raise KeyError("x")

    async def stream(exchange: Exchange) -> None:
        await exchange.stream(Reply(200), break_off())

    client = Client(stream)
    assert (await client.send(GET + GET)).endswith(b"\r\n\r\n5\r\nhello\r\n")
    assert client.transport.was_cut
    await client.leave()
    assert client.failures == ["'x'"]


async def test_a_client_that_does_not_read_stops_the_source() -> None:
    made = 0
    is_closed = False

    async def endless() -> AsyncGenerator[bytes, None]:
        nonlocal made, is_closed
        try:
            while True:
                made += 1
                yield b"x"
                await asyncio.sleep(0)
        finally:
            is_closed = True

    async def stream(exchange: Exchange) -> None:
        await exchange.stream(Reply(200), endless())

    client = Client(stream)
    await client.send(GET)
    client.server.pause_writing()
    await turns()
    stopped = made
    await turns(100)
    assert made == stopped
    client.server.resume_writing()
    await turns()
    assert made > stopped
    assert not is_closed
    await client.leave()
    assert is_closed
