"""The number of connections of each worker, in memory shared by all of them.

The scheduler chooses which idle worker a new connection wakes first. On a quiet machine that is
always the same one, which could get all multiplexed connections of a day. So a worker that has more
connections than another one yields to it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

# A worker yields if it exceeds the smallest load by more than 1/8 of that. A few long-lived
# connections are then spread evenly, and with many the idle worker still comes first.
TOLERANCE = 8

# The load of a worker that does not listen; otherwise it is the number of connections.
_ABSENT = -1


class WorkerLoads:
    """One number per worker. Each worker writes only its own, so no lock is needed."""

    def __init__(self, count: int) -> None:
        self._numbers = memoryview(mmap.mmap(-1, 8 * count)).cast("q")
        for number in range(1, count + 1):
            self.clear(number)

    def clear(self, number: int) -> None:
        """Mark worker `number` (from 1) as absent."""
        self._numbers[number - 1] = _ABSENT

    def for_worker(self, number: int) -> Callable[[int], bool]:
        """A function for worker `number` that stores its load and returns whether to yield."""
        numbers = self._numbers

        def is_heavy(load: int) -> bool:
            numbers[number - 1] = load
            least = min(other for other in numbers if other != _ABSENT)
            return load - least > least // TOLERANCE

        return is_heavy
