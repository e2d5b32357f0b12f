"""Connections of the AnyTLS programs leave nothing to the garbage collector.

See tests/engine/test_cycles.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from anytls.client import Client
from tests.anytls.proxying import check_echo, client_for, reply_of
from tests.anytls.serving import empty, server_for
from tests.proxy.test_association import Udp, ask
from tests.support.certs import Certs
from tests.support.garbage import collector_off
from tests.support.tunnels import (
    Tcp,
    connect,
    eventually,
    port_of,
    serving,
    settled,
)

TIMES = 3

Use = Callable[[Client, int], Awaitable[None]]


async def tunnel(client: Client, destination: int) -> None:
    await check_echo(client, destination)


async def refused(client: Client, _destination: int) -> None:
    assert await reply_of(client, "127.0.0.1", 1) == 5


async def denied(client: Client, _destination: int) -> None:
    assert await reply_of(client, "10.0.0.1", 80) == 2


async def request(client: Client, destination: int) -> None:
    async with await connect(port_of(client)) as application:
        url = f"http://127.0.0.1:{destination}/"
        await application.send(
            f"POST {url} HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody".encode()
        )
        assert b"body" in await application.until(b"body")


async def datagrams(client: Client, _destination: int) -> None:
    async with await connect(port_of(client)) as control:
        with Udp() as there, Udp() as application:
            port = await ask(control)
            head = b"\0\0\0\1\x7f\0\0\1" + there.port.to_bytes(2, "big")
            application.send(head + b"ping", port)
            assert await there.receive() == b"ping"


async def nonsense(client: Client, _destination: int) -> None:
    for said in (b"", b"\5", b"\x16", b"GET / HTTP/1.1\r\n\r\n", b"\5\1\0\5\2\0\1\0\0\0\0\0\0"):
        async with await connect(port_of(client)) as application:
            await application.send(said)
            await application.finish()
            await application.rest()


async def answering(connection: Tcp) -> None:
    """Echo, behind the beginning of a response if it is HTTP."""
    data = await connection.read()
    if data.startswith(b"POST"):
        await connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while data:
        await connection.send(data)
        data = await connection.read()


@pytest.mark.parametrize(
    "use", [tunnel, refused, denied, request, datagrams, nonsense], ids=lambda use: use.__name__
)
@pytest.mark.parametrize("reuse", [True, False], ids=["reused", "single"])
async def test_applications(use: Use, reuse: bool, certs: Certs) -> None:
    async with (
        serving(answering) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server), dr=not reuse) as client,
    ):
        with collector_off() as left:
            for _ in range(TIMES):
                await use(client, there.port)
            await eventually(lambda: not (client.tunnels or client._proxy.pending))
            await eventually(lambda: not server.tunnels)
            await settled()
        assert not left


@pytest.mark.parametrize("use", [tunnel, datagrams], ids=lambda use: use.__name__)
async def test_missing_server_fails_applications(use: Use, certs: Certs) -> None:
    async with (
        serving(answering) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server)) as client,
    ):
        await server.close()
        await eventually(lambda: empty(server))
        with collector_off() as left:
            for _ in range(TIMES):
                with pytest.raises(AssertionError):
                    await use(client, there.port)
            await eventually(lambda: not client.tunnels)
            await settled()
        assert not left
