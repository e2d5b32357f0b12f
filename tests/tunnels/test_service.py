from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mtt.errors import NetworkError
from mtt.layers.base import StreamTransport
from mtt.layers.parked import Parked
from mtt.net.resolve import Resolver
from mtt.tunnels.listening import Listening
from mtt.tunnels.service import Service
from tests.support.transports import FakeTransport


class Lower(StreamTransport):
    """The connection of a session, with bytes that are still on their way."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def unsent(self) -> int:
        return self.left

    def get_protocol(self) -> Any:
        return None


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
        super().__init__(
            Listening(None, resolver=Resolver()),
            timeout=1.0,
            sessions=lambda: [session for session in sessions if not session.closed],
            pending=lambda: 0,
        )


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
async def test_work_for_a_connection_that_is_cut_ends_with_it(
    error: Exception, eof: bool, begun: bool
) -> None:
    """Not if its peer had said all it had to say: that is owed to the destination."""
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
