"""Limits on the number of connections; a log line reports when one is reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.log import Throttle

# Unauthenticated connections: TLS handshakes and HTTP requests in progress, and visitors of the
# fallback site between two requests. Each ends within seconds, so legitimate ones never reach this
# limit; 1000 take some 20 MB.
MAX_PENDING = 1000


class Pending:
    """Connections that are not tunnels yet. Above `limit`, the oldest is cut, and `on_cut` called.

    So connections that are held open without being used go first, and clients that use theirs get
    through. `what` describes the connections, for the log.
    """

    def __init__(
        self,
        limit: int = MAX_PENDING,
        *,
        what: str = "connections are in their handshakes",
        on_cut: Callable[[], object] | None = None,
    ) -> None:
        self._limit = limit
        self._what = what
        self._on_cut = on_cut
        self._transports: dict[StreamTransport, None] = {}  # oldest first
        self._full = Throttle()

    def __len__(self) -> int:
        return len(self._transports)

    def add(self, transport: StreamTransport) -> None:
        self._transports[transport] = None
        if len(self._transports) > self._limit:
            oldest = next(iter(self._transports))
            self.discard(oldest)
            self._full.warning(f"more than {self._limit} {self._what}; the oldest was cut")
            oldest.abort()
            if self._on_cut is not None:
                self._on_cut()

    def __contains__(self, transport: StreamTransport) -> bool:
        return transport in self._transports

    def discard(self, transport: StreamTransport) -> None:
        self._transports.pop(transport, None)

    def close(self) -> None:
        """Cut all of them."""
        while self._transports:
            self._transports.popitem()[0].abort()


class Admission:
    """Enforces -max-conns: a `limit`, 0 for none, on the number that `count` returns.

    Attributes:
        limit: may change.
        above: another limit that holds as well, of several tunnels together.
    """

    def __init__(self, limit: int, count: Callable[[], int]) -> None:
        self.limit = limit
        self.above: Admission | None = None
        self._count = count
        self._full = Throttle()
        self.accepted = self.refused = 0  # TCP connections; each counts in one of the two
        self.tunnels_refused = 0  # inside accepted connections

    def has_room(self) -> bool:
        """Whether a tunnel may start in an accepted connection; a refusal is logged."""
        if self._is_full("a tunnel"):
            self.tunnels_refused += 1
            return False
        return True

    def guard(self, factory: Callable[[], Any]) -> Callable[[], Any]:
        """A protocol factory that refuses connections while the limit is reached."""

        def guarded() -> Any:
            if self._is_full("a connection"):
                self.refused += 1
                return _Refused()
            self.accepted += 1
            return factory()

        return guarded

    def _is_full(self, what: str) -> bool:
        if not self.limit or self._count() < self.limit:
            return self.above is not None and self.above._is_full(what)
        self._full.warning(f"{what} was refused: -max-conns {self.limit} is reached")
        return True


class _Refused(StreamProtocol):
    """Resets its connection, so that the peer can try elsewhere at once."""

    __slots__ = ()

    def connection_made(self, transport: Any) -> None:
        transport.abort()

    def data_received(self, data: Data) -> None:
        """Ignored: the connection is being reset."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to do: the connection was reset at the start."""
