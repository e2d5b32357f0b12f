"""The lag of the event loop: the delay that tunnels see when something blocks the loop."""

from __future__ import annotations

import asyncio
import time

from mtt.observe.metrics import Histogram, metric

# Seconds between measurements. Anything that blocks the loop for longer is noticed. A measurement
# takes 4 us.
LAG_INTERVAL = 0.25

# Seconds: from the resolution of timers to an obvious hang.
LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class LagMeter:
    """Measures the delay of timers in the running loop, from `start()` to `stop()`."""

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
        """The metrics, with the current delay; empty unless running. Resets the maximum."""
        if self._timer is None:
            return ""
        most, self._most = max(self._most, time.monotonic() - self._due), 0.0
        return self._histogram.lines(
            "mtt_event_loop_lag_seconds", "How late the event loop called a timer."
        ) + metric(
            "mtt_event_loop_lag_max_seconds", "gauge", "Maximum lag since the previous scrape.",
            most,
        )  # fmt: skip

    def _schedule(self) -> None:
        # Not the loop's clock: in uvloop it does not advance while the loop is busy.
        self._due = time.monotonic() + LAG_INTERVAL
        self._timer = asyncio.get_running_loop().call_later(LAG_INTERVAL, self._look)

    def _look(self) -> None:
        late = max(0.0, time.monotonic() - self._due)
        self._histogram.add(late)
        self._most = max(self._most, late)
        self._schedule()
