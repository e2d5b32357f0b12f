"""The time of the next monthly reset of counters. Pure functions."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime


def next_reset(day: int, now: float) -> int:
    """The Unix time of the first midnight (UTC) after `now` at which day `day` of a month begins.

    In months without such a day, it is the last day.
    """
    today = datetime.fromtimestamp(now, UTC)
    year, month = today.year, today.month
    while True:
        last = calendar.monthrange(year, month)[1]
        begins = int(datetime(year, month, min(day, last), tzinfo=UTC).timestamp())
        if begins > now:
            return begins
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
