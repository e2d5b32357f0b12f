"""A client with a wrong password: one outcome, at once, whatever the server does."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest

from anytls.server import Server
from mtt.layers import anytls_heads, anytls_stream
from mtt.tunnels import relay
from tests.anytls.proxying import GENERAL, client_for, nothing_open, reply_of
from tests.anytls.serving import empty, server_for
from tests.support.certs import Certs
from tests.support.contexts import bare_context
from tests.support.gopeer import Tls
from tests.support.metrics import failures, numbers
from tests.support.tunnels import (
    SOON,
    Tcp,
    echo,
    eventually,
    logged,
    port_of,
    serving,
)


@contextlib.asynccontextmanager
async def refusing(certs: Certs, how: str) -> AsyncIterator[int]:
    """A server that knows another password, and how it says so; its port."""
    if how == "ours":
        async with server_for(certs) as server:
            yield port_of(server)
        return
    if how == "ours, with a site":

        async def site(connection: Tcp) -> None:  # as nginx
            await connection.read()
            await connection.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<html>")
            await connection.finish()

        async with contextlib.AsyncExitStack() as stack:
            web = await stack.enter_async_context(serving(site))
            site_address = f"127.0.0.1:{web.port}"
            server = await stack.enter_async_context(server_for(certs, fallback=site_address))
            yield port_of(server)
        return

    context = bare_context(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.cert, certs.key)

    async def reference(connection: Tcp) -> None:
        tls = Tls(connection, context, server_side=True)
        await tls.handshake()
        await tls.exactly(34)
        if how == "the reference, reset":
            tls.reset()  # what it has not read makes the kernel do that
        else:
            await tls.finish()

    async with serving(reference) as there:
        yield there.port


@pytest.mark.parametrize(
    "how", ["ours", "ours, with a site", "the reference", "the reference, reset"]
)
async def test_a_wrong_password(how: str, certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    """One outcome at once: an error that names the server, and no success for the application."""
    # A side that waits fails the test. The client takes a server that waits for version 1.
    monkeypatch.setattr(anytls_heads, "PREAMBLE_TIME", 60.0)
    monkeypatch.setattr(anytls_stream, "HEARTBEAT_DELAY", 60.0)
    # The site's end is passed on to the client after that.
    monkeypatch.setattr(relay, "QUIET_TIME", 0.05)
    monkeypatch.setattr(relay, "QUIET_INTERVALS", (0.01, 0.01))
    with logged() as lines:
        async with (
            asyncio.timeout(SOON),
            serving(echo) as there,
            refusing(certs, how) as port,
            client_for(certs, port, p="not-that-one") as client,
        ):
            for _ in range(2):
                assert await reply_of(client, "127.0.0.1", there.port) == GENERAL
            await eventually(lambda: nothing_open(client))
            assert client._servers[0]._server.version == 0
            assert there.count == 0
    told = [line for line in lines if f"127.0.0.1:{port}: " in line]
    assert len(told) == 2, lines
    for line in told:
        assert line.startswith("WARNING")
        assert "is the password right?" in line
    assert "not-that-one" not in "".join(lines)


async def test_a_wrong_password_and_sessions_made_ready(certs: Certs) -> None:
    with logged() as lines:
        async with (
            asyncio.timeout(SOON),
            serving(echo) as there,
            server_for(certs) as server,
            client_for(certs, port_of(server), p="not-that-one", warm=3) as client,
        ):
            await eventually(lambda: empty(server) and failed(server) == 3)
            assert await reply_of(client, "127.0.0.1", there.port) == GENERAL
            assert not numbers(client)["sessions"]
    assert sum("is the password right?" in line for line in lines) == 1


def failed(server: Server) -> float:
    return failures(numbers(server)).get("password", 0)
