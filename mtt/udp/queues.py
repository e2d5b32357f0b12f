"""Datagrams that wait for the stream, in one queue for each flow.

The flows take turns, so a flow that sends without a pause delays the others by one datagram each. A
full queue drops its oldest datagram: late datagrams are worth least, and the sender sees the loss
earlier, and slows down earlier, than if the newest were dropped.
"""

from __future__ import annotations

from collections import deque

from mtt.udp.flows import MAX_FLOWS
from mtt.wire.datagrams import HEADER_SIZE, Data

# Bytes that wait in all queues together. The flows share them; each has at least MIN_FLOW_BYTES,
# room for a datagram of ordinary size, and at most MAX_FLOW_BYTES: 50 ms at 10 Mbit/s.
MAX_BYTES = 1024 * 1024
MAX_FLOW_BYTES = 64 * 1024
MIN_FLOW_BYTES = 2 * 1024
# The flows, which a peer may number as it likes, and that of pings.
MAX_QUEUES = MAX_FLOWS + 1


class _Queue(deque[bytes]):
    """The datagrams of one flow, and their bytes."""

    size = 0


class FairQueues:
    """The queues of all flows that have datagrams waiting.

    Attributes:
        size: bytes of all datagrams, with a header for each.
    """

    __slots__ = ("_queues", "size")

    def __init__(self) -> None:
        self._queues: dict[int, _Queue] = {}  # the one whose turn it is comes first
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    @property
    def next_size(self) -> int:
        """Bytes of the next datagram, with its header."""
        return len(next(iter(self._queues.values()))[0]) + HEADER_SIZE

    def add(self, flow: int, payload: Data) -> int:
        """Append a datagram. Returns how many of its flow were dropped for it, itself included."""
        queue = self._queues.get(flow)
        if queue is None:
            if len(self._queues) >= MAX_QUEUES:
                return 1
            queue = self._queues[flow] = _Queue()
        queue.append(bytes(payload))
        self._grow(queue, len(payload) + HEADER_SIZE)
        most = max(MIN_FLOW_BYTES, min(MAX_FLOW_BYTES, MAX_BYTES // len(self._queues)))
        dropped = 0
        while queue.size > most:
            self._grow(queue, -(len(queue.popleft()) + HEADER_SIZE))
            dropped += 1
        if not queue:
            del self._queues[flow]
        return dropped

    def pop(self) -> tuple[int, bytes]:
        """Remove and return the next datagram and its flow, which then waits for its next turn."""
        flow, queue = next(iter(self._queues.items()))
        del self._queues[flow]
        payload = queue.popleft()
        self._grow(queue, -(len(payload) + HEADER_SIZE))
        if queue:
            self._queues[flow] = queue
        return flow, payload

    def discard(self, flow: int) -> int:
        """Drop the datagrams of a flow that has ended. Returns how many."""
        queue = self._queues.pop(flow, None)
        if queue is None:
            return 0
        self.size -= queue.size
        return len(queue)

    def clear(self) -> int:
        """Drop everything. Returns how many datagrams."""
        dropped = sum(map(len, self._queues.values()))
        self._queues.clear()
        self.size = 0
        return dropped

    def _grow(self, queue: _Queue, size: int) -> None:
        queue.size += size
        self.size += size
