"""Our AnyTLS client with servers that do not know half-close."""

from __future__ import annotations

import asyncio

from anytls.client import Client
from tests.anytls.proxying import client_for, through
from tests.support.anytlsserver import anytls_go_server
from tests.support.certs import Certs
from tests.support.tunnels import SOON, Tcp, listening, serving

REQUESTS = 20


async def answer(connection: Tcp) -> None:
    """A destination that answers requests and leaves it to the client to end."""
    while await connection.until(b"?"):
        await connection.send(b"yes.")


async def ask(client: Client, port: int) -> None:
    async with through(client, port) as application:
        await application.send(b"really?")
        assert await application.exactly(4) == b"yes."


async def test_sequential_requests_share_a_session(certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        serving(answer) as there,
        anytls_go_server(certs) as server,
        client_for(certs, server.port) as client,
    ):
        for _ in range(REQUESTS):
            await ask(client, there.port)
        assert sum(session.opened for session in server.sessions) == REQUESTS
        assert len(server.sessions) <= 3


async def test_stream_with_reply_due_keeps_its_session(certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        listening() as there,
        anytls_go_server(certs) as server,
        client_for(certs, server.port) as client,
        through(client, there.port) as first,
    ):
        destination = await there.accept()
        await first.send(b"all of it?")
        await first.finish()
        assert await destination.exactly(10) == b"all of it?"
        async with through(client, there.port):
            assert len(server.sessions) == 2
        await destination.send(b"reply")
        assert await first.exactly(5) == b"reply"
