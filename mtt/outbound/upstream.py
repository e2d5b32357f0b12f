"""The contract of everything that leads to a far end, and the way a tunnel client uses it."""

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
    """Gives streams to one far end. All methods belong to the running event loop.

    Attributes:
        is_multiplexed: whether streams share connections, and are counted apart from these.
    """

    is_multiplexed: bool

    @property
    def sessions(self) -> Collection[Session]:
        """The multiplexed connections that are up."""

    def start(self) -> None:
        """Begin to have ready what the next streams will need."""

    def open_at_once(self) -> StreamTransport | None:
        """A stream, held, if it can be had without waiting."""

    async def open(self) -> StreamTransport:
        """A stream, held. Raises MttError, naming the far end."""

    def ended(self, error: Exception | None) -> None:
        """A stream that was given is over; `error` is what cut it, None for an ordinary end."""

    def renew(self) -> None:
        """Certificates have changed: what is ready was made with the old ones."""

    def stop(self) -> None:
        """Have nothing ready any more; `open` goes on."""

    async def close(self) -> None:
        """Cut everything that has not been handed over."""

    def metrics(self) -> str:
        """Metrics of its own, in Prometheus' text format."""


class Pool:
    """What upstreams have in common that keep sessions: there is nothing to renew or to stop."""

    is_multiplexed = True

    def ended(self, error: Exception | None) -> None:
        """The end of a session is counted when that ends."""

    def renew(self) -> None:
        """Sessions keep what they were made with."""

    def stop(self) -> None:
        """Sessions are closed one by one, when they carry nothing any more."""

    def metrics(self) -> str:
        return waiting_metrics(0, 0)


def waiting_metrics(waiting: int, used: int) -> str:
    """The metrics of -preconnect, which are there in every mode."""
    return metric(
        "mtt_waiting_connections", "gauge", "Connections of -preconnect that wait.", waiting
    ) + metric(
        "mtt_waiting_connections_used_total", "counter", "Tunnels that had one of them.", used
    )
