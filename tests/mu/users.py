"""What tests with users of a multi-user server need."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mtt_mu_server.server import MultiUserServer
from tests.mu.panel import Panel, multi_user_server
from tests.support.certs import Certs
from tests.support.contexts import trusting_context
from tests.support.tunnels import Tcp, client_of, echo, port_of, serving

in_both_modes = pytest.mark.parametrize("mode", ["wss", "wss+mux"])


@contextlib.asynccontextmanager
async def client(
    mode: str, server: MultiUserServer, certs: Certs, path: str, **given: Any
) -> AsyncIterator[int]:
    """A client of the user of `path`; the port for applications."""
    options: dict[str, Any] = {"wss-path": path} | given
    async with client_of(mode, port_of(server), certs, **options) as started:
        yield port_of(started)


@contextlib.asynccontextmanager
async def one_user(
    mode: str,
    certs: Certs,
    serve: Callable[[Tcp], Awaitable[None]] = echo,
    *,
    limits: dict[str, int] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[MultiUserServer, Panel, int]]:
    """A server with the user of "/a", whose destination is `serve`, and the port of a client."""
    async with (
        serving(serve) as there,
        multi_user_server(certs, **options) as (server, panel),
        client(mode, server, certs, "/a") as port,
    ):
        await panel.add("/a", there.port, **(limits or {}))
        yield server, panel, port


def answering(name: bytes) -> Any:
    """A destination that sends its name, then echoes."""

    async def serve(connection: Tcp) -> None:
        await connection.send(name)
        await echo(connection)

    return serving(serve)


async def ended(application: Tcp) -> None:
    """Wait until the tunnel of `application` is cut or closed."""
    async with asyncio.timeout(10):
        try:
            while await application.read():
                pass
        except ConnectionResetError:
            pass


def empty(server: MultiUserServer) -> bool:
    held: list[Any] = [server.open_tunnels, server._users._live, server._frontend._sessions]
    return not any(held)


async def upgrade(
    server: MultiUserServer, certs: Certs, path: str, *, send: bytes = b"", read: int = 11
) -> tuple[bytes, bytes]:
    """What a WebSocket client of our own making gets: the head, and the first bytes after it."""
    context = trusting_context(certs.ca)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port_of(server), ssl=context, server_hostname=certs.name
    )
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: {certs.name}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    rest = b""
    if b" 101 " in head:
        writer.write(send)
        rest = await reader.readexactly(read)
    else:
        rest = await reader.readexactly(19)
    writer.transport.abort()
    return head, rest


async def get(panel: Panel, path: str) -> bytes:
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    return (await panel.exchange(request.encode())).partition(b"\r\n\r\n")[2]
