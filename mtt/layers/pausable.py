"""Pausing a transport that still holds data, and resuming it later."""

from __future__ import annotations

import asyncio

from mtt.layers.base import StreamTransport


class Pausable(StreamTransport):
    """A transport that may hold data that arrived while the protocol above had paused it.

    It delivers that data in a separate turn of the event loop, never inside `resume_reading`, whose
    caller may be in the middle of something. The data comes before anything that is read later, and
    is at most what the transport below held when it was paused.
    """

    __slots__ = ("_paused", "_scheduled")

    _paused: bool  # by the protocol above
    _scheduled: bool  # delivery is due in the next turn

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True
        self._pause_below()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if self._has_more:
                self._deliver_soon()
            else:
                self._resume_below()

    def _deliver_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver_scheduled)

    def _deliver_scheduled(self) -> None:
        self._scheduled = False
        if not self._paused:
            self._deliver()
            if not self._paused:
                self._resume_below()

    @property
    def _has_more(self) -> bool:
        """Whether the transport holds, or may hold, data for the protocol above."""
        return False

    def _deliver(self) -> None:
        """Hand up the held data, until the protocol above pauses again."""

    def _pause_below(self) -> None:
        """Pause the source of the data, if possible."""

    def _resume_below(self) -> None:
        """Resume the source of the data."""
