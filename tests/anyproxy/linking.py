"""A link to a gateway in tests, with its network and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from anyproxy import link as link_module
from anyproxy.link import Link
from mtt.address import Endpoint
from mtt.errors import NetworkError
from mtt.outbound import reuse
from tests.support.clock import Clock
from tests.support.transports import FakeTransport, turns

GATEWAY = Endpoint(("gateway.example",), 443)
DOWN = NetworkError("connection refused")


class Session:
    """A session with a gateway that answers if a test wants so."""

    def __init__(self, on_end: Callable[[], object], clock: Clock) -> None:
        self.lower = FakeTransport()
        self.lost = False
        self.error: Exception | None = None
        self.open_streams = 0
        self.pings = 0
        self.answers = True
        self._on_end = on_end
        self._clock = clock
        self._heard_at = clock.now

    @property
    def heard_at(self) -> float:
        if self.answers:
            self._heard_at = self._clock.now
        return self._heard_at

    def ping(self) -> None:
        self.pings += 1

    def ping_answered(self) -> bool:
        return self.answers

    def close(self) -> None:
        self.abort()

    def abort(self, exc: Exception | None = None) -> None:
        self.lost, self.error = True, exc
        self._on_end()


class Scene:
    """A link, its gateway, the network in between, and time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gateway: Endpoint = GATEWAY) -> None:
        self.clock = Clock(monkeypatch, link_module, reuse)
        self.route: str | None = "192.0.2.1"
        self.slept = 0.0
        self.peers: set[object] = set()
        for module in (link_module, reuse):
            monkeypatch.setattr(module, "source_address", self._source_address)
            monkeypatch.setattr(module, "slept_seconds", lambda: self.slept)
        self.error: Exception | None = None
        self.attempts: list[float] = []
        self.sessions: list[Session] = []
        self.link = Link(gateway, self._connect)

    def _source_address(self, peer: object) -> str | None:
        self.peers.add(peer)
        return self.route

    async def _connect(self, on_end: Callable[[], object]) -> Session:
        self.attempts.append(self.clock.now)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.sessions.append(Session(on_end, self.clock))
        return self.sessions[-1]

    @property
    def waits(self) -> list[float]:
        """Seconds between attempts."""
        pairs = zip(self.attempts, self.attempts[1:], strict=False)
        return [later - sooner for sooner, later in pairs]

    async def ends(self, error: Exception | None = None) -> None:
        """The session ends."""
        self.sessions[-1].abort(error)
        await turns()


@asynccontextmanager
async def running(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None = None, gateway: Endpoint = GATEWAY
) -> AsyncIterator[Scene]:
    scene = Scene(monkeypatch, gateway)
    scene.error = error
    scene.link.start()
    await turns()
    try:
        yield scene
    finally:
        await scene.link.stop()
        assert not scene.clock.pending
