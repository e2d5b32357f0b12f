"""The rate limit of a user's datagrams towards the user, from a bucket of `mtt.tunnels.rate_limit`.

In the other direction, a `RateLimiter` below the link applies back-pressure, and TCP's window stops
the client. Nothing can stop the sender of UDP, so datagrams wait for tokens in the flows' queues,
and are dropped when these are full.
"""

from __future__ import annotations

from mtt.tunnels.rate_limit import TokenSource
from mtt.udp.link import Link
from mtt.udp.queues import FairQueues
from mtt.wire.datagrams import HEADER_SIZE


class Shaper:
    """Sends datagrams on `link` at the rate of `bucket`. A `Waiter` of the bucket."""

    __slots__ = ("_bucket", "_credit", "_link", "_queues")

    def __init__(self, link: Link, bucket: TokenSource) -> None:
        self._link = link
        self._bucket = bucket
        self._queues = FairQueues()
        self._credit = 0  # tokens received, too few for the next datagram

    @property
    def backlog(self) -> int:
        """Number of tokens that the waiting datagrams need."""
        return max(0, self._queues.size - self._credit)

    def send(self, flow: int, payload: bytes) -> None:
        """Send a datagram now or later, or drop it."""
        if not self._queues:
            price = len(payload) + HEADER_SIZE
            self._credit += self._bucket.take(price - self._credit)
            if self._credit == price:
                self._credit = 0
                self._link.send(flow, payload)
                return
        self._link.counters.dropped_full += self._queues.add(flow, payload)
        self._send_paid()

    def pass_on(self, limit: int) -> int:
        spent = min(limit, self.backlog)
        self._credit += spent
        self._send_paid()
        return spent

    def close(self) -> None:
        """Drop what waits: the link is lost."""
        self._queues.clear()
        self._bucket.leave(self)

    def _send_paid(self) -> None:
        """Send what the credit pays for, and wait for the rest."""
        queues = self._queues
        while queues and self._credit >= (price := queues.next_size):
            self._credit -= price
            self._link.send(*queues.pop())
        if queues:
            self._bucket.wait(self)
