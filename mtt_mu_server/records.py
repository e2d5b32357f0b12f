"""Plain data about users."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

# Hexadecimal digits of a path's fingerprint in logs and metrics. 48 bits: with 100,000 users the
# probability that two are equal is 1 in 56,000.
FINGERPRINT_LENGTH = 12


class User(NamedTuple):
    """The operator's settings for a user. Zero means "no limit"."""

    path: str  # percent-decoded
    dst: str  # host:port
    max_conns: int = 0  # concurrent connections
    rate: int = 0  # bytes per second in each direction, all connections together
    expires: int = 0  # Unix time at which the user expires


class Statistics(NamedTuple):
    """The counters of a user."""

    bytes_up: int  # from the user to the destination
    bytes_down: int
    total_conns: int
    last_seen: int  # Unix time, 0 for never
    open_conns: int


def fingerprint(path: str) -> str:
    """A short, stable identifier of a path, for logs and metrics, where paths are secret."""
    raw = path.encode("utf-8", "surrogateescape")
    return hashlib.sha256(raw).hexdigest()[:FINGERPRINT_LENGTH]
