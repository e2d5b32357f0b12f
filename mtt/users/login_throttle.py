"""Slows down guessing of passwords: too many failures from one address block its logins."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from threading import Lock

from mtt.address import unmapped

# Failures within WINDOW seconds that block an address, until they are as old. A program with an old
# password fails as often in a minute, its user does not; a guesser gets 14,400 tries a day.
MAX_FAILURES = 10
WINDOW = 60.0
# The same for the /48 of an IPv6 address. One customer of a hosting provider or tunnel broker may
# have a /48, but so may hundreds of users of a mobile network.
MAX_SITE_FAILURES = 100
# Addresses and networks in the table, about 2 MB. One more removes the one whose last failure is
# oldest.
MAX_ADDRESSES = 10_000


class LoginThrottle:
    """Failed logins by address. IPv6 addresses count by their /64, which is what one user has, and
    by their /48.

    Threads may share it. Logins that succeed change nothing: if they erased the failures, a guesser
    with one valid password could continue without limit.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: dict[str, tuple[float, int]] = {}  # start of the window, failures in it
        self._lock = Lock()

    def blocks(self, address: str) -> bool:
        """Whether logins from this address (an IP literal, or "" for none) are refused unseen."""
        now = self._clock()
        with self._lock:
            for network, limit in _networks(address):
                since, count = self._failures.get(network, (0.0, 0))
                if count >= limit and now - since < WINDOW:
                    return True
        return False

    def failed(self, address: str) -> None:
        """Count a failed login."""
        now = self._clock()
        with self._lock:
            for network, _ in _networks(address):
                since, count = self._failures.pop(network, (now, 0))
                if now - since >= WINDOW:
                    since, count = now, 0
                self._failures[network] = (since, count + 1)
            while len(self._failures) > MAX_ADDRESSES:
                del self._failures[next(iter(self._failures))]


def _networks(address: str) -> tuple[tuple[str, int], ...]:
    """What an address counts as, each with its limit."""
    address = unmapped(address).partition("%")[0]
    if ":" not in address:
        return ((address, MAX_FAILURES),)
    packed = ipaddress.IPv6Address(address).packed
    return (packed[:8].hex(), MAX_FAILURES), (packed[:6].hex(), MAX_SITE_FAILURES)
