"""The outcome of an attempt to reach a destination. Pure functions.

The dialling side sets it, and `NetworkError.outcome` carries it. Each codec has a table of its
protocol's replies for the outcomes.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterable


class Outcome(enum.Enum):
    """The outcome of an attempt; failures ordered from the most to the least specific."""

    SUCCEEDED = "connected"
    CONNECTION_REFUSED = "connection refused"
    NETWORK_UNREACHABLE = "network unreachable"
    HOST_UNREACHABLE = "host unreachable"
    UNRESOLVABLE = "no such host"  # the name does not resolve
    NOT_ALLOWED = "not allowed"
    TIMED_OUT = "timed out"
    NO_AGENT = "no agent is connected"  # of a gateway's group
    OVERLOADED = "too many connections"  # of a group, or of an agent
    GENERAL_FAILURE = "the connection failed"

    @property
    def text(self) -> str:
        """The outcome in words."""
        return self.value


_ORDER = tuple(Outcome)

_BY_ERRNO = {
    errno.ECONNREFUSED: Outcome.CONNECTION_REFUSED,
    errno.ENETUNREACH: Outcome.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: Outcome.HOST_UNREACHABLE,
    errno.EHOSTDOWN: Outcome.HOST_UNREACHABLE,
    errno.EACCES: Outcome.NOT_ALLOWED,  # a firewall of this machine
    errno.EPERM: Outcome.NOT_ALLOWED,  # likewise
}


def from_error(error: OSError) -> Outcome:
    """The outcome for the `error` of a failed connect."""
    if isinstance(error, TimeoutError):  # ETIMEDOUT, or asyncio's, which has no errno
        return Outcome.TIMED_OUT
    return _BY_ERRNO.get(error.errno or 0, Outcome.GENERAL_FAILURE)


def most_telling(outcomes: Iterable[Outcome]) -> Outcome:
    """The most specific outcome of attempts at several addresses."""
    return min(outcomes, key=_ORDER.index)
