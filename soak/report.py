"""What a soak tells: progress on stderr, and the first broken invariant."""

from __future__ import annotations

import sys
import time

# Seconds between two lines of progress.
INTERVAL = 5.0

_start = time.monotonic()


class Broken(Exception):
    """An invariant does not hold; `str()` says which, in one line."""


def say(line: str) -> None:
    """Print a line with the minutes and seconds since the start."""
    minutes, seconds = divmod(int(time.monotonic() - _start), 60)
    print(f"{minutes}:{seconds:02} {line}", file=sys.stderr, flush=True)


class Progress:
    """A line now and then about something that counts up."""

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        self._next = time.monotonic() + INTERVAL

    def at(self, count: int, more: str = "") -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + INTERVAL
            say(f"{self._name}: {count} of {self._total}{more}")
