"""Keepalive: sends a sign of life now and then, and checks for the peer's.

Proxies and CDNs cut idle connections, and hide from TCP that the peer is dead. Only a program that
expects a sign of life from its peer notices.
"""

from __future__ import annotations

import asyncio
import random
from typing import Protocol

# Seconds between two signs of life. Home routers forget a connection after 30 s at the earliest,
# web servers and CDNs cut WebSockets after 60 s, and the Go peers, which send every 30 s, expect
# one within 70 to 140 s. Random, because a peer's check must not fall between two of ours, and a
# regular rhythm is a fingerprint.
INTERVAL = (24.0, 30.0)
# Seconds without a sign of life after which a peer that sends them like this is dead: two intervals
# and some more. Noticed within another CHECK_INTERVAL.
DEAD_TIME = 70.0
CHECK_INTERVAL = 10.0


class Speaker(Protocol):
    """A layer or session that sends signs of life."""

    def keep_alive(self) -> None:
        """Send a sign of life, unless enough is on its way already."""


class Listener(Protocol):
    """A layer or session that expects signs of life."""

    def silent_since(self) -> float | None:
        """Loop time of the peer's last sign of life; None while none can be expected."""

    def peer_is_dead(self) -> None:
        """End the connection: the peer gave no sign of life for DEAD_TIME."""


class Keepalive:
    """Calls `speaker` to send signs of life, and tells `listener`, if any, of a dead peer.

    They call `stop()` when they end.
    """

    __slots__ = ("_check_timer", "_listener", "_speaker", "_timer")

    def __init__(self, speaker: Speaker, listener: Listener | None = None) -> None:
        self._speaker: Speaker | None = speaker
        self._listener = listener
        self._check_timer: asyncio.TimerHandle | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(random.uniform(*INTERVAL), self._keep_alive, loop)
        if listener is not None:
            self._check_timer = loop.call_later(CHECK_INTERVAL, self._check, loop)

    def stop(self) -> None:
        """Cancel the timers, and drop the references to objects that refer to this one."""
        self._speaker = self._listener = None
        self._timer.cancel()
        if self._check_timer is not None:
            self._check_timer.cancel()

    def _keep_alive(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._speaker is not None:
            self._speaker.keep_alive()
        if self._speaker is not None:  # that call may end it
            self._timer = loop.call_later(random.uniform(*INTERVAL), self._keep_alive, loop)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        listener = self._listener
        if listener is None:
            return
        since = listener.silent_since()
        if since is not None and loop.time() - since >= DEAD_TIME:
            listener.peer_is_dead()
        if self._listener is not None:
            self._check_timer = loop.call_later(CHECK_INTERVAL, self._check, loop)
