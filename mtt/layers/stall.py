"""Watches whether the peer of a session takes what is written to it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from mtt.errors import NetworkError

# Seconds between looks.
CHECK_INTERVAL = 1.0


class Watched(Protocol):
    """A session."""

    write_paused: bool

    @property
    def acknowledged(self) -> int:
        """Total bytes that the peer has taken."""

    def abort(self, exc: Exception | None = None) -> None: ...


class StallWatch:
    """Cuts a session whose peer takes nothing for some time, although data waits for it.

    Args:
        session: calls `begin()` when it pauses writing, and `stop()` at its end.
        limit: seconds.
    """

    __slots__ = ("_limit", "_session", "_since", "_taken", "_timer")

    def __init__(self, session: Watched, limit: float) -> None:
        self._session: Watched | None = session
        self._limit = limit
        self._timer: asyncio.TimerHandle | None = None
        self._taken = 0  # bytes, when that was last seen to change
        self._since = 0.0  # when that was

    def begin(self) -> None:
        """Watch the session until it writes again."""
        if self._timer is None and self._session is not None:
            self._taken = self._session.acknowledged
            self._since = asyncio.get_running_loop().time()
            self._look_later()

    def stop(self) -> None:
        """Cancel the timer, and drop the reference to the session."""
        self._session = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL, self._look)

    def _look(self) -> None:
        self._timer = None
        session = self._session
        if session is None or not session.write_paused:
            return
        now, taken = asyncio.get_running_loop().time(), session.acknowledged
        if taken != self._taken:
            self._taken, self._since = taken, now
        elif now - self._since >= self._limit:
            session.abort(NetworkError(f"the peer took nothing for {self._limit:g} s"))
            return
        self._look_later()
