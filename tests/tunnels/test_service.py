from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mtt.errors import NetworkError
from mtt.layers.base import StreamTransport
from mtt.layers.parked import Parked
from mtt.net.resolve import Resolver
from mtt.options.common import ServiceOptions
from mtt.tunnels.service import Service
from tests.support.transports import FakeTransport


class Lower(StreamTransport):
    """The connection of a session, with `left` unsent bytes."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def unsent(self) -> int:
        return self.left

    def get_protocol(self) -> Any:
        return None


class Session:
    """A mux session, as `Service.drain` uses it."""

    def __init__(self, *, streams: int = 0, left: int = 0) -> None:
        self.open_streams = streams
        self.lower = Lower(left)
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Sessions(Service):
    def __init__(self, *sessions: Session) -> None:
        super().__init__(
            ServiceOptions(bind=None, timeout=1.0),
            Resolver(),
            sessions=lambda: [session for session in sessions if not session.closed],
            pending=lambda: 0,
        )


async def turns() -> None:
    """Wait long enough for several checks."""
    await asyncio.sleep(0.2)


async def test_drain_of_an_idle_service_returns() -> None:
    await Sessions().drain()


async def test_drain_closes_idle_sessions_and_waits_for_busy_ones() -> None:
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


async def test_opening_tunnel_counts_and_keeps_sessions_open() -> None:
    idle = Session()
    service = Sessions(idle)
    dialled = asyncio.Event()

    async def dial() -> None:
        await dialled.wait()

    service.open_tunnels.spawn(Lower(0), dial())
    assert service.tunnels == 1
    draining = asyncio.create_task(service.drain())
    await turns()
    assert not (draining.done() or idle.closed)
    dialled.set()
    await draining
    assert idle.closed
    assert service.tunnels == 0


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("eof", [False, True])
@pytest.mark.parametrize("error", [NetworkError("lost"), ConnectionResetError()])
async def test_work_for_a_cut_connection_is_cancelled(
    error: Exception, eof: bool, begun: bool
) -> None:
    """After an orderly end it continues: the destination gets the data."""
    service = Sessions()
    parked = Parked()
    connection = FakeTransport(parked)
    parked.connection_made(connection)
    dialled = asyncio.Event()
    ends: list[str] = []

    async def dial() -> None:
        try:
            await dialled.wait()
            ends.append("dialled")
        finally:
            ends.append("cleaned up")

    service.open_tunnels.spawn(connection, dial())
    if begun:
        await asyncio.sleep(0)
    if eof:
        parked.eof_received()
    parked.connection_lost(error)
    await asyncio.sleep(0.01)
    goes_on = eof and not isinstance(error, ConnectionResetError)
    assert ends == ([] if goes_on else ["cleaned up"])
    dialled.set()
    await asyncio.sleep(0.01)
    assert ends == (["dialled", "cleaned up"] if goes_on else ["cleaned up"])
    assert service.tunnels == 0
