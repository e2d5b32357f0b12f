"""Who is let in: limits on connections, and a log line where one bites."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.log import Throttle

# Connections that have not proved anything yet: TLS handshakes and HTTP requests under way, and
# visitors between two requests. Each ends by itself within seconds, so honest ones never fill this
# up; 1000 cost some 20 MB.
MAX_PENDING = 1000


class Pending:
    """Connections that are no tunnels yet. When there are too many, the oldest has to go:

    whoever keeps connections open without using them loses them first, and who comes to use one
    gets through.

    Args:
        limit: how many there may be.
        what: what they are, for the log.
        on_cut: called for each one that has to go.
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
        self._transports: dict[StreamTransport, None] = {}  # in the order of their coming
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

    def discard(self, transport: StreamTransport) -> bool:
        """Forget one; whether it was still there."""
        return self._transports.pop(transport, self) is None

    def close(self) -> None:
        """Cut them all."""
        while self._transports:
            self._transports.popitem()[0].abort()


class Admission:
    """Keeps the number of connections below -max-conns.

    Args:
        limit: how many there may be, 0 for any number.
        count: how many there are.

    Attributes:
        accepted, refused: TCP connections. Each of them counts once, in one of the two.
        tunnels_refused: what came in an accepted one and was refused there.
    """

    def __init__(self, limit: int, count: Callable[[], int]) -> None:
        self._limit = limit
        self._count = count
        self._full = Throttle()
        self.accepted = self.refused = self.tunnels_refused = 0

    def has_room(self) -> bool:
        """Whether a tunnel may begin in an accepted connection; if not, the log says so."""
        if self._is_full("a tunnel"):
            self.tunnels_refused += 1
            return False
        return True

    def guard(self, factory: Callable[[], Any]) -> Callable[[], Any]:
        """A protocol factory that refuses connections while there is no room."""

        def guarded() -> Any:
            if self._is_full("a connection"):
                self.refused += 1
                return _Refused()
            self.accepted += 1
            return factory()

        return guarded

    def _is_full(self, what: str) -> bool:
        if not self._limit or self._count() < self._limit:
            return False
        self._full.warning(f"{what} was refused: -max-conns {self._limit} is reached")
        return True


class _Refused(StreamProtocol):
    """Resets its connection: the peer sees at once that it should try elsewhere or later."""

    __slots__ = ()

    def connection_made(self, transport: Any) -> None:
        transport.abort()

    def data_received(self, data: Data) -> None:
        """Nobody listens."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It was over before."""
