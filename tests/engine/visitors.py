"""Visitors of a server with `-fallback`."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from mtt.http.server import HttpServer
from mtt.server import Server
from mtt.wire import upgrade
from tests.support.certs import Certs
from tests.support.contexts import trusting_context
from tests.support.site import Site
from tests.support.tunnels import SOON, Tcp, echo, empty, eventually, server_at, serving

PATH = "/secret"
GET = b"GET /page HTTP/1.1\r\nHost: test.local\r\n\r\n"
KEY = "AAAAAAAAAAAAAAAAAAAAAA=="
TUNNEL = upgrade.request(PATH, "test.local", KEY, ("smux_off",))


async def visit(port: int, certs: Certs) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = trusting_context(certs.ca)
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=certs.name)


async def leave(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ssl.SSLError):  # asyncio objects to data behind its close_notify
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def in_front_of(
    serve: Callable[[Tcp], Awaitable[None]], certs: Certs, port: int = 1, **options: Any
) -> AsyncIterator[Server]:
    """A server whose site is `serve`, with a tunnel to `port` at PATH; left empty."""
    given = {"wss-path": PATH, **options}
    async with (
        asyncio.timeout(SOON),
        serving(serve) as web,
        server_at("wss", port, certs, fallback=f"127.0.0.1:{web.port}", **given) as server,
    ):
        yield server
        await eventually(lambda: empty(server))


@contextlib.asynccontextmanager
async def in_front_of_a_site(
    certs: Certs, port: int = 1, **options: Any
) -> AsyncIterator[tuple[Server, Site]]:
    """The same with a site that gives one page."""
    site = Site()
    async with in_front_of(site.serve, certs, port, **options) as server:
        yield server, site


@contextlib.asynccontextmanager
async def without_a_site(certs: Certs, **options: Any) -> AsyncIterator[Server]:
    """A server with a tunnel to an echo and no site; left empty."""
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_at("wss", there.port, certs, **options) as server,
    ):
        yield server
        await eventually(lambda: empty(server))


def is_web(server: Server) -> bool:
    """Whether all that is no tunnel yet is waited for, without the site."""
    pending: Any = server._frontend.handshakes._transports
    return bool(pending) and all(type(each.get_protocol()) is HttpServer for each in pending)
