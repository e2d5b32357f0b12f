"""Pausing a transport that has something in hand, and resuming it later."""

from __future__ import annotations

import asyncio

from mtt.layers.base import StreamTransport


class Pausable(StreamTransport):
    """A transport that may hold what came while the protocol above had paused it.

    What waits is delivered in a turn of the event loop of its own, never inside `resume_reading`:
    the caller may be in the middle of something. It comes before anything that is read after it,
    and is no more than what the transport below had in hand when it was paused.
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
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._scheduled = False
        if not self._paused:
            self._deliver()
            if not self._paused:
                self._resume_below()

    @property
    def _has_more(self) -> bool:
        """Whether something waits, or may wait, to be handed up."""
        return False

    def _deliver(self) -> None:
        """Hand up what waits, until the protocol above pauses again."""

    def _pause_below(self) -> None:
        """Pause what data come from, if that can be."""

    def _resume_below(self) -> None:
        """Undo that."""
