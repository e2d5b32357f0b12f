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
# Addresses that are remembered, about 2 MB. Above it, the one whose last failure is the oldest is
# forgotten.
MAX_ADDRESSES = 10_000


class LoginThrottle:
    """Failed logins by address. IPv6 addresses count by their /64, which is what one user has.

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
        network = _network(address)
        with self._lock:
            since, count = self._failures.get(network, (0.0, 0))
        return count >= MAX_FAILURES and self._clock() - since < WINDOW

    def failed(self, address: str) -> None:
        """Count a failed login."""
        network = _network(address)
        now = self._clock()
        with self._lock:
            since, count = self._failures.pop(network, (now, 0))
            if now - since >= WINDOW:
                since, count = now, 0
            self._failures[network] = (since, count + 1)
            if len(self._failures) > MAX_ADDRESSES:
                del self._failures[next(iter(self._failures))]


def _network(address: str) -> str:
    address = unmapped(address).partition("%")[0]
    if ":" not in address:
        return address
    return str(ipaddress.ip_network(f"{address}/64", strict=False))
