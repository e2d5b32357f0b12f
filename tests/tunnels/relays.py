"""A relay between two fake transports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mtt.layers.parked import Parked
from mtt.tunnels.relay import Relay
from tests.support.transports import FakeLayer, FakeTransport, turns


def half_closing() -> FakeTransport:
    return FakeTransport()


def one_end_only() -> FakeTransport:
    """A transport without half-close, like WebSocket and smux towards Go peers."""
    return FakeLayer(half_close=False)


def own_end() -> FakeTransport:
    """A layer with half-close, as when both peers are mtt."""
    return FakeLayer(half_close=True)


class Tunnel:
    """A relay between two transports that were parked."""

    def __init__(
        self,
        near: Callable[[], FakeTransport] = half_closing,
        far: Callable[[], FakeTransport] = half_closing,
        *,
        timeout: float = 30.0,
        prepare: Callable[[Tunnel], Any] = lambda tunnel: None,
    ) -> None:
        self.near, self.far = near(), far()
        self.parked_ends = []
        for transport in (self.near, self.far):
            parked = Parked()
            transport.set_protocol(parked)
            parked.connection_made(transport)
            self.parked_ends.append(parked)
        prepare(self)
        self.over: list[Relay] = []
        self.relay = Relay(self.near, self.far, timeout=timeout, done=self.over.append)

    @property
    def ending(self) -> bool:
        return bool(self.relay.reason)

    async def finish(self) -> Relay:
        """Lose both transports and check that the relay ends exactly once."""
        for transport in (self.near, self.far):
            transport.lose(None)
        await turns()
        assert self.over == [self.relay]
        assert self.relay._idle_timer is not None
        assert self.relay._idle_timer.cancelled()
        assert self.relay._quiet_timer is None or self.relay._quiet_timer.cancelled()
        return self.relay
