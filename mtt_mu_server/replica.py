"""A worker's replica of the users, which the hub keeps up to date, and its reports to the hub.

The worker admits connections from its replica, without waiting. Only if the user has a limit of
connections does it ask the hub, which counts those of all workers.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from mtt.address import peer_name
from mtt.errors import StartError
from mtt.layers.base import StreamTransport
from mtt.log import logger
from mtt.observe.hub import Reporter
from mtt.process.link import Message
from mtt.users.directory import LimitedDirectory, Session
from mtt.users.store import Row
from mtt_mu_server.lease import LeasedBucket
from mtt_mu_server.metrics import Events
from mtt_mu_server.user import Tunnel, User, end_reason

# Seconds for the hub to decide whether a user may have another connection; it usually takes a
# millisecond. A hub that takes this long hangs.
ADMISSION_TIME = 5.0
# Seconds to receive all users at the start; 100,000 take half a second.
LOAD_TIME = 60.0
# Tunnels per message of a report.
SLICE = 1000
# Seconds that the supervisor has to end this process after the hub is gone; then it ends itself.
HUB_GONE_TIME = 1.0

# Directions of a rate limit, in the order of `Users.buckets`.
UP, DOWN = 0, 1


@dataclass(slots=True, eq=False, kw_only=True)
class ReplicaTunnel(Tunnel):
    """A tunnel with the number by which the hub identifies it."""

    number: int
    admission: asyncio.Future[bool] | None = None  # while the hub is asked


class UserReplica(Reporter, LimitedDirectory[str, User, Tunnel]):
    """A worker's replica of the users; used there in place of `Users`.

    Args:
        page: returns the metrics of this worker.
        events: counters of this worker; reported ones are subtracted.
    """

    def __init__(self, page: Callable[[], str], events: Events) -> None:
        super().__init__(page)
        self._events = events
        self._rows: dict[str, Row] = {}
        self._staged: list[Message] = []  # changes to apply in one step
        self._blocked: set[str] = set()  # users that are disabled, or have used up their quota
        self.is_watched = False
        self._full: set[str] = set()  # users that have reached their limit of connections
        self._numbers = itertools.count()
        self._tunnels: dict[int, ReplicaTunnel] = {}
        self._sessions: dict[int, Session] = {}
        self._buckets: dict[str, tuple[LeasedBucket, LeasedBucket]] = {}
        self._open: dict[str, int] = {}  # number of tunnels by path
        self._loaded: asyncio.Future[None] | None = None
        self._closing = False

    async def connect(self, hub: socket.socket) -> None:
        self._loaded = asyncio.get_running_loop().create_future()
        self.link.connect(hub)
        try:
            async with asyncio.timeout(LOAD_TIME):
                await self._loaded
        except TimeoutError:
            raise StartError(f"the hub did not send the users within {LOAD_TIME:g} s") from None
        self._report_often()

    async def close(self) -> None:
        self._closing = True
        await super().close()

    # Admission.

    def find(self, path: str) -> User | None:
        row = self._rows.get(path)
        if row is None or (row[3] and row[3] <= time.time()) or path in self._blocked:
            return None
        return User(path, *row)

    def has_room(self, user: User) -> bool:
        return user.path not in self._full

    def enter(self, user: User, stream: StreamTransport) -> Tunnel | None:
        tunnel = ReplicaTunnel(user.path, stream, number=next(self._numbers))
        self._tunnels[tunnel.number] = tunnel
        self._open[user.path] = self._open.get(user.path, 0) + 1
        limited = bool(user.max_conns)
        if limited:
            tunnel.admission = asyncio.get_running_loop().create_future()
        peer = [peer_name(stream)] if self.is_watched else []
        self.link.send("enter", tunnel.number, user.path, limited, *peer)
        return tunnel

    async def admitted(self, tunnel: Tunnel) -> bool:
        assert isinstance(tunnel, ReplicaTunnel)
        if tunnel.admission is None:
            return True
        try:
            async with asyncio.timeout(ADMISSION_TIME):
                return await tunnel.admission
        except TimeoutError:
            logger.error("the hub does not answer whether a user may have another connection")
            return False

    def leave(self, tunnel: Tunnel) -> None:
        assert isinstance(tunnel, ReplicaTunnel)
        del self._tunnels[tunnel.number]
        carrier = tunnel.relay
        sent, received = (carrier.sent, carrier.received) if carrier is not None else (0, 0)
        reason = [end_reason(tunnel)] if self.is_watched else []
        self.link.send("leave", tunnel.number, sent, received, *reason)
        self._open[tunnel.path] -= 1
        if not self._open[tunnel.path]:
            del self._open[tunnel.path]
            if self._buckets.pop(tunnel.path, None):
                self.link.send("idle", tunnel.path)

    def session_changed(self, user: User, session: Session) -> None:
        number = id(session)  # unique while the session exists
        if session.lost:
            self._sessions.pop(number, None)
            self.link.send("session_over", number)
        else:
            self._sessions[number] = session
            self.link.send("session", number, user.path)

    def buckets(self, user: User) -> tuple[LeasedBucket, LeasedBucket] | None:
        path = user.path
        if not user.rate:
            return None
        if path not in self._buckets:
            ask_up, ask_down = (partial(self.link.send, "want", path, way) for way in (UP, DOWN))
            self._buckets[path] = LeasedBucket(ask_up), LeasedBucket(ask_down)
        return self._buckets[path]

    def refused(self, path: str, peer: str) -> None:
        """A connection from `peer` was refused."""
        if self.is_watched:
            self.link.send("refused", path if path in self._rows else "", peer)

    # Messages of the hub.

    def handle(self, message: Message) -> None:
        match message:
            case ["admission", int(number), bool(granted)]:
                waiting = self._tunnels[number].admission if number in self._tunnels else None
                if waiting is not None and not waiting.done():
                    waiting.set_result(granted)
            case ["tokens", str(path), int(direction), int(tokens)]:
                if path in self._buckets:
                    self._buckets[path][direction].given(tokens)
            case ["full", str(path), bool(full)]:
                (self._full.add if full else self._full.discard)(path)
            case ["blocked", list(paths), bool(blocked)]:
                change = self._blocked.update if blocked else self._blocked.difference_update
                change(paths)
            case ["watched", bool(watched)]:
                self.is_watched = watched
            case ["put" | "remove", _] | ["clear"]:
                self._staged.append(message)
            case ["apply", int(number)]:
                self._apply()
                self.link.send("done", number)
            case ["loaded"]:
                assert self._loaded is not None
                self._loaded.set_result(None)
            case ["cut", int(number), str(reason)]:
                if number in self._tunnels:
                    self._tunnels[number].abort(reason)
            case ["cut_session", int(number)]:
                if number in self._sessions:
                    self._sessions[number].abort()
            case ["report", int(number)]:
                self.report()
                self.link.send("done", number)
            case _:
                raise ValueError(f"unknown message {message[:1]}")

    def lost(self) -> None:
        if self._closing:
            return
        # Without the hub, this worker gets no changes, and its reports are lost.
        asyncio.get_running_loop().call_later(HUB_GONE_TIME, self._give_up)

    def report(self) -> None:
        moved: list[int] = []
        for tunnel in self._tunnels.values():
            carrier = tunnel.relay
            if carrier is None:
                continue
            if (carrier.sent, carrier.received) != (tunnel.sent, tunnel.received):
                tunnel.sent, tunnel.received = carrier.sent, carrier.received
                moved += tunnel.number, tunnel.sent, tunnel.received
        for start in range(0, len(moved), 3 * SLICE):
            self.link.send("moved", moved[start : start + 3 * SLICE])
        events = self._events
        if events.unknown or events.full or events.dial_failures:
            self.link.send("events", events.unknown, events.full, events.dial_failures)
            events.unknown = events.full = events.dial_failures = 0
        super().report()

    def _apply(self) -> None:
        """Apply the staged changes in one step."""
        same: dict[Row, Row] = {}  # equal rows share memory
        same_text: dict[str, str] = {}
        for kind, *rest in self._staged:
            if kind == "put":
                rows: dict[str, list[Any]] = rest[0]
                for path, (dst, max_conns, rate, expires) in rows.items():
                    row = (same_text.setdefault(dst, dst), max_conns, rate, expires)
                    self._rows[path] = same.setdefault(row, row)
            elif kind == "remove":
                for path in rest[0]:
                    self._rows.pop(path, None)
                self._blocked.difference_update(rest[0])
            else:
                self._rows = {}
                self._blocked.clear()
        self._staged.clear()

    def _give_up(self) -> None:
        logger.error("the hub is gone, or has dropped this worker")
        os._exit(1)
