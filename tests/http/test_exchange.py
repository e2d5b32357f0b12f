"""Requests that a coroutine answers, and how they end."""

from __future__ import annotations

import asyncio
import random

import pytest

from mtt.http.exchange import Exchange
from mtt.http.limits import OPERATORS
from mtt.wire.http1 import Reply
from tests.http.handled import (
    CHUNKED,
    EXPECT,
    GET,
    LAST,
    LIMIT,
    Client,
    Handler,
    bodies,
    echo,
    ignore,
    post,
)
from tests.support.transports import turns

# Requests.


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_requests_are_handled_in_their_order(size: int) -> None:
    client = Client()
    chunks = b"3\r\nabc\r\n2;x\r\nde\r\n0\r\nTrailer: x\r\n\r\n"
    wire = GET + post(5) + b"hello" + CHUNKED + chunks + post(0) + LAST + GET
    answers = await client.send(*[wire[at : at + size] for at in range(0, len(wire), size)])
    assert bodies(answers) == [b"/", b"hello", b"abcde", b"", b"/last"]
    assert client.is_ended
    await client.leave()
    assert client.failures == []


async def test_next_request_waits_for_the_handler() -> None:
    going_on = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await going_on.wait()
        await echo(exchange)

    client = Client(slow)
    assert await client.send(GET) == b""
    assert client.transport.reading  # or its end would not be noticed
    assert await client.send(GET) == b""
    assert not client.transport.reading
    assert len(client.tasks) == 1
    going_on.set()
    await turns()
    assert bodies(client.transport.take()) == [b"/", b"/"]
    assert client.transport.reading
    await client.leave()


async def test_a_client_that_has_ended_gets_its_answers() -> None:
    client = Client()
    client.server.data_received(GET * 3)
    assert client.server.eof_received()
    await turns()
    assert bodies(client.transport.take()) == [b"/"] * 3
    assert client.is_ended


# Ends.


async def waiting(exchange: Exchange) -> None:
    await asyncio.Event().wait()


async def reading(exchange: Exchange) -> None:
    await exchange.body(LIMIT)


async def writing(exchange: Exchange) -> None:
    exchange.full = True
    await exchange.answer(Reply(200))


@pytest.mark.parametrize("handler", [waiting, reading, writing])
async def test_handlers_are_cancelled_when_the_connection_dies(handler: Handler) -> None:
    over = []

    async def handle(exchange: Exchange) -> None:
        try:
            await handler(exchange)
        finally:
            over.append(asyncio.current_task())

    client = Client(handle)
    await client.send(post(5))
    assert not over
    await client.leave()
    assert len(over) == 1
    assert client.failures == ["the client disconnected before it was answered"]


async def test_a_handler_that_keeps_on_is_not_cancelled() -> None:
    going_on = asyncio.Event()
    done = []

    async def keep_on(exchange: Exchange) -> None:
        exchange.keeps_on = True
        await going_on.wait()
        done.append("work")
        await exchange.answer(Reply(200))
        done.append("answer")

    client = Client(keep_on)
    await client.send(GET)
    client.transport.lose(None)
    await turns()
    assert client.lost and client.tasks
    going_on.set()
    await turns()
    assert done == ["work"]
    assert not client.tasks


@pytest.mark.parametrize("at_once", [False, True])
async def test_cancelled_handler_cuts_without_a_failure(at_once: bool) -> None:
    client = Client(waiting)
    await client.send(GET)
    for task in client.tasks:
        task.cancel()
    if at_once:
        client.transport.abort()
    await turns()
    assert client.transport.aborted
    assert client.lost == 1
    assert not client.tasks
    assert client.failures == []


async def test_a_cut_has_its_reason() -> None:
    async def cut(exchange: Exchange) -> None:
        exchange.cut("it stalled")
        await exchange.body(LIMIT)

    client = Client(cut)
    await client.send(post(5))
    assert client.transport.aborted
    assert client.failures == ["it stalled"]


async def test_a_client_that_takes_no_answer_is_cut() -> None:
    client = Client(writing, limits=OPERATORS._replace(body=0.01))
    await client.send(GET)
    while not client.transport.closing:
        await asyncio.sleep(0.001)
    assert client.transport.was_cut
    await client.leave()
    assert client.failures == ["the client did not read its answer within 0.01 s"]


async def test_failures_of_handlers_are_answered_500() -> None:
    async def fail(exchange: Exchange) -> None:
        raise KeyError("secret")

    async def forget(exchange: Exchange) -> None:
        pass

    for handler, reason in ((fail, "'secret'"), (forget, "the handler did not answer")):
        client = Client(handler)
        answer = await client.send(GET + GET)
        assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert answer.count(b"HTTP/1.1") == 1 and b"secret" not in answer
        assert client.is_ended
        await client.leave()
        assert client.failures == [reason]


async def test_owner_chooses_the_layout_of_errors() -> None:
    client = Client(error_reply=lambda status, reason: Reply(status, body=reason.encode()))
    assert bodies(await client.send(GET + b"SSH-2.0-x\r\n")) == [b"/", b"malformed request line"]
    assert client.is_ended


async def test_input_is_bounded_while_an_answer_is_not_taken() -> None:
    client = Client(writing)
    await client.send(GET)
    for _ in range(3):
        client.transport.reading = True
        await client.send(GET)
        assert not client.transport.reading
    client.server.resume_writing()
    client.transport.lose(None)
    await turns()
    assert not client.tasks


async def test_any_bytes_leave_nothing_behind() -> None:
    rng = random.Random(7)
    parts = [GET, post(5), b"hello", CHUNKED, b"3\r\nabc\r\n", b"0\r\n\r\n", EXPECT, b"\r\n", b"x"]
    ended = 0
    for _ in range(300):
        client = Client(rng.choice([echo, ignore]))
        data = b"".join(rng.choice(parts) for _ in range(rng.randrange(9)))
        while data and not client.transport.closing:
            size = rng.randrange(1, 90)
            client.server.data_received(data[:size])
            data = data[size:]
            if rng.random() < 0.2:
                client.server.pause_writing()
                await turns(3)
                client.server.resume_writing()
            await turns(3)
        if rng.random() < 0.5 and not client.transport.closing:
            client.server.eof_received()
            await turns()
            assert client.transport.closing
        ended += client.transport.closing
        await client.leave()
        assert not client.server._buffer
    assert ended > 100
