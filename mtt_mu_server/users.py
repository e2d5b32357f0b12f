"""The users: their settings, counters and open connections.

Theory of operation
-------------------
Three tables by path, so that a lookup takes the same time for any number of users:

    users     the operator's settings: `Row`
    counters  the traffic so far: `Counters`, of users that have been seen
    live      open connections: `OpenConnections`, only of users that have any

Users with fields that only the API has also have a `Profile`. Users that are disabled or have used
up their quota are in `blocked`, so that admission needs no other lookup.

Rows and counters are plain tuples of atoms, which the garbage collector stops tracking. 100,000
instances of a class would make each full collection take 16 ms, during which no tunnel moves.

A tunnel's bytes are added to the counters on request and when it ends (`settle`). Everything is
tied to the path: if a user is deleted and added again while a tunnel is open, the tunnel counts for
the new user.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from mtt.address import peer_name
from mtt.layers.base import StreamTransport
from mtt.tunnels.rate_limit import Bucket
from mtt.users.directory import LimitedDirectory, OpenConnections, Session, Steps
from mtt.users.store import NO_COUNTERS, NO_PROFILE, Counters, Profile, Row
from mtt_mu_server.user import Statistics, Tunnel, User, Watcher

# Entries between two yields, of about 1 us each: counters to update, or deleted users to free.
SLICE = 1000
# Seconds from a failed reset to the next try: each logs an error, perhaps to the same full disk.
RETRY_TIME = 10.0


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
        self.profiles: dict[str, Profile] = {}  # those that differ from NO_PROFILE; read-only
        self.blocked: set[str] = set()  # users without new connections; read-only
        # Called when a user is blocked or unblocked.
        self.block_changed: Callable[[str, bool], object] | None = None
        self.watcher: Watcher | None = None  # set by `watch`
        self.watch_changed: Callable[[bool], object] | None = None  # called when one comes or goes
        self._due: float = math.inf  # no reset is due before this Unix time
        self.version = 0  # changes with rows and profiles
        # Paths added since this list was last read; None if there are too many, or none are needed.
        self.added: list[str] | None = None
        self.bytes_up = self.bytes_down = self.tunnels_total = 0  # of all users, since the start

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def now(self) -> float:
        """The Unix time."""
        return self._clock()

    @property
    def tunnels_open(self) -> int:
        return sum(len(live.tunnels) for live in self._live.values())

    @property
    def sessions_open(self) -> int:
        return sum(len(live.sessions) for live in self._live.values())

    # Admission.

    def find(self, path: str) -> User | None:
        row = self.rows.get(path)
        if row is None or (row[3] and row[3] <= self._clock()) or path in self.blocked:
            return None
        return User(path, *row)

    def has_room(self, user: User) -> bool:
        live = self._live.get(user.path)
        return live is None or live.has_room(user.max_conns)

    def enter(
        self, user: User, stream: StreamTransport | None, peer: str = ""
    ) -> Tunnel | None:
        """As in `LimitedDirectory`; without `stream`, the caller sets the tunnel's `relay`, and
        knows the `peer`."""
        live = self._live.setdefault(user.path, OpenConnections())
        if user.max_conns and len(live.tunnels) >= user.max_conns:
            return None
        self.tunnels_total += 1
        tunnel = Tunnel(user.path, stream, serial=self.tunnels_total, began=self._clock())
        live.tunnels[tunnel] = None
        if self.watcher is not None:
            tunnel.peer = peer if stream is None else peer_name(stream)
            self.watcher.opened(tunnel, user)
        self._count(user.path, 0, 0, 1)
        return tunnel

    async def admitted(self, tunnel: Tunnel) -> bool:
        return True

    def leave(self, tunnel: Tunnel) -> None:
        self._settle(tunnel)
        if self.watcher is not None:
            row = self.rows.get(tunnel.path)
            self.watcher.ended(tunnel, row[0] if row is not None else "")
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

    # Watching.

    def watch(self, watcher: Watcher | None) -> None:
        """From now on, tell `watcher` about connections; None ends that."""
        self.watcher = watcher
        if self.watch_changed is not None:
            self.watch_changed(watcher is not None)

    @property
    def is_watched(self) -> bool:
        """Whether `refused` has an effect."""
        return self.watcher is not None

    def refused(self, path: str, peer: str) -> None:
        """A connection from `peer` was refused."""
        if self.watcher is not None:
            known = path in self.rows
            reason = self.state(path) if known else "unknown path"
            reason = "too many connections" if reason == "active" else reason
            self.watcher.refused(path if known else "", peer, reason)

    def state(self, path: str) -> str:
        """Whether the user of `path` is "active", or why not."""
        expires = self.rows[path][3]
        if expires and expires <= self._clock():
            return "expired"
        if not self.profiles.get(path, NO_PROFILE)[1]:
            return "disabled"
        return "used up" if self.is_used_up(path) else "active"

    # Commands of the operator. Each change is one atomic step. The remaining work yields to let the
    # event loop run.

    def put(self, rows: dict[str, Row]) -> None:
        """Add users, or overwrite their settings; counters and profiles are kept."""
        self.version += 1
        if self.added is not None:
            self.added.extend(path for path in rows if path not in self.rows)
            if len(self.added) > len(self.rows) + SLICE:
                self.added = None
        self.rows.update(rows)

    def load(
        self, rows: dict[str, Row], counters: dict[str, Counters], profiles: dict[str, Profile]
    ) -> None:
        """Start with the saved state of an earlier run."""
        self.rows, self._counters, self.profiles = rows, counters, profiles
        times = (profile[4] for profile in profiles.values() if profile[4])
        self._due = min(times, default=math.inf)
        for path in profiles:
            self._review(path)

    def edit(self, path: str, row: Row, profile: Profile) -> None:
        """Add a user, or overwrite settings and profile; counters are kept."""
        self.put({path: row})
        if profile == NO_PROFILE:
            self.profiles.pop(path, None)
        else:
            self.profiles[path] = profile
        self._due = min(self._due, profile[4] or math.inf)
        self._review(path)

    def rename(self, old: str, new: str) -> None:
        """Give the user of `old` a path that has no user yet. Open connections are no longer
        counted."""
        self.settle(old)
        row, profile = self.rows.pop(old), self.profiles.pop(old, NO_PROFILE)
        counters = self._counters.pop(old, None)
        if counters is not None:
            self._counters[new] = counters
            self._dirty.add(new)
        self._dirty.discard(old)
        self.blocked.discard(old)
        self.edit(new, row, profile)

    def reset(self, resets: Iterable[tuple[str, int]]) -> Steps:
        """Set bytes and connections of users to 0, and the time of their next reset."""
        for index, (path, next_reset) in enumerate(resets):
            if path not in self.rows:
                continue
            self.settle(path)
            if path in self._counters:
                self._counters[path] = (0, 0, 0, self._counters[path][3])
            if path in self.profiles:
                name, enabled, quota, day, _ = self.profiles[path]
                self.profiles[path] = (name, enabled, quota, day, next_reset)
                self._due = min(self._due, next_reset or math.inf)
            self._review(path)
            if index % SLICE == SLICE - 1:
                yield

    def due(self) -> list[str]:
        """The paths whose counters are due for their monthly reset."""
        now = self._clock()
        if now < self._due:
            return []
        times = [(profile[4], path) for path, profile in self.profiles.items() if profile[4]]
        self._due = min((time for time, _ in times if time > now), default=math.inf)
        return [path for time, path in times if time <= now]

    def due_again(self) -> None:
        """After failed resets: return them again in RETRY_TIME."""
        self._due = min(self._due, self._clock() + RETRY_TIME)

    def remove(self, paths: list[str]) -> Steps:
        """Delete users and their counters. Open connections continue, uncounted."""
        rows = self.rows
        self.version += 1
        garbage = [rows.pop(path, None) for path in paths]
        if self.profiles:
            for path in paths:
                self.profiles.pop(path, None)
            # Workers do this when they remove the user, and not before.
            self.blocked.difference_update(paths)
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
        garbage: list[dict[str, Any]] = [self.rows, self._counters, self.profiles]
        self.rows, self._counters, self._dirty = {}, {}, set()
        self.profiles, self.blocked, self._due = {}, set(), math.inf
        self.version += 1
        self.added = None
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

    def open_count(self, path: str) -> int:
        """The number of open connections of the user of `path`."""
        live = self._live.get(path)
        return len(live.tunnels) if live is not None else 0

    def live_paths(self) -> list[str]:
        """The paths with open connections."""
        return list(self._live)

    def lapsed(self) -> list[str]:
        """The paths of expired users that still have open connections."""
        now = self._clock()
        rows = self.rows
        return [path for path in self._live if (row := rows.get(path)) and 0 < row[3] <= now]

    def limited(self) -> list[str]:
        """The paths with open connections whose user has a quota."""
        profiles = self.profiles
        if not profiles:
            return []
        return [path for path in self._live if profiles.get(path, NO_PROFILE)[2]]

    def is_used_up(self, path: str) -> bool:
        """Whether the user has no quota left, as of the last settlement."""
        quota = self.profiles.get(path, NO_PROFILE)[2]
        up, down, _, _ = self.counters(path)
        return bool(quota) and up + down >= quota

    def _review(self, path: str) -> None:
        """Decide whether the user of `path` is blocked."""
        blocked = path in self.profiles and (
            not self.profiles[path][1] or self.is_used_up(path)
        )
        if blocked != (path in self.blocked):
            (self.blocked.add if blocked else self.blocked.discard)(path)
            if self.block_changed is not None:
                self.block_changed(path, blocked)

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
        return Statistics(*self.counters(path), self.open_count(path))

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
            if path in self.profiles:
                self._review(path)
