"""The value of the Date header: an HTTP-date (RFC 9110, 5.6.7)."""

from __future__ import annotations

import time
from functools import lru_cache

# English in every locale. In the standard library, only `email` has them, which takes 10 ms to
# import.
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date() -> str:
    return format_date(int(time.time()))


@lru_cache(maxsize=1)  # once a second, for many requests
def format_date(now: int) -> str:
    """The HTTP-date of `now`, in seconds since 1970."""
    at = time.gmtime(now)
    return (
        f"{_DAYS[at.tm_wday]}, {at.tm_mday:02} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04} "
        f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} GMT"
    )
