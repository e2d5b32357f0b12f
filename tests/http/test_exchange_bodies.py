"""Bodies of requests: limits, and those that handlers do not read."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from mtt.errors import NetworkError
from mtt.http.exchange import Exchange
from mtt.http.limits import MAX_DISCARD, OPERATORS
from mtt.wire.http1 import text_reply
from tests.http.handled import CHUNKED, EXPECT, GET, LIMIT, Client, bodies, echo, ignore, post
from tests.support.transports import turns


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT])
async def test_bodies_have_a_limit(size: int) -> None:
    for wire in (
        post(size) + b"x" * size,
        CHUNKED + b"%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n",
        CHUNKED + b"1\r\nx\r\n" * size + b"0\r\n\r\n",
    ):
        client = Client()
        answer = await client.send(wire)
        if size < LIMIT:
            assert bodies(answer) == [b"x" * size]
        else:
            assert answer.startswith(b"HTTP/1.1 413 Request Entity Too Large\r\n")
        assert client.is_ended is (size == LIMIT)
        await client.leave()


async def test_a_malformed_body_is_a_bad_request() -> None:
    client = Client()
    assert (await client.send(CHUNKED + b"zzz\r\n" + GET)).startswith(b"HTTP/1.1 400 ")
    assert client.is_ended
    await client.leave()
    assert client.failures == ["malformed chunk"]


async def test_a_body_that_does_not_come_ends_the_connection() -> None:
    client = Client(limits=OPERATORS._replace(body=0.01))
    assert await client.send(post(5) + b"h") == b""
    while not client.transport.closing:
        await asyncio.sleep(0.001)
    assert client.transport.take() == b""
    assert client.is_ended
    await client.leave()
    assert client.failures == ["no complete request body within 0.01 s"]


async def test_an_end_within_a_body_ends_the_connection() -> None:
    client = Client()
    assert await client.send(post(5) + b"h") == b""
    client.server.eof_received()
    await turns()
    assert client.is_ended
    assert client.failures == ["the connection ended in the middle of a request body"]


async def test_expected_continue_is_sent() -> None:
    client = Client()
    assert await client.send(EXPECT) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert bodies(await client.send(b"hello")) == [b"hello"]
    assert bodies(await client.send(EXPECT + b"hello")) == [b"hello"]  # it did not wait
    assert await client.send(EXPECT.replace(b"100-c", b"100-C")) != b""
    await client.leave()


@pytest.mark.parametrize(
    "head",
    [
        EXPECT.replace(b"HTTP/1.1", b"HTTP/1.0"),  # RFC 9110, 10.1.1
        EXPECT.replace(b"100-continue", b"200-ok"),
        EXPECT.replace(b"Length: 5", b"Length: 0"),
    ],
)
async def test_continue_is_sent_only_if_expected(head: bytes) -> None:
    client = Client()
    answers = await client.send(head, b"hello")
    assert not answers.startswith(b"HTTP/1.1 100 ")
    await client.leave()


@pytest.mark.parametrize(
    ("head", "goes_on"),
    [
        (post(MAX_DISCARD), True), (post(MAX_DISCARD + 1), False), (CHUNKED, False),
        (EXPECT, False),
    ],
)  # fmt: skip
async def test_a_body_that_is_not_read(head: bytes, goes_on: bool) -> None:
    """It is dropped if that is little work; else the connection ends."""
    client = Client(ignore)
    answer = await client.send(head)
    assert (b"\r\nConnection: close\r\n" in answer) is not goes_on
    assert client.is_ended is not goes_on
    if goes_on:
        assert bodies(await client.send(bytes(MAX_DISCARD) + GET)) == [b"ok\n"]
    await client.leave()


async def test_a_body_is_read_only_as_far_as_it_is_wanted() -> None:
    going_on = asyncio.Event()

    async def later(exchange: Exchange) -> None:
        await going_on.wait()
        await echo(exchange)

    client = Client(later)
    await client.send(post(5), b"he")
    assert not client.transport.reading
    going_on.set()
    await turns()
    assert not client.transport.closing and client.transport.reading
    assert bodies(await client.send(b"llo")) == [b"hello"]
    await client.leave()


async def test_the_rest_of_a_body_is_dropped_behind_an_answer() -> None:
    async def give_up(exchange: Exchange) -> None:
        with contextlib.suppress(NetworkError):
            await echo(exchange)
        if not exchange.begun:
            await exchange.answer(text_reply(503, "too slow"))

    client = Client(give_up, limits=OPERATORS._replace(body=0.01))
    client.server.data_received(post(5) + b"he")
    while not client.transport.sent:
        await asyncio.sleep(0.001)
    assert bodies(await client.send(b"llo" + GET)) == [b"too slow\n", b"/"]
    await client.leave()
