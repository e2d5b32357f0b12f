"""A proxy that connects directly: the local port without a tunnel behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from functools import partial
from typing import Any

from mtt.address import Endpoint
from mtt.errors import DestinationError, MttError, NetworkError
from mtt.layers.base import Data
from mtt.layers.parked import Parked
from mtt.net.dial import Dialer
from mtt.net.resolve import Resolver
from mtt.options.common import ServiceOptions
from mtt.proxy.association import Association
from mtt.proxy.handshake import ProxyHandshake
from mtt.proxy.port import ProxyPort, Route, login_of
from mtt.tunnels.service import Service
from mtt.users.user import User


class DirectProxy(Service):
    """Connects where it is told to; `names` are known to lead to this machine.

    `error` is what every request fails with, `gate` what every one waits for.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        *,
        users: Collection[User] = (),
        udp: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            ServiceOptions(bind=Endpoint((host,), 0), timeout=20),
            Resolver(),
            sessions=lambda: (),
            pending=lambda: 0,
        )
        self._dialer = Dialer(Resolver(), timeout=10)
        self.names = {"echo.test"}
        self.asked: list[tuple[str, int]] = []
        self.error: MttError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.channels: list[EchoChannel] = []
        route = Route(self._open, self.open_packets if udp else None)
        self.proxy = ProxyPort(
            None if users else route,
            self.open_tunnels,
            login=login_of(users, route) if users else None,
            **options,
        )

    async def start(self) -> None:
        await self.serve(partial(ProxyHandshake, self.proxy))

    async def close(self) -> None:
        self.cleanup()
        self.proxy.close()
        await super().close()

    async def _open(self, _: object, host: str, port: int) -> asyncio.Transport:
        self.asked.append((host, port))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        endpoint = Endpoint(("127.0.0.1" if host in self.names else host,), port)
        try:
            return await self._dialer.connect(endpoint, Parked)
        except NetworkError as error:
            raise DestinationError(error.outcome) from None

    async def open_packets(self, association: Association) -> EchoChannel:
        """For ProxyPort: every destination answers with what it gets."""
        if self.error is not None:
            raise self.error
        self.channels.append(EchoChannel(association))
        return self.channels[-1]


class EchoChannel:
    """Sends every datagram back, in upper case, from where it was sent to."""

    def __init__(self, association: Association) -> None:
        self.association = association
        self.sent: list[tuple[str, int, bytes]] = []
        self.closed = False

    def send(self, host: str, port: int, payload: bytes) -> None:
        assert not self.closed
        self.sent.append((host, port, payload))
        answer: Data = memoryview(payload.upper())
        self.association.deliver(host, port, answer)

    def close(self) -> None:
        self.closed = True


@contextlib.asynccontextmanager
async def direct_proxy(host: str = "127.0.0.1", **options: Any) -> AsyncIterator[DirectProxy]:
    proxy = DirectProxy(host, **options)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()
