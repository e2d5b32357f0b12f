"""How many connections each worker has, in memory that all of them see.

Which of the idle workers a new connection wakes first is up to the scheduler, and on a quiet
machine that is always the same one: all multiplexed connections of a day can end up there. So who
has more than another one lets that one go first.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable

# Whoever has so much more than the least, as a part of that, lets others go first: a few long-lived
# connections are dealt out one by one, and among many the idle one still is the first.
TOLERANCE = 8

# Of a worker that does not listen. Else the number of connections.
_ABSENT = -1


class WorkerLoads:
    """One number per worker. Each writes its own only, so no lock is needed."""

    def __init__(self, count: int) -> None:
        self._numbers = memoryview(mmap.mmap(-1, 8 * count)).cast("q")
        for number in range(1, count + 1):
            self.clear(number)

    def clear(self, number: int) -> None:
        """Worker `number`, from 1, is gone."""
        self._numbers[number - 1] = _ABSENT

    def for_worker(self, number: int) -> Callable[[int], bool]:
        """For worker `number`: told its load, says whether that is more than another one's."""
        numbers = self._numbers

        def is_heavy(load: int) -> bool:
            numbers[number - 1] = load
            least = min(other for other in numbers if other != _ABSENT)
            return load - least > least // TOLERANCE

        return is_heavy
