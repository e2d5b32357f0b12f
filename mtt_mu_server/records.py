"""What is known about a user, as plain data."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

# Destination as the operator wrote it, max_conns, rate, expires; see `User`.
Row = tuple[str, int, int, int]
# Bytes up, bytes down, connections so far, and the Unix time at which the user was last seen.
Counters = tuple[int, int, int, int]
NO_COUNTERS: Counters = (0, 0, 0, 0)

# Hexadecimal digits that stand for a path in logs and metrics. 48 bits: among 100,000 users the
# odds that two have the same are 1 in 56,000.
FINGERPRINT_LENGTH = 12


class User(NamedTuple):
    """What the operator said about one user. Zero stands for "no limit"."""

    path: str  # percent-decoded
    dst: str  # host:port
    max_conns: int = 0  # connections at a time
    rate: int = 0  # bytes per second in each direction, all connections together
    expires: int = 0  # Unix time from which on the user is unknown


class Statistics(NamedTuple):
    """What one user has used."""

    bytes_up: int  # from the user to the destination
    bytes_down: int
    total_conns: int
    last_seen: int  # Unix time, 0 for never
    open_conns: int


def fingerprint(path: str) -> str:
    """What stands for a path where it must not be seen: short, and the same for ever."""
    raw = path.encode("utf-8", "surrogateescape")
    return hashlib.sha256(raw).hexdigest()[:FINGERPRINT_LENGTH]
