"""Requests that a coroutine answers: bodies, answers in pieces, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

from mtt.errors import NetworkError
from mtt.http import events
from mtt.http.events import encode_event, stream_events
from mtt.http.exchange import Exchange
from mtt.http.limits import MAX_DISCARD, OPERATORS
from mtt.http.server import HttpServer
from mtt.wire.http1 import Reply, text_reply
from tests.support.garbage import collector_off
from tests.support.transports import FakeLayer, turns

LIMIT = 1000
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
EXPECT = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"

Handler = Callable[[Exchange], Awaitable[None]]


def post(length: int) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length


async def echo(exchange: Exchange) -> None:
    """Answers with the body of a POST, or with the target."""
    request = exchange.request
    body = await exchange.body(LIMIT) if request.method == "POST" else request.target.encode()
    await exchange.answer(Reply(200, body=body))


async def ignore(exchange: Exchange) -> None:
    """Answers without reading the body."""
    await exchange.answer(text_reply(200, "ok"))


class Client:
    """The other end of a connection to an HttpServer whose requests are all handled."""

    def __init__(self, handler: Handler = echo, **options: Any) -> None:
        self.failures: list[str] = []
        self.lost = 0
        self.tasks: set[asyncio.Task[None]] = set()

        async def handle(exchange: Exchange) -> None:
            await handler(exchange)

        def count() -> None:
            self.lost += 1

        self.server = HttpServer(
            lambda request: handle,
            on_failure=lambda error: self.failures.append(str(error)),
            on_lost=count,
            limits=options.pop("limits", OPERATORS),
            tasks=self.tasks,
            **options,
        )
        self.transport = FakeLayer(self.server)
        self.server.connection_made(self.transport)

    async def send(self, *pieces: bytes) -> bytes:
        """Send; returns what the server has answered by now."""
        for piece in pieces:
            self.server.data_received(piece)
            await turns(5)
        await turns()
        return self.transport.take()

    async def leave(self) -> None:
        self.transport.lose(ConnectionResetError())
        await turns()
        assert not self.tasks
        assert self.lost == 1
        assert self.server._timer is None
        assert self.server._exchange is None

    @property
    def is_ended(self) -> bool:
        return self.transport.closing and not (self.transport.was_cut or self.transport.aborted)


def bodies(answers: bytes) -> list[bytes]:
    """The bodies of answers that have a length."""
    found = []
    while answers:
        head, _, rest = answers.partition(b"\r\n\r\n")
        length = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
        found.append(rest[:length])
        answers = rest[length:]
    return found


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


async def test_what_follows_waits_until_the_handler_is_done() -> None:
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


# Bodies.


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
    assert client.failures == ["the client ended in the middle of a request"]


async def test_clients_that_ask_are_told_to_send_the_body() -> None:
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
async def test_other_requests_are_not_told_to_continue(head: bytes) -> None:
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
    assert client.failures == ["the client left before it was answered"]


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
async def test_what_the_owner_cancels_is_cut_and_no_failure(at_once: bool) -> None:
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
    assert client.failures == ["the client took nothing of its answer within 0.01 s"]


async def test_failures_of_handlers_are_answered_500() -> None:
    async def fail(exchange: Exchange) -> None:
        raise KeyError("secret")

    async def forget(exchange: Exchange) -> None:
        pass

    for handler, reason in ((fail, "'secret'"), (forget, "the handler has given no answer")):
        client = Client(handler)
        answer = await client.send(GET + GET)
        assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
        assert answer.count(b"HTTP/1.1") == 1 and b"secret" not in answer
        assert client.is_ended
        await client.leave()
        assert client.failures == [reason]


async def test_errors_look_as_the_owner_likes() -> None:
    client = Client(error_reply=lambda error: Reply(error.status, body=error.reason.encode()))
    assert bodies(await client.send(GET + b"SSH-2.0-x\r\n")) == [b"/", b"malformed request line"]
    assert client.is_ended


async def test_what_comes_while_an_answer_is_not_taken_has_a_bound() -> None:
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


# Answers in pieces.


async def pieces(*found: bytes) -> AsyncGenerator[bytes, None]:
    for piece in found:
        yield piece


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
    assert client.is_ended is not framing
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


# Events.


def test_events_as_they_are_sent() -> None:
    assert encode_event("a") == b"data: a\n\n"
    assert encode_event("") == b"data: \n\n"
    assert encode_event("a\nb\r\nc\rd", name="x") == (
        b"event: x\ndata: a\ndata: b\ndata: c\ndata: d\n\n"
    )
    assert encode_event("\u20ac\u2028") == b"data: \xe2\x82\xac\xe2\x80\xa8\n\n"
    with pytest.raises(ValueError, match="line break"):
        encode_event("a", name="x\ndata: y")


async def test_events_come_at_once_and_silence_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT", 0.01)
    news: asyncio.Queue[str] = asyncio.Queue()
    is_closed = False

    async def follow() -> AsyncGenerator[bytes, None]:
        nonlocal is_closed
        try:
            while True:
                yield encode_event(await news.get())
        finally:
            is_closed = True

    async def stream(exchange: Exchange) -> None:
        await stream_events(exchange, follow())

    with collector_off() as left:
        client = Client(stream)
        head = await client.send(GET)
        assert b"\r\nContent-Type: text/event-stream\r\n" in head
        for text in ("one", "two"):
            while b":\n\n" not in client.transport.sent:
                await asyncio.sleep(0.001)
            news.put_nowait(text)
            await turns()
            assert encode_event(text) in client.transport.take()
        assert not is_closed
        await client.leave()
        assert is_closed
        client.transport.set_protocol(None)  # as transports of sockets do
        del client
    assert not left


async def test_events_may_end() -> None:
    async def stream(exchange: Exchange) -> None:
        await stream_events(exchange, pieces(encode_event("last")))

    client = Client(stream)
    assert (await client.send(GET)).endswith(b"\r\n\r\nc\r\ndata: last\n\n\r\n0\r\n\r\n")
    assert not client.transport.closing
    await client.leave()
