"""A question to the peer of a session: is it still there?"""

from __future__ import annotations

from typing import Protocol

from mtt.layers.base import StreamTransport
from mtt.layers.kernel import tells_acknowledged

# What is read within this time of a question may have been sent before it, seconds.
OLD_READ_TIME = 1.0


class Asking(Protocol):
    """What is needed of a session that asks."""

    lower: StreamTransport
    write_paused: bool

    @property
    def heard_at(self) -> float: ...
    @property
    def handed_over(self) -> int: ...
    def send_noop(self) -> None: ...
    def has_sent(self, mark: int) -> bool: ...


class Question:
    """Asks, at `now`, for a sign of life.

    Of the peer's program if the layer below can ask for one, otherwise of its kernel, which
    acknowledges a frame that means nothing.
    """

    __slots__ = ("_asks_below", "_mark", "_time")

    def __init__(self, session: Asking, now: float) -> None:
        self._time = now
        self._asks_below = session.lower.ask()
        if not (self._asks_below or session.write_paused):  # else enough is on its way already
            session.send_noop()
        self._mark = session.handed_over  # what the socket has been given, with the question

    def is_answered(self, session: Asking) -> bool:
        if self._asks_below:
            return session.lower.has_answered()
        if tells_acknowledged(session.lower):
            return session.has_sent(self._mark)
        return session.heard_at > self._time + OLD_READ_TIME
