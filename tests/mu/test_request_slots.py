"""Slots for the controller's requests: waiting, overtaking, and cutting stalled clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt_mu_server import request_slots
from mtt_mu_server.request_slots import (
    MAX_LARGE_SLOTS,
    MAX_SLOTS,
    MAX_WAITING,
    CrowdedError,
    RequestSlots,
)
from tests.support import transports
from tests.support.clock import Clock


class Client:
    """An exchange as `RequestSlots` sees it, and the task that serves it."""

    def __init__(self, slots: RequestSlots, *, large: bool = False) -> None:
        self.moved = 0
        self.waits = True
        self.served = False
        self._over = asyncio.Event()
        self.task = asyncio.create_task(self._serve(slots, large))

    async def _serve(self, slots: RequestSlots, large: bool) -> None:
        exchange: Any = self
        async with slots.slot(exchange, large=large):
            self.served = True
            await self._over.wait()

    def leave(self) -> None:
        self._over.set()

    def cut(self, reason: str) -> None:
        assert reason == "stalled while other requests waited"
        self.leave()


@contextlib.asynccontextmanager
async def crowd() -> AsyncIterator[tuple[RequestSlots, list[Client]]]:
    """RequestSlots, and clients for them, which are gone at the end."""
    slots = RequestSlots()
    clients: list[Client] = []
    yield slots, clients
    slots.close()
    for client in clients:
        client.task.cancel()
    await asyncio.gather(*(client.task for client in clients), return_exceptions=True)


def served(clients: list[Client]) -> int:
    return sum(client.served for client in clients)


async def test_slots_are_assigned_in_order() -> None:
    async with crowd() as (slots, clients):
        clients += [Client(slots) for _ in range(MAX_SLOTS + 3)]
        await transports.turns()
        for number in range(3):
            assert served(clients) == MAX_SLOTS + number
            clients[number].leave()
            await transports.turns()
            assert clients[MAX_SLOTS + number].served


async def test_small_requests_overtake_large_ones() -> None:
    async with crowd() as (slots, clients):
        clients += [Client(slots, large=True) for _ in range(MAX_SLOTS + 1)]
        await transports.turns()
        assert served(clients) == MAX_LARGE_SLOTS
        small = [Client(slots) for _ in range(MAX_SLOTS - MAX_LARGE_SLOTS + 1)]
        clients += small
        await transports.turns()
        assert [client.served for client in small] == [True] * (len(small) - 1) + [False]
        # The large one that waits has come first.
        clients[0].leave()
        await transports.turns()
        assert clients[MAX_LARGE_SLOTS].served
        assert not small[-1].served
        small[0].leave()
        await transports.turns()
        assert small[-1].served


async def test_full_queue_refuses() -> None:
    async with crowd() as (slots, clients):
        clients += [Client(slots) for _ in range(MAX_SLOTS + MAX_WAITING)]
        await transports.turns()
        late = Client(slots)
        with pytest.raises(CrowdedError, match="try again later"):
            await late.task
        clients[-1].task.cancel()  # no longer in line
        await transports.turns()
        clients.append(Client(slots))
        await transports.turns()
        assert not clients[-1].task.done()


async def test_cancelled_client_releases_its_slot() -> None:
    async with crowd() as (slots, clients):
        clients += [Client(slots) for _ in range(MAX_SLOTS + 2)]
        await transports.turns()
        clients[0].leave()
        await asyncio.sleep(0)  # its turn is given to the next one, which does not know yet
        clients[MAX_SLOTS].task.cancel()
        await transports.turns()
        assert clients[MAX_SLOTS + 1].served


async def test_stalled_clients_are_cut_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, request_slots)
    async with crowd() as (ours, clients):
        clients += [Client(ours) for _ in range(MAX_SLOTS)]
        stalled, slow, dripping, busy = clients[:4]
        busy.waits = False  # for the server, not the client
        for other in clients[4:]:
            other.waits = False
        await clock.passes(10 * request_slots.STALL_TIME)
        assert not any(client.task.done() for client in clients)
        clients.append(Client(ours))
        for _ in range(4):
            # As if it had stalled only now: before, no client was in its way.
            assert not stalled.task.done()
            slow.moved += request_slots.MIN_MOVED // 2 + 1
            dripping.moved += 1
            await clock.passes(request_slots.STALL_TIME / 4)
        await transports.turns()
        assert stalled.task.done()
        assert dripping.task.done()
        assert not slow.task.done()
        assert not busy.task.done()
        assert clients[-1].served
        await clock.passes(10 * request_slots.STALL_TIME)
        assert not slow.task.done()


async def test_no_timer_runs_when_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, request_slots)
    async with crowd() as (ours, clients):
        clients += [Client(ours) for _ in range(MAX_SLOTS + 1)]
        await clock.passes(request_slots.LOOK_INTERVAL)
        clients[0].leave()
        await clock.passes(request_slots.LOOK_INTERVAL)
        with pytest.raises(AssertionError, match="no timer is left"):
            await clock.until(lambda: False)
