"""Names and hooks for tests of dialling."""

from __future__ import annotations

import asyncio
import socket

from mtt.address import Endpoint
from mtt.errors import NetworkError
from mtt.layers.base import StreamProtocol
from mtt.net.dial import Dialer
from mtt.net.resolve import Address, Resolver
from mtt.outcome import Outcome


class FixedResolver(Resolver):
    """Knows addresses by heart; None is a name that does not resolve."""

    def __init__(self, names: dict[str, list[tuple[str, int]] | None]) -> None:
        super().__init__()
        self.names = names
        self.forgotten: list[str] = []

    async def resolve(self, host: str, port: int) -> list[Address]:
        found = self.names[host]
        if found is None:
            raise NetworkError(f"cannot resolve {host}: no", outcome=Outcome.HOST_UNREACHABLE)
        return [(socket.AF_INET, address) for address in found]

    def forget(self, host: str) -> None:
        self.forgotten.append(host)


class Holder:
    """A `protect` hook that never lets sockets through to some addresses, in order of attempts."""

    def __init__(self, held: int) -> None:
        self.held = held
        self.sockets: list[socket.socket] = []
        self.reached = asyncio.Event()

    async def __call__(self, sock: socket.socket) -> None:
        self.sockets.append(sock)
        if len(self.sockets) <= self.held:
            self.reached.set()
            await asyncio.get_running_loop().create_future()

    def all_closed(self) -> bool:
        return all(sock.fileno() == -1 for sock in self.sockets)


async def connect(dialer: Dialer, endpoint: Endpoint) -> tuple[str, int]:
    """Connect, close, and tell where it went."""
    transport = await dialer.connect(endpoint, StreamProtocol)
    peer: tuple[str, int] = transport.get_extra_info("peername")
    transport.abort()
    return peer
