"""What a pool of preconnected connections dials, on a clock of the test."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from mtt.errors import NetworkError
from mtt.layers.parked import Parked
from mtt.outbound import preconnect, reuse
from mtt.outbound.preconnect import PreconnectPool
from tests.support.clock import Clock
from tests.support.transports import FakeLayer, turns

DOWN = NetworkError("example.com:443: connection refused")


class Network:
    """What the pool dials: fake connections, made while `allowed` is set."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, size: int, *, timeout: float = 300.0
    ) -> None:
        random.seed(7)
        self.clock = Clock(monkeypatch, reuse)
        self.slept = 0.0
        self.address = "192.0.2.1"
        monkeypatch.setattr(preconnect, "get_running_loop", lambda: self.clock)
        for module in (preconnect, reuse):
            monkeypatch.setattr(module, "slept_seconds", lambda: self.slept)
        monkeypatch.setattr(reuse, "source_address", lambda peer: self.address)
        self.made: list[FakeLayer] = []
        self.dials = self.dialling = self.most = 0
        self.allowed = asyncio.Event()
        self.allowed.set()
        self.error: Exception | None = None
        self.on_made: Callable[[FakeLayer], object] = lambda layer: None
        self.lost: list[Exception | None] = []
        self.pool = PreconnectPool(self._connect, size, timeout=timeout, on_lost=self.lost.append)

    async def _connect(self) -> asyncio.Transport:
        self.dials += 1
        self.dialling += 1
        self.most = max(self.most, self.dialling)
        try:
            await self.allowed.wait()
            await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
        finally:
            self.dialling -= 1
        layer = FakeLayer(Parked())
        layer.protocol.connection_made(layer)
        self.made.append(layer)
        self.on_made(layer)
        return layer

    async def start(self) -> None:
        self.pool.start()
        await turns()

    async def take(self) -> FakeLayer:
        transport = await self.pool.open()
        assert isinstance(transport, FakeLayer)
        return transport

    @property
    def open(self) -> int:
        return sum(not layer.closing for layer in self.made)

    async def close(self) -> None:
        await self.pool.close()
        await turns()
        assert not len(self.pool) and not self.clock.pending and not self.dialling
        assert not self.pool._closing
