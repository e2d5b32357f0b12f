"""Users of a gateway's HTTP proxy."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator

from anyproxy.gateway import Gateway
from tests.anyproxy.serving import GROUP, PASSWORD, http_port
from tests.proxy.clients import http_connect
from tests.support.tunnels import Tcp, connect


@contextlib.asynccontextmanager
async def user_of(
    gateway: Gateway, target: int, password: str = PASSWORD, group: str = GROUP
) -> AsyncIterator[Tcp]:
    """A user of the HTTP proxy whose target echoes."""
    async with await connect(http_port(gateway)) as user:
        await user.send(tunnel_request(target, password, group))
        assert b" 200 " in await user.until(b"\r\n\r\n")
        await user.check_echo()
        yield user


def tunnel_request(target: int, password: str = PASSWORD, group: str = GROUP) -> bytes:
    """A CONNECT request of a user of a group."""
    text = base64.b64encode(f"{group}:{password}".encode()).decode()
    return http_connect(target, "127.0.0.1", f"Proxy-Authorization: Basic {text}")[0]


async def status(port: int, said: bytes) -> int:
    """The status of the answer."""
    async with await connect(port) as user:
        await user.send(said)
        return int((await user.until(b"\r\n")).split()[1])
