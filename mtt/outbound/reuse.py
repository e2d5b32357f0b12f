"""Liveness checks before an existing connection is reused.

Theory of operation
-------------------
A connection to an unreachable peer looks idle; TCP notices only after minutes. So a pool checks a
connection here before reuse. The check costs no round trip. It looks for these signs:

* The route to the peer has another source address than when the connection was made: the network
  has changed, and the connection's packets lead nowhere.
* The computer has slept: the peer, or a NAT in between, may have dropped the connection.
* The peer's kernel owes an acknowledgement (`silent_seconds`).
* Another connection of the pool was found dead.

The first, second and last sign are suspicions, not proof. The guard asks the peer for a sign of
life at once; the connection is reusable after the answer. Meanwhile the pool takes or makes another
connection. A connection that cannot be asked never answers, so it is not reused.

If the system does not report one of the signs, as on Windows, the others still apply.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Protocol

from mtt.errors import Cause, MttError, PeerError
from mtt.layers.base import StreamTransport
from mtt.layers.kernel import silent_seconds
from mtt.net.sockets import source_address

# A connection whose peer's kernel has owed an acknowledgement for this long, seconds, is not
# reused: the network may have changed.
UNANSWERED_TIME = 5.0
# Sleep that may have killed a connection, seconds. Anything shorter is clock rounding, or too short
# for a peer or a NAT to notice.
SLEEP_TIME = 1.0
# Seconds for which a route check stays valid, so that a burst of uses costs one check.
ROUTE_TIME = 0.1

# A clock that counts the time asleep, on Linux and macOS; on macOS time.monotonic() is a different
# clock. None where time.monotonic() counts it, as on Windows, or where nothing is known.
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)
if sys.platform == "darwin":
    _CLOCK = time.CLOCK_MONOTONIC


class Reusable(Protocol):
    """A connection of a pool."""

    @property
    def lower(self) -> StreamTransport: ...

    @property
    def heard_at(self) -> float:
        """Loop time when data last arrived from the peer."""

    def ping(self) -> None:
        """Ask the peer for a sign of life, if possible."""

    def ping_answered(self) -> bool:
        """Whether the peer has answered the last `ping`."""


class ReuseGuard:
    """Decides which connections of a pool are reusable."""

    def __init__(self) -> None:
        self._checks: dict[Reusable, _Liveness] = {}

    def add(self, connection: Reusable) -> None:
        """Add a connection that was just made."""
        self._checks[connection] = _Liveness(connection)

    def discard(self, connection: Reusable) -> None:
        """Forget a connection."""
        self._checks.pop(connection, None)

    def admits(self, connection: Reusable) -> bool:
        """Whether the connection is reusable now."""
        return self._checks[connection].is_reusable(connection)

    def verify(self, connection: Reusable) -> None:
        """Ask the peer for a sign of life, and admit the connection only after the answer."""
        self._checks[connection].verify(connection)

    def verify_all(self) -> None:
        """Verify all connections, because one of the pool was found dead."""
        for connection, check in list(self._checks.items()):
            check.verify(connection)


class _Liveness:
    """Liveness state of one connection."""

    __slots__ = ("_acknowledged_at", "_checked_at", "_peer", "_route", "_slept", "_unverified")

    def __init__(self, connection: Reusable) -> None:
        self._peer = connection.lower.get_extra_info("peername")
        self._unverified = False
        self._acknowledged_at = float("-inf")  # last time nothing was owed
        self._checked_at = float("-inf")  # check at the first use
        self._route = source_address(self._peer)
        self._slept = slept_seconds()

    def is_reusable(self, connection: Reusable) -> bool:
        now = asyncio.get_running_loop().time()
        if self._unverified and connection.ping_answered():
            self._unverified = False
        if self._has_changed(now):
            self._route = source_address(self._peer)
            self._slept = slept_seconds()
            self._unverified = False  # ask again
            self.verify(connection)
        if self._unverified:
            return False
        if now - connection.heard_at < UNANSWERED_TIME:
            return True  # so no acknowledgement is older
        silent = silent_seconds(connection.lower)
        if not silent:
            self._acknowledged_at = now
        # `silent` counts from the last arrival, long ago on an idle connection. Anything still
        # unacknowledged was written after the last check that found nothing owed.
        return min(silent, now - self._acknowledged_at) < UNANSWERED_TIME

    def verify(self, connection: Reusable) -> None:
        if not self._unverified:
            self._unverified = True
            connection.ping()

    def _has_changed(self, now: float) -> bool:
        """Whether the computer has slept or its route has changed since the recorded state."""
        if slept_seconds() - self._slept > SLEEP_TIME:
            return True
        if now - self._checked_at < ROUTE_TIME:
            return False
        self._checked_at = now
        return source_address(self._peer) != self._route


def is_abnormal_end(error: Exception | None) -> bool:
    """Whether `error` means that the connection broke, so that others may be dead as well.

    Neither side ended it in an orderly way.
    """
    if error is None or isinstance(error, PeerError):
        return False
    return not (isinstance(error, MttError) and error.cause is Cause.EOF)


def slept_seconds() -> float:
    """Seconds asleep since the computer was started; 0 where the system does not report it.

    Timers and loop time stop during sleep, except on Windows.
    """
    return 0.0 if _CLOCK is None else time.clock_gettime(_CLOCK) - time.monotonic()
