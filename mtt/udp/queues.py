"""Datagrams that wait for the stream, in one queue for each flow.

The flows take turns, so one that sends without a pause delays the others by one datagram each. A
queue that is full loses its oldest datagram: what is late is worth least, and a gap close to the
present tells the sender soonest that it has to slow down.
"""

from __future__ import annotations

from collections import deque

from mtt.wire.datagrams import HEADER_SIZE, Data

# Bytes that wait in all queues together. The flows share them; each has at least MIN_FLOW_BYTES,
# room for a datagram of ordinary size, and at most MAX_FLOW_BYTES: 50 ms at 10 Mbit/s.
MAX_BYTES = 1024 * 1024
MAX_FLOW_BYTES = 64 * 1024
MIN_FLOW_BYTES = 2 * 1024


class _Queue(deque[bytes]):
    """The datagrams of one flow, and their bytes."""

    size = 0


class FairQueues:
    """The queues of all flows that have datagrams waiting."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: dict[int, _Queue] = {}  # the one whose turn it is comes first

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, flow: int, payload: Data) -> int:
        """Append a datagram. Returns how many of its flow were dropped for it."""
        queue = self._queues.get(flow)
        if queue is None:
            queue = self._queues[flow] = _Queue()
        queue.append(bytes(payload))
        queue.size += len(payload) + HEADER_SIZE
        most = max(MIN_FLOW_BYTES, min(MAX_FLOW_BYTES, MAX_BYTES // len(self._queues)))
        dropped = 0
        while queue.size > most:
            queue.size -= len(queue.popleft()) + HEADER_SIZE
            dropped += 1
        if not queue:
            del self._queues[flow]
        return dropped

    def pop(self) -> tuple[int, bytes]:
        """Remove and return the next datagram and its flow, which then waits for its next turn."""
        flow, queue = next(iter(self._queues.items()))
        del self._queues[flow]
        payload = queue.popleft()
        if queue:
            queue.size -= len(payload) + HEADER_SIZE
            self._queues[flow] = queue
        return flow, payload

    def discard(self, flow: int) -> int:
        """Drop the datagrams of a flow that has ended. Returns how many."""
        return len(self._queues.pop(flow, ()))

    def clear(self) -> int:
        """Drop everything. Returns how many datagrams."""
        dropped = sum(map(len, self._queues.values()))
        self._queues.clear()
        return dropped
