"""The value of the Date header."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache


def http_date() -> str:
    return _text_of(int(time.time()))


# Requests come many in a second, so the text is made once in each.
@lru_cache(maxsize=1)
def _text_of(now: int) -> str:
    return formatdate(now, usegmt=True)
