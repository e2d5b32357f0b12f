"""HTTP on a socket for operators: handlers by path, failures, limits.

Its users test the rest: tests.observe.test_server, tests.mu.test_control_*.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt.address import Endpoint
from mtt.http.access import AccessRules
from mtt.http.exchange import Exchange
from mtt.http.listener import HttpListener
from mtt.net.admission import Pending
from mtt.net.resolve import Resolver
from mtt.wire.http1 import text_reply
from tests.support.metrics import ask
from tests.support.tunnels import connect, eventually, logged, port_of


async def page(exchange: Exchange) -> None:
    await exchange.answer(text_reply(200, "page"))


async def default(exchange: Exchange) -> None:
    await exchange.answer(text_reply(404, "default"))


async def broken(exchange: Exchange) -> None:
    raise ValueError("broken")


async def endless(exchange: Exchange) -> None:
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[HttpListener]:
    routes = {"/page": page, "/broken": broken, "/endless": endless}
    options = {"access": AccessRules(), "pending": Pending(9), "name": "pages"} | options
    listener = HttpListener(routes, default, **options)
    await listener.start(Endpoint(("127.0.0.1",), 0), "", Resolver())
    try:
        yield listener
    finally:
        await listener.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("line", "status", "body"),
    [
        ("GET /page HTTP/1.1", 200, b"page\n"),
        ("HEAD /page?x=y HTTP/1.1", 200, b""),
        ("GET /healthz HTTP/1.1", 200, b"ok\n"),
        ("POST /page HTTP/1.1", 404, b"default\n"),
        ("POST /healthz HTTP/1.1", 404, b"default\n"),
        ("GET /other HTTP/1.1", 404, b"default\n"),
    ],
)
async def test_handlers_by_path(line: str, status: int, body: bytes) -> None:
    async with serving() as listener:
        answer = await ask(listener.addresses[0], f"{line}\r\nHost: localhost")
        assert answer[:2] == (status, body)


@pytest.mark.parametrize("quiet", [False, True])
async def test_failures_in_the_log(quiet: bool) -> None:
    with logged() as lines:
        async with serving(quiet=quiet) as listener:
            address = listener.addresses[0]
            assert (await ask(address, "GET /page HTTP/1.1\r\nHost: evil.example"))[0] == 403
            assert (await ask(address, "GET /broken HTTP/1.1\r\nHost: localhost"))[0] == 500
    if not quiet:
        assert lines.pop(0).startswith("WARNING pages: 127.0.0.1:")
    assert lines == ["ERROR pages: internal error: broken"]


async def test_connections_between_requests_are_idle() -> None:
    pending, idle = Pending(9), Pending(1)
    async with serving(pending=pending, idle=idle) as listener:
        port = port_of(listener)
        async with await connect(port) as first, await connect(port) as second:
            await eventually(lambda: len(pending) == 2)
            for connection in (first, second):
                await connection.send(b"GET /page HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await connection.until(b"page\n")
            await eventually(lambda: (len(pending), len(idle)) == (0, 1))
            with pytest.raises(ConnectionResetError):
                await first.read()


async def test_close_ends_requests_in_progress() -> None:
    async with serving() as listener:
        port = port_of(listener)
        async with await connect(port) as connection:
            await connection.send(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await eventually(lambda: listener._tasks)
            await listener.close()
            assert not listener._tasks
            with pytest.raises(ConnectionResetError):
                await connection.read()
