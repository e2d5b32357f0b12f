"""Slots for the controller's requests, which bound their total memory.

A request of up to 2 MiB and its answer are in memory while it has a slot. Requests without a slot
wait in a queue, with at most one read of each in memory; if the queue is full, they are refused.
Large requests get only some of the slots, so that they never delay small ones.

A client that neither sends its request nor reads its answer keeps its slot while no other client
needs it. If others wait, it is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mtt.errors import MttError
from mtt.http.exchange import Exchange

# Slots, and how many of them large requests may have: 32 MiB of bodies.
MAX_SLOTS = 32
MAX_LARGE_SLOTS = 16
# A request above this is large: all small bodies together take no more than one large one.
SMALL = 64 * 1024
# Queued requests: a head and one read of the body each, some 25 MB.
MAX_WAITING = 256

# While others wait: seconds in which a client must transfer MIN_MOVED bytes of request or answer.
# No panel's network is that slow, and the wait for a dead client's slot is short.
STALL_TIME = 2.0
MIN_MOVED = 4096
# Seconds between checks for that.
LOOK_INTERVAL = 0.5


class CrowdedError(MttError):
    """The queue of requests is full."""


class RequestSlots:
    """Assigns slots in the order of the requests."""

    def __init__(self) -> None:
        self._holders: set[_Slot] = set()
        self._waiting: dict[asyncio.Future[None], _Slot] = {}
        self._timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def slot(self, exchange: Exchange, *, large: bool) -> AsyncIterator[None]:
        """Wait for a slot to answer a request, and hold it. Raises CrowdedError."""
        slot = _Slot(exchange, large)
        if not self._waiting and self._is_free(slot):
            self._holders.add(slot)
        else:
            await self._wait(slot)
        try:
            yield
        finally:
            self._holders.discard(slot)
            self._give()

    def close(self) -> None:
        """Stop checking for stalled clients."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_free(self, slot: _Slot) -> bool:
        if slot.large and sum(holder.large for holder in self._holders) >= MAX_LARGE_SLOTS:
            return False
        return len(self._holders) < MAX_SLOTS

    async def _wait(self, slot: _Slot) -> None:
        if len(self._waiting) >= MAX_WAITING:
            raise CrowdedError(f"{MAX_WAITING} requests are waiting already; try again later")
        loop = asyncio.get_running_loop()
        given: asyncio.Future[None] = loop.create_future()
        self._waiting[given] = slot
        self._give()  # a small request overtakes waiting large ones
        if self._timer is None and self._waiting:
            for holder in self._holders:
                holder.mark()
            self._timer = loop.call_later(LOOK_INTERVAL, self._look)
        try:
            await given
        except asyncio.CancelledError:
            self._waiting.pop(given, None)
            self._holders.discard(slot)
            self._give()
            raise

    def _give(self) -> None:
        """Assign free slots to waiting requests, in order."""
        for given, slot in list(self._waiting.items()):
            if self._is_free(slot):
                del self._waiting[given]
                self._holders.add(slot)
                slot.mark()
                given.set_result(None)

    def _look(self) -> None:
        """Cut stalled clients while others wait."""
        self._timer = None
        if not self._waiting:
            return
        self._timer = asyncio.get_running_loop().call_later(LOOK_INTERVAL, self._look)
        for holder in self._holders:
            if holder.has_stalled():
                holder.exchange.cut("stalled while other requests waited")


class _Slot:
    __slots__ = ("_marked_at", "_moved", "exchange", "large")

    def __init__(self, exchange: Exchange, large: bool) -> None:
        self.exchange = exchange
        self.large = large
        self.mark()

    def mark(self) -> None:
        """Start measuring."""
        self._moved = self.exchange.moved
        self._marked_at = asyncio.get_running_loop().time()

    def has_stalled(self) -> bool:
        """Whether the client has moved too few bytes since the last mark."""
        if not self.exchange.waits or self.exchange.moved - self._moved >= MIN_MOVED:
            self.mark()
        return asyncio.get_running_loop().time() - self._marked_at >= STALL_TIME
