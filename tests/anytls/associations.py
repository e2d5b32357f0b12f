"""An association of UDP over TCP with our server, and UDP sockets for it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any, Self

from anytls.server import Server
from tests.anytls.serving import empty, server_for
from tests.support.anytlspeer import SYNACK, UOT, AnyTlsPeer, address, peer_connect
from tests.support.certs import Certs
from tests.support.tunnels import SOON, eventually, port_of

HERE = "127.0.0.1"
ANYWHERE = b"\0" + address("0.0.0.0", 0)  # the request without a peer


def to(host: str, port: int) -> bytes:
    """The request for one peer."""
    return b"\1" + address(host, port)


class Udp:
    """A UDP socket of the test."""

    def __init__(self, family: int = socket.AF_INET, host: str = HERE) -> None:
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.bind((host, 0))
        self.sock.setblocking(False)
        self.host = host
        self.port: int = self.sock.getsockname()[1]

    async def receive(self) -> tuple[bytes, Any]:
        while True:  # loop.sock_recvfrom() is not there with uvloop
            with contextlib.suppress(BlockingIOError):
                return self.sock.recvfrom(65535)
            await asyncio.sleep(0.001)

    def send(self, data: bytes, to: Any) -> None:
        self.sock.sendto(data, to)

    async def answer(self) -> bytes:
        """Answer one datagram; what was in it."""
        data, source = await self.receive()
        self.send(b"echo:" + data, source)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


@contextlib.asynccontextmanager
async def association(
    certs: Certs, said: bytes, *, host: str = UOT, options: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Server, AnyTlsPeer]]:
    """A stream that carries datagrams, and has been acknowledged."""
    async with asyncio.timeout(SOON), server_for(certs, **options or {}) as server:
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, host, 0, said)
            assert await peer.frame() == (SYNACK, 1, b"")
            yield server, peer
        await eventually(lambda: empty(server))
