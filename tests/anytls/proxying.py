"""Our AnyTLS client for tests, and what its applications do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from anytls.client import Client
from anytls.options import client_options
from tests.proxy.clients import socks5
from tests.support.anytlspeer import PASSWORD
from tests.support.certs import Certs
from tests.support.metrics import numbers
from tests.support.tunnels import SOON, Tcp, connect, port_of

# What a SOCKS5 request is answered with (RFC 1928, 6).
SUCCEEDED, GENERAL, NOT_ALLOWED, UNREACHABLE, REFUSED, TIMED_OUT = 0, 1, 2, 4, 5, 6


def given_client(certs: Certs, *servers: int, **options: Any) -> Client:
    """A client of the servers on ports of this machine; `options` as on its command line."""
    given = {
        "b": "127.0.0.1:0", "p": PASSWORD, "n": certs.name, "ca": certs.ca,
        # None is kept: tests count what they have asked for.
        "m": 0,
    } | options  # fmt: skip
    if given.get("sv") or given.get("pin"):
        del given["ca"]
    each = [client_options({**given, "s": f"127.0.0.1:{port}"}) for port in servers]
    choices = tuple(one.servers[0] for one in each)
    return Client(dataclasses.replace(each[0], servers=choices))


@contextlib.asynccontextmanager
async def client_for(certs: Certs, *servers: int, **options: Any) -> AsyncIterator[Client]:
    """The same, running."""
    client = given_client(certs, *servers, **options)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def reply_of(client: Client, host: str, port: int) -> int:
    """What a SOCKS5 request is answered with (RFC 1928, 6)."""
    async with asyncio.timeout(SOON), await connect(port_of(client)) as application:
        await application.send(socks5(port, host)[0])
        return (await application.exactly(12))[3]


@contextlib.asynccontextmanager
async def through(client: Client, port: int, host: str = "127.0.0.1") -> AsyncIterator[Tcp]:
    """An application that has reached a destination through the client."""
    async with await connect(port_of(client)) as application:
        said, answer = socks5(port, host)
        await application.send(said)
        async with asyncio.timeout(SOON):
            assert await application.exactly(len(answer)) == answer
        yield application


async def check_echo(client: Client, port: int, data: bytes = b"hello") -> None:
    async with asyncio.timeout(SOON), through(client, port) as application:
        await application.check_echo(data)


def nothing_open(client: Client) -> bool:
    associations = numbers(client)["anytls_udp_associations"]
    return not (client.tunnels or client._proxy.pending or associations)
