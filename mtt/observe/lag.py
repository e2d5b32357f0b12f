"""How late the event loop is: what a tunnel feels when something holds the loop up."""

from __future__ import annotations

import asyncio
import time

from mtt.observe.metrics import Histogram, metric

# Seconds between two looks at how late the loop is. Whatever holds it up for longer is seen; a look
# takes 4 us.
LAG_INTERVAL = 0.25

# Seconds: from the resolution of timers to what a person would call a hang.
LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class LagMeter:
    """Measures how late the running loop calls a timer, from `start()` to `stop()`."""

    def __init__(self) -> None:
        self._histogram = Histogram(LAG_BOUNDS)
        self._most = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._timer is None:
            self._schedule()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def lines(self) -> str:
        """The metrics, none unless it runs. What was most is forgotten with that."""
        if self._timer is None:
            return ""
        self._measure()  # also what is going on at this moment
        most, self._most = self._most, 0.0
        return self._histogram.lines(
            "mtt_event_loop_lag_seconds", "How late the event loop called a timer."
        ) + metric(
            "mtt_event_loop_lag_max_seconds", "gauge", "The most of it since somebody last asked.",
            most,
        )  # fmt: skip

    def _schedule(self) -> None:
        # Not the loop's clock, which in uvloop stands still while the loop is busy.
        self._due = time.monotonic() + LAG_INTERVAL
        self._timer = asyncio.get_running_loop().call_later(LAG_INTERVAL, self._look)

    def _look(self) -> None:
        late = max(0.0, time.monotonic() - self._due)
        self._histogram.add(late)
        self._most = max(self._most, late)
        self._schedule()

    def _measure(self) -> None:
        self._most = max(self._most, time.monotonic() - self._due)
