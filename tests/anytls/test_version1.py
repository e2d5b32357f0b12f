"""A server of version 1 (anytls-go 0.0.5): no ServerSettings, no SYNACK, no heartbeats."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import AsyncIterator

import pytest

from mtt.layers import anytls_stream
from tests.anytls.proxying import check_echo, client_for, through
from tests.support.anytlspeer import FIN, PSH, SYN, frame
from tests.support.certs import Certs
from tests.support.contexts import bare_context
from tests.support.gopeer import Tls
from tests.support.tunnels import SOON, Tcp, eventually, serving

ADDRESS_SIZE = 7  # of an IPv4 destination


class OldServer:
    """Echoes what comes behind the destination."""

    def __init__(self) -> None:
        self.port = 0
        self.connections: list[Tls] = []

    async def serve(self, tls: Tls) -> None:
        self.connections.append(tls)
        hashed = await tls.exactly(34)
        await tls.exactly(struct.unpack(">H", hashed[32:])[0])
        begun: set[int] = set()
        while head := await tls.exactly(7):
            command, stream, size = struct.unpack(">BIH", head)
            data = await tls.exactly(size)
            if command == SYN:
                begun.add(stream)
            elif command == PSH:
                if stream in begun:
                    begun.discard(stream)
                    data = data[ADDRESS_SIZE:]
                if data:
                    await tls.send(frame(PSH, stream, data))
            elif command == FIN:
                begun.discard(stream)


@contextlib.asynccontextmanager
async def old_server(certs: Certs) -> AsyncIterator[OldServer]:
    context = bare_context(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.cert, certs.key)
    server = OldServer()

    async def serve(connection: Tcp) -> None:
        tls = Tls(connection, context, server_side=True)
        with contextlib.suppress(ssl.SSLError, ConnectionError, struct.error):
            await tls.handshake()
            await server.serve(tls)

    async with serving(serve) as there:
        server.port = there.port
        yield server


async def test_its_version_costs_time_once(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anytls_stream, "QUESTION_TIME", 0.2)
    async with old_server(certs) as server, client_for(certs, server.port, m=5) as client:
        for _ in range(4):
            await check_echo(client, 80)
            # Whoever would wait again fails the test.
            monkeypatch.setattr(anytls_stream, "QUESTION_TIME", 60.0)
            await eventually(lambda: client._servers.idle == 1)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):  # new sessions, too
                async with asyncio.timeout(SOON):
                    await stack.enter_async_context(through(client, 80))
        assert len(server.connections) == 3


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_session_that_ends_unanswered_costs_no_connection(
    how: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Success has been told by then, for such a server never says it."""
    monkeypatch.setattr(anytls_stream, "QUESTION_TIME", 0.2)
    async with old_server(certs) as server, client_for(certs, server.port, m=5) as client:
        await check_echo(client, 80)
        await eventually(lambda: client._servers.idle == 1)
        async with asyncio.timeout(SOON), through(client, 80) as application:
            old = server.connections[0]
            if how == "reset":
                old.reset()
            else:
                await old.finish()
            await application.send(b"hello")
            assert await application.exactly(5) == b"hello"
        assert len(server.connections) == 2
