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


class Upstream(Protocol):
    """Opens streams to one far end. All methods run in the event loop.

    Attributes:
        is_multiplexed: whether streams share connections; both are then counted separately.
    """

    is_multiplexed: bool

    @property
    def sessions(self) -> Collection[Session]:
        """The multiplexed connections that are established."""

    def start(self) -> None:
        """Start making connections in advance."""

    def open_at_once(self) -> StreamTransport | None:
        """Return a parked stream if one is available without waiting."""

    async def open(self) -> StreamTransport:
        """Return a parked stream. Raises MttError, naming the far end."""

    def ended(self, error: Exception | None) -> None:
        """Called when an opened stream ends: `error` is None after an orderly end."""

    def renew(self) -> None:
        """Replace prepared connections: the certificates have changed."""

    def stop(self) -> None:
        """Stop making connections in advance; `open` keeps working."""

    async def close(self) -> None:
        """Abort everything that has no new owner yet."""

    def metrics(self) -> str:
        """Metrics of this upstream in the Prometheus text format."""


class Pool:
    """Base of upstreams that multiplex sessions: nothing to renew or to stop."""

    is_multiplexed = True

    def ended(self, error: Exception | None) -> None:
        """Do nothing: a session's end is counted when the session ends."""

    def renew(self) -> None:
        """Do nothing: sessions keep the certificates they were made with."""

    def stop(self) -> None:
        """Do nothing: the service closes sessions as they become idle."""

    def metrics(self) -> str:
        return preconnect_metrics(0, 0)


def preconnect_metrics(ready: int, used: int) -> str:
    """The metrics of -preconnect; every mode has them."""
    return metric(
        "mtt_waiting_connections", "gauge", "Preconnected connections that are ready.", ready
    ) + metric(
        "mtt_waiting_connections_used_total", "counter", "Tunnels on preconnected connections.",
        used,
    )  # fmt: skip
