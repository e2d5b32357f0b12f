"""The users: their settings, counters and open connections.

Theory of operation
-------------------
Three tables by path, so that a lookup takes the same time for any number of users:

    users     the operator's settings: `Row`
    counters  the traffic so far: `Counters`, of users that have been seen
    live      open connections: `OpenConnections`, only of users that have any

Rows and counters are plain tuples of atoms, which the garbage collector stops tracking. 100,000
instances of a class would make each full collection take 16 ms, during which no tunnel moves.

A tunnel's bytes are added to the counters on request and when it ends (`settle`). Everything is
tied to the path: if a user is deleted and added again while a tunnel is open, the tunnel counts for
the new user.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from mtt.layers.base import StreamTransport
from mtt.tunnels.rate_limit import Bucket
from mtt.users.directory import Carrier, LimitedDirectory, OpenConnections, Session, Steps
from mtt.users.store import NO_COUNTERS, Counters, Row

# Entries between two yields, of about 1 us each: counters to update, or deleted users to free.
SLICE = 1000

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

    def abort(self, reason: str) -> None:
        """Cut the connection; a dial in progress checks `cut`."""
        self.cut = True
        if self.relay is not None:
            self.relay.abort(reason)
        elif self.stream is not None:
            self.stream.abort()


class Users(LimitedDirectory[str, User, Tunnel]):
    """All users of a server, by path.

    `clock` returns the Unix time.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.rows: dict[str, Row] = {}  # all users; read-only for others
        self._counters: dict[str, Counters] = {}
        self._live: dict[str, OpenConnections[Tunnel]] = {}
        self._dirty: set[str] = set()  # paths with changed counters since `take_dirty`
        self.bytes_up = self.bytes_down = self.tunnels_total = 0  # of all users, since the start

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tunnels_open(self) -> int:
        return sum(len(live.tunnels) for live in self._live.values())

    @property
    def sessions_open(self) -> int:
        return sum(len(live.sessions) for live in self._live.values())

    # Admission.

    def find(self, path: str) -> User | None:
        row = self.rows.get(path)
        if row is None or (row[3] and row[3] <= self._clock()):
            return None
        return User(path, *row)

    def has_room(self, user: User) -> bool:
        live = self._live.get(user.path)
        return live is None or live.has_room(user.max_conns)

    def enter(self, user: User, stream: StreamTransport | None) -> Tunnel | None:
        """As in `LimitedDirectory`; without `stream`, the caller sets the tunnel's `relay`."""
        live = self._live.setdefault(user.path, OpenConnections())
        if user.max_conns and len(live.tunnels) >= user.max_conns:
            return None
        tunnel = Tunnel(user.path, stream)
        live.tunnels[tunnel] = None
        self.tunnels_total += 1
        self._count(user.path, 0, 0, 1)
        return tunnel

    async def admitted(self, tunnel: Tunnel) -> bool:
        return True

    def leave(self, tunnel: Tunnel) -> None:
        self._settle(tunnel)
        live = self._live[tunnel.path]
        live.tunnels.pop(tunnel, None)
        self._tidy(tunnel.path, live)

    def session_changed(self, user: User, session: Session) -> None:
        live = self._live.setdefault(user.path, OpenConnections())
        live.session_changed(session)
        self._tidy(user.path, live)

    def buckets(self, user: User) -> tuple[Bucket, Bucket] | None:
        """As in `LimitedDirectory`; when the rate changes, existing connections share it.

        When a rate is set for the first time, existing connections stay unlimited.
        """
        return self._live[user.path].limited_to(user.rate) if user.rate else None

    def known_buckets(self, path: str) -> tuple[Bucket, Bucket] | None:
        """The existing `buckets` of the connections of `path`."""
        live = self._live.get(path)
        return live.buckets if live is not None else None

    def _tidy(self, path: str, live: OpenConnections[Tunnel]) -> None:
        if not (live.tunnels or live.sessions):
            del self._live[path]

    # Commands of the operator. Each change is one atomic step. The remaining work yields to let the
    # event loop run.

    def put(self, rows: dict[str, Row]) -> None:
        """Add users, or overwrite their settings; counters are kept."""
        self.rows.update(rows)

    def load(self, rows: dict[str, Row], counters: dict[str, Counters]) -> None:
        """Start with the saved state of an earlier run."""
        self.rows, self._counters = rows, counters

    def remove(self, paths: list[str]) -> Steps:
        """Delete users and their counters. Open connections continue, uncounted."""
        rows = self.rows
        garbage = [rows.pop(path, None) for path in paths]
        yield
        for start in range(0, len(paths), SLICE):
            for path in paths[start : start + SLICE]:
                self.settle(path)
                self._counters.pop(path, None)
                self._dirty.discard(path)
            yield
        while garbage:
            del garbage[-SLICE:]
            yield

    def clear(self) -> Steps:
        """Delete all users, as `remove` does."""
        garbage: list[dict[str, Any]] = [self.rows, self._counters]
        self.rows, self._counters, self._dirty = {}, {}, set()
        yield
        for path in self.live_paths():
            self.settle(path)
            yield
        for table in garbage:
            while table:
                for _ in range(min(SLICE, len(table))):
                    table.popitem()
                yield

    def cut(self, paths: Iterable[str], reason: str) -> Steps:
        """Cut all connections of `paths`, also of deleted users; one step per connection."""
        for path in paths:
            if path in self._live:
                yield from self._live[path].cut(reason)

    def live_paths(self) -> list[str]:
        """The paths with open connections."""
        return list(self._live)

    def lapsed(self) -> list[str]:
        """The paths of expired users that still have open connections."""
        now = self._clock()
        rows = self.rows
        return [path for path in self._live if (row := rows.get(path)) and 0 < row[3] <= now]

    # Queries of the operator.

    def page(self, offset: int, limit: int) -> list[User]:
        """Users in the order in which they were added."""
        rows = self.rows
        return [User(path, *rows[path]) for path in self.paths(offset, limit)]

    def paths(self, offset: int, limit: int) -> list[str]:
        """The paths of `page`."""
        start = min(offset, len(self.rows))  # islice accepts at most 63 bits
        return list(islice(self.rows, start, start + limit))

    def seen_paths(self) -> list[str]:
        """The paths of all users seen so far."""
        return list(self._counters)

    def statistics(self, path: str) -> Statistics | None:
        """The up-to-date counters of the user of `path`; None without such a user."""
        if path not in self.rows:
            return None
        self.settle(path)
        live = self._live.get(path)
        return Statistics(*self.counters(path), len(live.tunnels) if live is not None else 0)

    # Counting.

    def settle(self, path: str) -> None:
        """Add the bytes of the tunnels of `path` to the counters."""
        if path in self._live:
            for tunnel in self._live[path].tunnels:
                self._settle(tunnel)

    def take_dirty(self) -> list[str]:
        """The paths with changed counters since the last call."""
        dirty, self._dirty = self._dirty, set()
        return list(dirty)

    def mark_dirty(self, paths: Iterable[str]) -> None:
        """Undo `take_dirty` for `paths`."""
        self._dirty.update(path for path in paths if path in self.rows)

    def counters(self, path: str) -> Counters:
        """The counters of `path` as of the last settlement."""
        return self._counters.get(path, NO_COUNTERS)

    def _settle(self, tunnel: Tunnel) -> None:
        relay = tunnel.relay
        if relay is None:
            return
        up, down = relay.sent - tunnel.sent, relay.received - tunnel.received
        if up or down:
            tunnel.sent, tunnel.received = relay.sent, relay.received
            self._count(tunnel.path, up, down, 0)

    def _count(self, path: str, up: int, down: int, opened: int) -> None:
        self.bytes_up += up
        self.bytes_down += down
        if path in self.rows:
            before = self._counters.get(path, NO_COUNTERS)
            self._counters[path] = (
                before[0] + up, before[1] + down, before[2] + opened, int(self._clock())
            )  # fmt: skip
            self._dirty.add(path)
