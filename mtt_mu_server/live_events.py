"""Server-sent events about connections that open, close or are refused. See docs/api.md.

Without viewers, no worker reports events. An event is encoded once, and put into the queue of each
viewer. The queues are bounded: further events are dropped, and their number is sent when the viewer
reads again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable

from mtt.http.events import encode_event, stream_events
from mtt.http.exchange import Exchange
from mtt.users.store import NO_PROFILE
from mtt_mu_server.user import Tunnel, User, Watcher, end_reason, fingerprint
from mtt_mu_server.users import Users

# Several pages of several operators. With full queues, and as much on its way, they take 16 MB.
MAX_VIEWERS = 32
# Bytes in the queue of a viewer: a thousand events.
MAX_QUEUE = 256 * 1024
# Seconds between two writes to a viewer. One write for each event would cost a busy server with
# 20 viewers 20 system calls for each connection.
WRITE_INTERVAL = 0.2
# Characters of a destination or reason; they may be longer than any page shows.
MAX_TEXT = 200


class LiveEvents(Watcher):
    """Sends what happens to `users` to all viewers. `settle` waits for the workers."""

    def __init__(self, users: Users, settle: Callable[[], Awaitable[None]]) -> None:
        self._users = users
        self._settle = settle
        self._viewers: set[_Viewer] = set()

    @property
    def has_room(self) -> bool:
        """Whether one more viewer is allowed."""
        return len(self._viewers) < MAX_VIEWERS

    async def serve(self, exchange: Exchange) -> None:
        """Answer a request with events until the client disconnects."""
        viewer = _Viewer()
        self._viewers.add(viewer)
        if len(self._viewers) == 1:
            self._users.watch(self)
        viewer.put(_encode("start", time=_rounded(self._users.now), open=self._users.tunnels_open))
        try:
            await self._settle()  # from "start" on, the viewer gets all events
            await stream_events(exchange, viewer.events())
        finally:
            self._viewers.discard(viewer)
            if not self._viewers:
                self._users.watch(None)

    def opened(self, tunnel: Tunnel, user: User) -> None:
        self._publish("open", user.path, tunnel.peer, conn=tunnel.serial, dst=user.dst[:MAX_TEXT])

    def ended(self, tunnel: Tunnel, dst: str) -> None:
        relay = tunnel.relay
        self._publish(
            "end", tunnel.path, tunnel.peer,
            conn=tunnel.serial,
            dst=dst[:MAX_TEXT],
            bytes_up=relay.sent if relay is not None else 0,
            bytes_down=relay.received if relay is not None else 0,
            seconds=_rounded(self._users.now - tunnel.began),
            reason=end_reason(tunnel)[:MAX_TEXT],
        )  # fmt: skip

    def refused(self, path: str, peer: str, reason: str) -> None:
        self._publish("refused", path, peer, reason=reason)

    def _publish(self, kind: str, path: str, peer: str, **fields: object) -> None:
        event = _encode(
            kind,
            time=_rounded(self._users.now),
            id=fingerprint(path) if path else "",
            name=self._users.profiles.get(path, NO_PROFILE)[0],
            peer=peer,
            **fields,
        )
        for viewer in self._viewers:
            viewer.put(event)


class _Viewer:
    """The queue of one viewer."""

    def __init__(self) -> None:
        self._queue: list[bytes] = []
        self._size = 0  # bytes
        self._lost = 0
        self._filled = asyncio.Event()

    def put(self, event: bytes) -> None:
        if self._size + len(event) <= MAX_QUEUE:
            self._queue.append(event)
            self._size += len(event)
            self._filled.set()
        else:
            self._lost += 1

    async def events(self) -> AsyncGenerator[bytes, None]:
        """All events in the queue at a time, as long as the reader asks for more."""
        while True:
            await self._filled.wait()
            events, lost = self._queue, self._lost
            self._queue, self._size, self._lost = [], 0, 0
            self._filled.clear()
            if lost:
                events.append(_encode("lost", count=lost))
            yield b"".join(events)
            await asyncio.sleep(WRITE_INTERVAL)


def _encode(kind: str, **fields: object) -> bytes:
    return encode_event(json.dumps(fields, separators=(",", ":")), name=kind)


def _rounded(seconds: float) -> float:
    return round(seconds, 3)
