"""One user of the server, and one connection of a user."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mtt.layers.base import StreamTransport
from mtt.users.directory import Carrier

# Hexadecimal digits of a path's fingerprint in logs and metrics. 48 bits: with 100,000 users the
# probability that two are equal is 1 in 56,000.
FINGERPRINT_LENGTH = 12


class User(NamedTuple):
    """The operator's settings for a user. Zero means "no limit"."""

    path: str  # percent-decoded
    dst: str  # host:port
    max_conns: int = 0  # concurrent connections
    rate: int = 0  # bytes per second in each direction, all connections together
    expires: int = 0  # Unix time at which the user expires


class Statistics(NamedTuple):
    """The counters of a user."""

    bytes_up: int  # from the user to the destination
    bytes_down: int
    total_conns: int
    last_seen: int  # Unix time, 0 for never
    open_conns: int


def fingerprint(path: str) -> str:
    """A short, stable identifier of a path, for logs and metrics, where paths are secret."""
    raw = path.encode("utf-8", "surrogateescape")
    return hashlib.sha256(raw).hexdigest()[:FINGERPRINT_LENGTH]


@dataclass(slots=True, eq=False)
class Tunnel:
    """One connection of a user, from its admission to its end."""

    path: str
    stream: StreamTransport | None
    relay: Carrier | None = None  # None while the destination is being dialled
    sent: int = 0  # bytes of the relay already in the counters
    received: int = 0
    cut: bool = False
    serial: int = 0  # numbers the connections since the start
    began: float = 0.0  # Unix time
    peer: str = ""  # the user's address, only known if the API had a viewer at the start
    reason: str = ""  # of the end, if the relay does not know it

    def abort(self, reason: str) -> None:
        """Cut the connection; a dial in progress checks `cut`."""
        self.cut = True
        self.reason = reason
        if self.relay is not None:
            self.relay.abort(reason)
        elif self.stream is not None:
            self.stream.abort()


def end_reason(tunnel: Tunnel) -> str:
    """Why a connection has ended, as far as is known."""
    return tunnel.reason or str(getattr(tunnel.relay, "reason", ""))


class Watcher(Protocol):
    """Sees connections begin and end."""

    def opened(self, tunnel: Tunnel, user: User) -> None:
        """A connection was admitted."""

    def ended(self, tunnel: Tunnel, dst: str) -> None:
        """An admitted connection has ended."""

    def refused(self, path: str, peer: str, reason: str) -> None:
        """A connection was refused; `path` is that of a user, or empty."""
