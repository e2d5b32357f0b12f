"""Turns of the controller's requests: who waits, who passes, and who is cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt_mu_server import turns
from mtt_mu_server.turns import MAX_LARGE_TURNS, MAX_TURNS, MAX_WAITING, CrowdedError, Turns
from tests.support import transports
from tests.support.clock import Clock


class Client:
    """An exchange as `Turns` sees it, and the task that serves it."""

    def __init__(self, turns: Turns, *, large: bool = False) -> None:
        self.moved = 0
        self.waits = True
        self.served = False
        self._over = asyncio.Event()
        self.task = asyncio.create_task(self._serve(turns, large))

    async def _serve(self, turns: Turns, large: bool) -> None:
        exchange: Any = self
        async with turns.turn(exchange, large=large):
            self.served = True
            await self._over.wait()

    def leave(self) -> None:
        self._over.set()

    def cut(self, reason: str) -> None:
        assert reason == "stalled while other requests waited"
        self.leave()


@contextlib.asynccontextmanager
async def crowd() -> AsyncIterator[tuple[Turns, list[Client]]]:
    """Turns, and clients for them, which are gone at the end."""
    turns = Turns()
    clients: list[Client] = []
    yield turns, clients
    turns.close()
    for client in clients:
        client.task.cancel()
    await asyncio.gather(*(client.task for client in clients), return_exceptions=True)


def served(clients: list[Client]) -> int:
    return sum(client.served for client in clients)


async def test_turns_are_given_in_order() -> None:
    async with crowd() as (turns, clients):
        clients += [Client(turns) for _ in range(MAX_TURNS + 3)]
        await transports.turns()
        for number in range(3):
            assert served(clients) == MAX_TURNS + number
            clients[number].leave()
            await transports.turns()
            assert clients[MAX_TURNS + number].served


async def test_small_requests_pass_large_ones() -> None:
    async with crowd() as (turns, clients):
        clients += [Client(turns, large=True) for _ in range(MAX_TURNS + 1)]
        await transports.turns()
        assert served(clients) == MAX_LARGE_TURNS
        small = [Client(turns) for _ in range(MAX_TURNS - MAX_LARGE_TURNS + 1)]
        clients += small
        await transports.turns()
        assert [client.served for client in small] == [True] * (len(small) - 1) + [False]
        # The large one that waits has come first.
        clients[0].leave()
        await transports.turns()
        assert clients[MAX_LARGE_TURNS].served
        assert not small[-1].served
        small[0].leave()
        await transports.turns()
        assert small[-1].served


async def test_a_full_line_refuses() -> None:
    async with crowd() as (turns, clients):
        clients += [Client(turns) for _ in range(MAX_TURNS + MAX_WAITING)]
        await transports.turns()
        late = Client(turns)
        with pytest.raises(CrowdedError, match="try again later"):
            await late.task
        clients[-1].task.cancel()  # no longer in line
        await transports.turns()
        clients.append(Client(turns))
        await transports.turns()
        assert not clients[-1].task.done()


async def test_a_cancelled_client_keeps_no_turn() -> None:
    async with crowd() as (turns, clients):
        clients += [Client(turns) for _ in range(MAX_TURNS + 2)]
        await transports.turns()
        clients[0].leave()
        await asyncio.sleep(0)  # its turn is given to the next one, which does not know yet
        clients[MAX_TURNS].task.cancel()
        await transports.turns()
        assert clients[MAX_TURNS + 1].served


async def test_stalled_clients_are_cut_while_others_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, turns)
    async with crowd() as (ours, clients):
        clients += [Client(ours) for _ in range(MAX_TURNS)]
        stalled, slow, dripping, busy = clients[:4]
        busy.waits = False  # for the server, not the client
        for other in clients[4:]:
            other.waits = False
        await clock.passes(10 * turns.STALL_TIME)
        assert not any(client.task.done() for client in clients)
        clients.append(Client(ours))
        for _ in range(4):
            # As if it had stalled only now: before, no client was in its way.
            assert not stalled.task.done()
            slow.moved += turns.MIN_MOVED // 2 + 1
            dripping.moved += 1
            await clock.passes(turns.STALL_TIME / 4)
        await transports.turns()
        assert stalled.task.done()
        assert dripping.task.done()
        assert not slow.task.done()
        assert not busy.task.done()
        assert clients[-1].served
        await clock.passes(10 * turns.STALL_TIME)
        assert not slow.task.done()


async def test_no_timer_runs_when_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, turns)
    async with crowd() as (ours, clients):
        clients += [Client(ours) for _ in range(MAX_TURNS + 1)]
        await clock.passes(turns.LOOK_INTERVAL)
        clients[0].leave()
        await clock.passes(turns.LOOK_INTERVAL)
        with pytest.raises(AssertionError, match="nobody waits"):
            await clock.until(lambda: False)
