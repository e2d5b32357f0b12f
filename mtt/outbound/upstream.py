"""The interface between a tunnel and what opens streams to its far end."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from mtt.layers.base import StreamTransport
from mtt.observe.metrics import metric


class Session(Protocol):
    """A multiplexed connection."""

    lower: StreamTransport

    @property
    def open_streams(self) -> int: ...
    def close(self) -> None: ...


class Upstream:
    """Base of what opens streams to one far end. All methods run in the event loop.

    The base has nothing to start, renew or stop, and its streams' ends are counted elsewhere.

    Attributes:
        is_multiplexed: whether streams share connections; both are then counted separately.
        early_data: bytes of a stream's first data that `open_with` takes.
    """

    is_multiplexed = True
    early_data = 0

    @property
    def sessions(self) -> Collection[Session]:
        """The multiplexed connections that are established."""
        return ()

    def start(self) -> None:
        """Start making connections in advance."""

    def open_at_once(self) -> StreamTransport | None:
        """Return a parked stream if one is available without waiting."""
        raise NotImplementedError

    async def open(self) -> StreamTransport:
        """Return a parked stream. Raises MttError, naming the far end."""
        raise NotImplementedError

    async def open_with(self, data: bytes) -> StreamTransport:
        """As `open`; `data` has been sent. Only with `early_data`, which is its longest size."""
        raise NotImplementedError

    def ended(self, error: Exception | None) -> None:
        """Called when an opened stream ends: `error` is None after an orderly end."""

    def renew(self) -> None:
        """Replace prepared connections: the certificates have changed."""

    def stop(self) -> None:
        """Stop making connections in advance; `open` keeps working."""

    async def close(self) -> None:
        """Abort everything that has no new owner yet."""
        raise NotImplementedError

    def metrics(self) -> str:
        """Metrics of this upstream in the Prometheus text format."""
        return preconnect_metrics(0, 0)


def preconnect_metrics(ready: int, used: int) -> str:
    """The metrics of -preconnect; every mode has them."""
    return metric(
        "mtt_waiting_connections", "gauge", "Preconnected connections that are ready.", ready
    ) + metric(
        "mtt_waiting_connections_used_total", "counter", "Tunnels on preconnected connections.",
        used,
    )  # fmt: skip
