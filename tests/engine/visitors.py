"""Visitors of a server with `-fallback`."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

from mtt.http.server import HttpServer
from mtt.server import Server
from mtt.wire import upgrade
from tests.support.certs import Certs
from tests.support.contexts import trusting_context
from tests.support.site import Site
from tests.support.tunnels import SOON, empty, eventually, server_at, serving

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
async def in_front_of_a_site(certs: Certs, port: int) -> AsyncIterator[tuple[Server, Site]]:
    """A server with a site, and a tunnel to `port` at PATH."""
    site = Site()
    async with (
        asyncio.timeout(SOON),
        serving(site.serve) as web,
        server_at(
            "wss", port, certs, **{"wss-path": PATH, "fallback": f"127.0.0.1:{web.port}"}
        ) as server,
    ):
        yield server, site
        await eventually(lambda: empty(server))


def is_web(server: Server) -> bool:
    """Whether all that is no tunnel yet is waited for, without the site."""
    pending: Any = server._frontend.handshakes._transports
    return bool(pending) and all(type(each.get_protocol()) is HttpServer for each in pending)
