from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from mtt.layers.base import LayerTransport
from mtt.service import Service


class Lower(LayerTransport):
    """The connection of a session, with bytes that are still on their way."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def unsent(self) -> int:
        return self.left


class Session:
    """A mux session as far as the end of a service is concerned with it."""

    def __init__(self, *, streams: int = 0, left: int = 0) -> None:
        self.open_streams = streams
        self.lower = Lower(left)
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Sessions(Service):
    def __init__(self, *sessions: Session) -> None:
        super().__init__(timeout=1.0)
        self.sessions = sessions

    def _sessions(self) -> Collection[Any]:
        return [session for session in self.sessions if not session.closed]


async def turns() -> None:
    """Long enough for several looks."""
    await asyncio.sleep(0.2)


async def test_nothing_to_wait_for() -> None:
    await Sessions().drain()


async def test_idle_sessions_end_and_the_others_are_waited_for() -> None:
    idle, busy, sending = Session(), Session(streams=1), Session(left=1)
    service = Sessions(idle, busy, sending)
    draining = asyncio.create_task(service.drain())
    await turns()
    assert (idle.closed, busy.closed, sending.closed) == (True, False, False)
    busy.open_streams = 0
    await turns()
    assert busy.closed
    assert not draining.done()
    sending.lower.left = 0
    await draining
    assert sending.closed


async def test_a_tunnel_being_opened_counts_and_keeps_its_session() -> None:
    idle = Session()
    service = Sessions(idle)
    dialled = asyncio.Event()

    async def dial() -> None:
        await dialled.wait()

    service._spawn(Any, dial())  # type: ignore[arg-type]
    assert service.tunnels == 1
    draining = asyncio.create_task(service.drain())
    await turns()
    assert not (draining.done() or idle.closed)
    dialled.set()
    await draining
    assert idle.closed
    assert service.tunnels == 0
