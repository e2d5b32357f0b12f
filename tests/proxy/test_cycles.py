"""Connections of HTTP proxy clients leave no reference cycles."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from mtt.errors import DestinationError
from mtt.outcome import Outcome
from tests.proxy.clients import http_connect
from tests.proxy.origins import OK, Site, read_answer, site
from tests.support.garbage import collector_off
from tests.support.tunnels import Tcp, eventually, settled

Use = Callable[[Site, Tcp], Awaitable[None]]


async def requests(there: Site, client: Tcp) -> None:
    for _ in range(3):
        await client.send(there.request("/") + there.request("/"))
        for _ in range(2):
            await read_answer(client)


async def close(there: Site, client: Tcp) -> None:
    await client.send(there.request("/", "Connection: close"))
    await client.rest()


async def cut(there: Site, client: Tcp) -> None:
    await client.send(there.request("/cut"))
    with pytest.raises(ConnectionResetError):
        await client.rest()


async def upgrade(there: Site, client: Tcp) -> None:
    await client.send(there.request("/", "Connection: Upgrade", "Upgrade: chat"))
    await client.until(b"\r\n\r\n")
    await client.finish()
    assert await client.rest() == b"bye"


async def tunnel(there: Site, client: Tcp) -> None:
    await requests(there, client)
    await client.send(http_connect(there.there.port)[0] + there.request("/"))
    assert (await client.until(b"ok")).endswith(b"ok")


async def refused(there: Site, client: Tcp) -> None:
    there.proxy.error = DestinationError(Outcome.CONNECTION_REFUSED)
    await client.send(there.request("/"))
    await read_answer(client)
    there.proxy.error = None


async def nonsense(there: Site, client: Tcp) -> None:
    await client.send(there.request("/") + b"nonsense\r\n")
    await client.rest()


async def left(there: Site, client: Tcp) -> None:
    await client.send(there.request("/", "Content-Length: 5", method="POST") + b"x")
    await client.until(b"\r\n\r\n")  # an answer that came early
    client.reset()


async def answer(connection: Tcp, head: bytes) -> bool:
    if b"/cut" in head:
        await connection.send(OK[:-1])
        return False
    if b"pgrade" in head:
        await connection.send(b"HTTP/1.1 101 X\r\nUpgrade: chat\r\n\r\n")
        await connection.rest()
        await connection.send(b"bye")
        return False
    await connection.send(OK)
    return True


@pytest.mark.parametrize(
    "use",
    [requests, close, cut, upgrade, tunnel, refused, nonsense, left],
    ids=lambda use: use.__name__,
)
async def test_connections_leave_no_cycles(use: Use) -> None:
    async with site(answer) as there:
        with collector_off() as garbage:
            for _ in range(3):
                async with await there.client() as client:
                    await use(there, client)
            await eventually(lambda: not (there.proxy.tunnels or there.proxy.proxy.pending))
            await settled()
        assert not garbage
