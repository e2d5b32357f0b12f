"""Signs of life: one to the peer now and then, and a look for those of the peer.

Proxies and CDNs cut connections on which nothing moves, and behind them TCP does not tell that the
peer is gone: that shows only to a program that expects to hear from it.
"""

from __future__ import annotations

import asyncio
import random
from typing import Protocol

# Seconds between two signs of life. Home routers forget a connection after 30 s at the quickest,
# web servers and CDNs cut WebSockets after 60 s, and the Go peers, which send theirs every 30 s,
# expect one within 70 to 140 s. Never quite the same time: a peer's check must not fall between two
# of ours, and a clockwork rhythm is a fingerprint.
INTERVAL = (24.0, 30.0)
# A peer that sends signs of life as we do is gone when nothing came for so long: two of them and
# some more. It is noticed one CHECK_INTERVAL later at the latest.
DEAD_TIME = 70.0
CHECK_INTERVAL = 10.0


class Speaker(Protocol):
    """A layer or session that sends signs of life."""

    def keep_alive(self) -> None:
        """Send a sign of life, unless enough is on its way already."""


class Listener(Protocol):
    """A layer or session that expects them of its peer."""

    def silent_since(self) -> float | None:
        """Loop time of the peer's last sign of life; None while none can be expected."""

    def peer_is_dead(self) -> None:
        """End the connection: the peer gave no sign of life for DEAD_TIME."""


class Keepalive:
    """Has `speaker` send signs of life, and `listener`, if any, hear of a dead peer.

    Until `stop()`, which they call when they end.
    """

    __slots__ = ("_check_timer", "_listener", "_speaker", "_timer")

    def __init__(self, speaker: Speaker, listener: Listener | None = None) -> None:
        self._speaker: Speaker | None = speaker
        self._listener = listener
        self._timer: asyncio.TimerHandle
        self._check_timer: asyncio.TimerHandle | None = None
        loop = asyncio.get_running_loop()
        self._schedule(loop)
        if listener is not None:
            self._schedule_check(loop)

    def stop(self) -> None:
        """Leave no timer behind, and no references to what refers to this."""
        self._speaker = self._listener = None
        self._timer.cancel()
        if self._check_timer is not None:
            self._check_timer.cancel()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(random.uniform(*INTERVAL), self._keep_alive, loop)

    def _keep_alive(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._speaker is not None:
            self._speaker.keep_alive()
        if self._speaker is not None:  # it may have ended by that
            self._schedule(loop)

    def _schedule_check(self, loop: asyncio.AbstractEventLoop) -> None:
        self._check_timer = loop.call_later(CHECK_INTERVAL, self._check, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        listener = self._listener
        if listener is None:
            return
        since = listener.silent_since()
        if since is not None and loop.time() - since >= DEAD_TIME:
            listener.peer_is_dead()
        if self._listener is not None:
            self._schedule_check(loop)
