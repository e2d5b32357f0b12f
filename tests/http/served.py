"""An HttpServer on a transport in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mtt.http.server import HttpServer
from mtt.layers.base import StreamTransport
from mtt.wire.http1 import Reply, Request, parse_response
from mtt.wire.servemux import ServeMux
from mtt.wire.upgrade import Upgrade
from tests.support.vectors import WSS, handshake

GET = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = handshake(WSS[0])[0]
WS = ServeMux("/ws").route


class MemoryTransport(StreamTransport):
    """What an HttpServer sees of a connection, and what it did to it."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol
        self.sent = bytearray()
        self.reading = True
        self.closed = False
        self.clog = False  # the next write finds the peer not reading

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.sent += data
        if self.clog:
            self.clog = False
            self.protocol.pause_writing()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    @property
    def statuses(self) -> list[int]:
        """The status of each response so far; 0 stands for what has no Content-Length."""
        found, rest = [], bytes(self.sent)
        while rest:
            head, end, rest = rest.partition(b"\r\n\r\n")
            response = parse_response(head + end)
            found.append(response.status)
            length = response.first("content-length")
            rest = rest[int(length) :] if length else b""
        return found


class Connection:
    """An HttpServer on a `MemoryTransport`, and what it reported."""

    def __init__(self, pattern: str = "/ws", **options: Any) -> None:
        self.upgrades: list[tuple[Request, Upgrade]] = []
        self.failures: list[str] = []
        self.mux = ServeMux(pattern)
        self.routed: list[str] = []
        self.server = HttpServer(
            self.route,
            self.take,
            on_failure=lambda _, error: self.failures.append(str(error)),
            **options,
        )
        self.transport = MemoryTransport(self.server)
        self.server.connection_made(self.transport)

    def route(self, request: Request) -> Reply | None:
        self.routed.append(request.target)
        return self.mux.route(request)

    def take(self, transport: asyncio.Transport, request: Request, upgrade: Upgrade) -> None:
        assert transport is self.transport
        transport.set_protocol(asyncio.Protocol())
        self.upgrades.append((request, upgrade))

    def send(self, *pieces: bytes) -> MemoryTransport:
        for piece in pieces:
            self.server.data_received(memoryview(piece))
        return self.transport

    async def gone(self) -> None:
        """Let the end of the connection arrive, as every connection has one."""
        if not self.transport.closed:
            self.transport.protocol.connection_lost(None)
        await asyncio.sleep(0)
        assert self.server._timer is None


def each_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)
