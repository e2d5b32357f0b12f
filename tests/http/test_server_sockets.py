"""The server's HTTP side on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mtt.address import parse_endpoint
from mtt.http.server import HttpServer
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.reads import READ_SIZE
from mtt.net.listen import bind
from mtt.net.resolve import Resolver
from mtt.wire.http1 import MAX_HEAD, Reply, Request, text_reply
from mtt.wire.upgrade import Upgrade
from tests.http.served import GET, UPGRADE, WS, until
from tests.support.tunnels import port_of
from tests.support.vectors import WSS, handshake


@contextlib.asynccontextmanager
async def serving(
    route: Callable[[Request], Reply | None] = WS,
    servers: list[HttpServer] | None = None,
) -> AsyncIterator[int]:
    """The port of a server on loopback; `/ws` echoes what it gets after the upgrade.

    `servers`: gets the protocol of each connection.
    """

    class Echo(StreamProtocol):
        def __init__(self, transport: asyncio.Transport) -> None:
            self.transport = transport

        def data_received(self, data: Data) -> None:
            self.transport.write(data)

    def take(transport: asyncio.Transport, request: Request, upgrade: Upgrade) -> None:
        transport.set_protocol(Echo(transport))

    def make() -> HttpServer:
        made = HttpServer(route, take)
        if servers is not None:
            servers.append(made)
        return made

    server = await bind(parse_endpoint("-b", "127.0.0.1:0"), "", resolver=Resolver())
    server.serve(make)
    try:
        yield port_of(server)
    finally:
        server.close()


async def with_client(
    port: int, talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await talk(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_upgrade_on_a_socket() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GET)
        assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(19) == b"404 page not found\n"
        writer.write(UPGRADE.replace(b"GET / ", b"GET /ws "))
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer == handshake(WSS[0])[1]
        writer.write(b"\x82\x05hello")
        assert await reader.readexactly(7) == b"\x82\x05hello"

    async with serving() as port:
        await with_client(port, talk)


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_answer_to_a_large_upload_is_not_lost(chunked: bool) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = 4 << 20
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
        for _ in range(size // READ_SIZE):
            writer.write(b"x" * READ_SIZE)
            await writer.drain()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert b"\r\nConnection: close\r\n" in answer
        assert answer.endswith(b"404 page not found\n")

    async with serving() as port:
        await with_client(port, talk)


async def test_a_half_closed_client_gets_its_answers() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GET * 1000)
        writer.write_eof()
        assert (await reader.read()).count(b"404 page not found\n") == 1000

    async with serving() as port:
        await with_client(port, talk)


async def test_request_flood_stops_when_client_does_not_read() -> None:
    servers: list[HttpServer] = []
    routed = 0

    def route(request: Request) -> Reply | None:
        nonlocal routed
        routed += 1
        return text_reply(404, "x" * 1000)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = (16 << 20) // len(GET)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GET * count)
        await until(lambda: bool(servers) and servers[0]._paused)
        # Without back-pressure all answers, half a gigabyte, would wait in memory by now.
        assert 0 < routed < count // 4
        assert servers[0]._transport.get_write_buffer_size() < 1 << 20
        assert len(servers[0]._buffer) <= MAX_HEAD + READ_SIZE
        writer.transport.abort()

    async with serving(route, servers) as port:
        await with_client(port, talk)
