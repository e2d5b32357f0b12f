"""Whether a connection that was made before may carry what comes next.

Theory of operation
-------------------
A connection whose peer cannot be reached any more looks like one that is idle: TCP notices after
minutes. A pool asks here before it uses a connection again. The answer costs no round trip:

* Packets to the peer leave from another address than when the connection was made: the network has
  changed, and the packets of the connection lead nowhere.
* The computer has slept: the peer, or a NAT in between, may have given the connection up.
* The peer's kernel owes an acknowledgement (`silent_seconds`).
* Another connection of the pool was found dead.

The first, the second and the last are reasons for doubt, not proof. A connection in doubt is asked
for a sign of life at once, and used again after the answer; until then the pool takes or makes
another one. What cannot be asked does not answer, and is not used again.

Where the system does not tell, as on Windows, the rest of the rules holds.
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

# A connection whose peer's kernel has owed an acknowledgement for so long gets nothing new: the
# network may have changed under it. Seconds.
UNANSWERED_TIME = 5.0
# Sleep that may have cost a connection its life, seconds. What is shorter is the rounding of the
# clocks, or no sleep that a peer or a NAT notices.
SLEEP_TIME = 1.0
# How long a look at the route holds, seconds: connections that come in bursts do not pay for one
# each.
ROUTE_TIME = 0.1

# A clock that goes on while the computer sleeps: of Linux; of macOS, where time.monotonic() is
# another one than this. None where time.monotonic() goes on, as on Windows, or nothing is known.
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)
if sys.platform == "darwin":
    _CLOCK = time.CLOCK_MONOTONIC


class Reusable(Protocol):
    """A connection of a pool."""

    @property
    def lower(self) -> StreamTransport: ...

    @property
    def heard_at(self) -> float:
        """Loop time when the peer was heard last."""

    def ask(self) -> None:
        """Ask the peer for a sign of life, if that is possible."""

    def has_answered(self) -> bool:
        """Whether the peer has given the sign of life for which it was asked."""


class ReuseGuard:
    """Knows the connections of a pool, and which of them may be used again."""

    def __init__(self) -> None:
        self._checks: dict[Reusable, _Check] = {}

    def add(self, connection: Reusable) -> None:
        """Watch a connection, which has just been made."""
        self._checks[connection] = _Check(connection)

    def discard(self, connection: Reusable) -> None:
        """Forget a connection."""
        self._checks.pop(connection, None)

    def admits(self, connection: Reusable) -> bool:
        """Whether the connection may be used now."""
        return self._checks[connection].passes(connection)

    def doubt(self, connection: Reusable) -> None:
        """Have the connection asked, and not used before it has answered."""
        self._checks[connection].doubt(connection)

    def doubt_all(self) -> None:
        """One of the pool was found dead: those that are left prove that they live."""
        for connection, check in list(self._checks.items()):
            check.doubt(connection)


class _Check:
    """What is known of one connection."""

    __slots__ = ("_clear_at", "_doubted", "_looked_at", "_peer", "_route", "_slept")

    def __init__(self, connection: Reusable) -> None:
        self._peer = connection.lower.get_extra_info("peername")
        self._doubted = False
        self._clear_at = float("-inf")  # when nothing was owed
        self._looked_at = float("-inf")  # the first use looks
        self._route = source_address(self._peer)
        self._slept = slept_seconds()

    def passes(self, connection: Reusable) -> bool:
        now = asyncio.get_running_loop().time()
        if self._doubted and connection.has_answered():
            self._doubted = False
        if self._has_changed(now):
            self._route = source_address(self._peer)
            self._slept = slept_seconds()
            self._doubted = False  # to be asked anew
            self.doubt(connection)
        if self._doubted:
            return False
        if now - connection.heard_at < UNANSWERED_TIME:
            return True  # nor can it owe us anything for longer
        silent = silent_seconds(connection.lower)
        if not silent:
            self._clear_at = now
        # An idle connection was heard long ago; but what has been written since a use that found
        # nothing owed is younger.
        return min(silent, now - self._clear_at) < UNANSWERED_TIME

    def doubt(self, connection: Reusable) -> None:
        if not self._doubted:
            self._doubted = True
            connection.ask()

    def _has_changed(self, now: float) -> bool:
        """Whether the computer has slept, or changed its network, since that was written down."""
        if slept_seconds() - self._slept > SLEEP_TIME:
            return True
        if now - self._looked_at < ROUTE_TIME:
            return False
        self._looked_at = now
        return source_address(self._peer) != self._route


def means_dead(error: Exception | None) -> bool:
    """Whether a connection that ended with `error` was found dead: neither we nor the peer ended it
    in good order, so others may have died with it."""
    if error is None or isinstance(error, PeerError):
        return False
    return not (isinstance(error, MttError) and error.cause is Cause.EOF)


def slept_seconds() -> float:
    """How long the computer has slept since it was started; 0 where the system does not tell.

    Timers and the time of the loop stand still meanwhile, except on Windows.
    """
    return 0.0 if _CLOCK is None else time.clock_gettime(_CLOCK) - time.monotonic()
