"""The event loop: which one, how late it is, and what becomes of errors that nobody else takes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from mtt.errors import UsageError, describe
from mtt.log import logger
from mtt.metrics import Histogram, metric

# Seconds between two looks at how late the loop is. Whatever holds it up for longer is seen; a look
# takes 4 us.
LAG_INTERVAL = 0.25

# Seconds: from the resolution of timers to what a person would call a hang.
LAG_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loop called `name`: auto, asyncio or uvloop.

    Raises UsageError if it is not installed.
    """
    if name != "asyncio":
        try:
            import uvloop
        except ImportError:
            if name == "uvloop":
                raise UsageError(
                    "-loop uvloop: the Python package uvloop is not installed; install it, "
                    "or use -loop auto"
                ) from None
        else:
            made_by: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
            return made_by
    # The default except on Windows, whose proactor loop would hold on to a receive buffer until
    # data comes. Ours is one buffer for all connections, so it is lent only when data is there.
    return asyncio.SelectorEventLoop


class LagMeter:
    """Measures how much later than due the running loop calls a timer, from now until `stop()`."""

    def __init__(self) -> None:
        self._histogram = Histogram(LAG_BOUNDS)
        self._most = 0.0
        self._schedule()

    def stop(self) -> None:
        self._timer.cancel()

    def lines(self) -> str:
        """The metrics. What was most is forgotten with that."""
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


def report_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A loop's exception handler: one line, with a traceback only for those who debug."""
    error = context.get("exception")
    # A transport hands its error to connection_lost() as well, and there it is logged with the
    # peer's name.
    routine = isinstance(error, OSError) and "transport" in context
    level = logging.DEBUG if routine else logging.ERROR
    reason = f": {_named(error)}" if isinstance(error, BaseException) else ""
    details = error if logger.isEnabledFor(logging.DEBUG) and not routine else None
    logger.log(level, "%s%s", context.get("message", "error"), reason, exc_info=details)


def _named(error: BaseException) -> str:
    """What went wrong, with the class for errors of this program, whose text says too little."""
    if isinstance(error, OSError):
        return describe(error)
    return f"{type(error).__name__}: {error}"
