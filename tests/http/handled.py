"""A client of an HttpServer whose requests are all handled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from mtt.http.exchange import Exchange
from mtt.http.limits import OPERATORS
from mtt.http.server import HttpServer
from mtt.wire.http1 import Reply, text_reply
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

        def count(_transport: object) -> None:
            self.lost += 1

        self.server = HttpServer(
            lambda request: handle,
            on_failure=lambda _, error: self.failures.append(str(error)),
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


async def pieces(*found: bytes) -> AsyncGenerator[bytes, None]:
    for piece in found:
        yield piece
