"""The rate limits of a gateway's groups: all streams of a group share the tokens of one bucket."""

from __future__ import annotations

from collections.abc import Callable

from mtt.layers.base import StreamTransport
from mtt.outbound.groups import Groups
from mtt.tunnels.rate_limit import Bucket
from mtt.tunnels.two_way_rate import TwoWayRateLimiter

# Buckets to keep; above it, those of groups without agents are forgotten.
MAX_BUCKETS = 1000
# Bytes per second of a group whose limit was removed, for streams that it still slows down.
UNLIMITED = 1 << 40


class GroupRates:
    """The buckets of the groups.

    Args:
        rate_of: returns the bytes per second of a group by its name, both directions together; 0
            for unlimited.
        groups: the groups with agents.
    """

    def __init__(self, rate_of: Callable[[str], int], groups: Groups) -> None:
        self._rate_of = rate_of
        self._groups = groups
        self._buckets: dict[str, Bucket] = {}

    def limited(self, group: str, stream: StreamTransport) -> StreamTransport:
        """A parked stream of a group, below its rate limit if it has one."""
        rate = self._rate_of(group)
        if not rate:
            return stream
        bucket = self._buckets.get(group)
        if bucket is None:
            bucket = Bucket(rate)
            self._buckets[group] = bucket
            if len(self._buckets) > MAX_BUCKETS:
                self._forget()
        limiter = TwoWayRateLimiter(bucket)
        limiter.start(stream)
        return limiter

    def refresh(self) -> None:
        """Use changed rates, also for open streams."""
        for group, bucket in self._buckets.items():
            bucket.rate = self._rate_of(group) or UNLIMITED

    def _forget(self) -> None:
        """Forget the buckets of groups without agents, and so without streams."""
        self._buckets = {
            group: bucket
            for group, bucket in self._buckets.items()
            if self._groups.get(group) is not None
        }
