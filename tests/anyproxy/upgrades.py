"""Upgrade requests to a gateway without TLS, as the Go program sends them, and the answers."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyproxy.gateway import Gateway
from mtt.users.user import User
from tests.anyproxy.serving import GROUP, PASSWORD, gateway_for
from tests.support.certs import Certs
from tests.support.tunnels import Tcp, connect, port_of

KEY = base64.b64encode(bytes(range(16))).decode()
ID = "office-r0-d1sv2bg6n88c73d5kqpg"
LOGIN = User("gate", "kéy")
EMPTY_LOGIN = User("", "")  # what the Go program sends if it has none


def upgrade(
    id: str | None = ID,
    group: str | None = GROUP,
    password: str | None = PASSWORD,
    *more: str,
    login: User | None = EMPTY_LOGIN,
    start: str = "GET /ws HTTP/1.1",
    without: str = "-",
) -> bytes:
    """An upgrade request as the Go program sends it."""
    lines = [start, "Host: gateway.example:443", "User-Agent: Go-http-client/1.1"]
    if login is not None:
        text = f"{login.name}:{login.password}".encode()
        lines.append(f"Authorization: Basic {base64.b64encode(text).decode()}")
    lines += ["Connection: Upgrade", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13"]
    lines.append("Upgrade: websocket")
    headers = {"X-Client-Id": id, "X-Group-Id": group, "X-Group-Password": password}
    lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
    lines += more
    return "\r\n".join([*(x for x in lines if not x.startswith(without)), "", ""]).encode()


@asynccontextmanager
async def plain_gateway(certs: Certs, **changes: Any) -> AsyncIterator[Gateway]:
    """A gateway without TLS."""
    async with gateway_for(certs, tls=None, **changes) as gateway:
        yield gateway


async def answer(gateway: Gateway, request: bytes) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of the answer."""
    async with await connect(port_of(gateway)) as peer:
        await peer.send(request)
        return await answered(peer)


async def answered(peer: Tcp) -> tuple[int, dict[str, str], str]:
    status, *lines = (await peer.until(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    body = await peer.exactly(int(headers.get("Content-Length", "0")))
    return int(status.split()[1]), headers, body.decode()


async def verdict(gateway: Gateway, *args: Any, **kwargs: Any) -> tuple[int, str]:
    status, _, body = await answer(gateway, upgrade(*args, **kwargs))
    return status, body.removesuffix("\n")


def members(gateway: Gateway, group: str = GROUP) -> list[str]:
    found = gateway.groups.get(group)
    return [] if found is None else list(found.agents)
