"""The pool of smux sessions: sharing, dials, idle timeouts and liveness."""

from __future__ import annotations

import asyncio

import pytest

from mtt.errors import NetworkError, PeerError
from mtt.layers.mux import OLD_READ_TIME, STALL_TIME
from mtt.layers.mux_tunnel import RECEIVE_BUDGET, TunnelSession, TunnelStream
from mtt.layers.smux import SmuxSession
from mtt.outbound import reuse
from mtt.outbound import session_pool as sessions
from mtt.outbound.session_pool import SessionPool
from mtt.wire.smux import FIN, NOP, PSH, SYN, frame
from tests.support.clock import Clock
from tests.support.transports import FakeLayer, turns

MAX = 3


class Network:
    """What the pool dials: fake connections, made while `allowed` is set."""

    def __init__(self, *, warm: int = 0) -> None:
        self.sessions: list[SmuxSession] = []
        self.lowers: list[FakeLayer] = []
        self.dials = 0
        self.allowed = asyncio.Event()
        self.allowed.set()
        self.error: Exception | None = None
        self.pool = SessionPool(self._connect, SmuxSession, MAX, warm=warm)

    async def _connect(self, session: SmuxSession) -> None:
        self.dials += 1
        await self.allowed.wait()
        if self.error is not None:
            raise self.error
        lower = FakeLayer(session)
        session.connection_made(lower)
        self.sessions.append(session)
        self.lowers.append(lower)

    async def open(self, count: int = 1) -> list[TunnelStream]:
        return [await self.pool.open() for _ in range(count)]

    async def close(self) -> None:
        await self.pool.close()
        await turns()
        assert all(session.lost for session in self.sessions)


def session_of(stream: TunnelStream) -> TunnelSession:
    return stream._session


async def test_streams_share_a_session_up_to_the_limit() -> None:
    network = Network()
    streams = await network.open(2 * MAX + 1)
    assert network.dials == 3
    assert [len({stream.id for stream in streams[at : at + MAX]}) for at in (0, 3)] == [MAX, MAX]
    assert [session.open_streams for session in network.sessions] == [MAX, MAX, 1]
    await turns()
    assert network.lowers[2].take() == frame(SYN, 3)
    await network.close()


async def test_slot_is_free_when_both_ends_have_closed() -> None:
    network = Network()
    streams = await network.open(MAX)
    streams[0].close()
    (other,) = await network.open()
    assert session_of(other) is network.sessions[1]
    network.sessions[0].data_received(frame(FIN, streams[0].id))
    (again,) = await network.open()
    assert session_of(again) is network.sessions[0]
    assert network.dials == 2
    await network.close()


async def test_open_at_once_uses_only_existing_sessions() -> None:
    network = Network()
    assert network.pool.open_at_once() is None
    streams = await network.open(MAX - 1)
    stream = network.pool.open_at_once()
    assert stream is not None
    assert session_of(stream) is session_of(streams[0])
    assert network.pool.open_at_once() is None
    assert network.dials == 1
    await network.close()


async def test_concurrent_opens_share_a_dial() -> None:
    network = Network()
    network.allowed.clear()
    waiting = [asyncio.create_task(network.pool.open()) for _ in range(MAX + 1)]
    await turns()
    assert network.dials == 2
    network.allowed.set()
    streams = [await task for task in waiting]
    assert network.dials == 2
    assert [session.open_streams for session in network.sessions] == [MAX, 1]
    assert len({(id(session_of(stream)), stream.id) for stream in streams}) == MAX + 1
    await network.close()


async def test_failed_dial_fails_all_waiters() -> None:
    network = Network()
    network.allowed.clear()
    network.error = PeerError("certificate not accepted")
    waiting = [asyncio.create_task(network.pool.open()) for _ in range(MAX)]
    await turns()
    network.allowed.set()
    for task in waiting:
        with pytest.raises(PeerError, match="not accepted"):
            await task
    assert network.dials == 1
    network.error = None
    await network.open()
    assert network.dials == 2
    await network.close()


async def test_cancelled_waiter_does_not_cancel_the_dial() -> None:
    network = Network()
    network.allowed.clear()
    leaving, staying = (asyncio.create_task(network.pool.open()) for _ in range(2))
    await turns()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    network.allowed.set()
    assert session_of(await staying) is network.sessions[0]
    assert network.dials == 1
    await network.close()


async def test_dial_that_fails_without_waiters() -> None:
    network = Network()
    network.allowed.clear()
    network.error = NetworkError("refused")
    task = asyncio.create_task(network.pool.open())
    await turns()
    task.cancel()
    await asyncio.wait([task])
    network.allowed.set()
    await turns()  # an unretrieved exception would fail the test
    await network.close()


async def test_new_session_without_waiters_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network()
    network.allowed.clear()
    task = asyncio.create_task(network.pool.open())
    await turns()
    task.cancel()
    await asyncio.wait([task])
    network.allowed.set()
    await clock.until(lambda: network.sessions and network.sessions[0].lost)
    await network.close()


async def test_open_fails_if_new_session_ends_at_once() -> None:
    network = Network()
    connect = network.pool._connect

    async def connect_and_lose(session: SmuxSession) -> None:
        await connect(session)
        session.eof_received()

    network.pool._connect = connect_and_lose
    with pytest.raises(NetworkError, match="at once"):
        await network.open()
    assert network.dials == 1

    async def connect_and_lose_soon(session: SmuxSession) -> None:
        await connect(session)
        asyncio.get_running_loop().call_soon(session.eof_received)

    network.pool._connect = connect_and_lose_soon
    with pytest.raises(NetworkError, match="at once"):
        await network.open()
    assert network.dials == 2
    await network.close()


async def test_lost_session_is_replaced() -> None:
    network = Network()
    (stream,) = await network.open()
    network.sessions[0].connection_lost(ConnectionResetError())
    assert stream.is_closing()
    (other,) = await network.open()
    assert session_of(other) is network.sessions[1]
    await network.close()


async def test_session_out_of_stream_ids_is_not_used() -> None:
    network = Network()
    await network.open()
    network.sessions[0]._next_id = 1 << 32
    (other,) = await network.open()
    assert session_of(other) is network.sessions[1]
    await network.close()


# Retirement.


async def test_idle_timeout_closes_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network()
    (stream,) = await network.open()
    network.sessions[0].data_received(frame(FIN, 3))
    stream.close()
    await turns()
    await clock.passes(sessions.IDLE_TIME - 0.1)
    assert not network.sessions[0].lost  # it waits for the next stream
    await clock.passes(0.2)
    assert network.sessions[0].lost
    assert not network.lowers[0].aborted
    await network.open()
    assert network.dials == 2
    await network.close()


async def test_new_stream_cancels_the_idle_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network()
    (stream,) = await network.open()
    network.sessions[0].data_received(frame(FIN, 3))
    stream.close()
    (other,) = await network.open()
    assert session_of(other) is network.sessions[0]
    await clock.passes(2 * sessions.IDLE_TIME)
    assert not network.sessions[0].lost
    network.sessions[0].data_received(frame(PSH, other.id, b"alive"))
    assert not other.is_closing()
    await network.close()


async def test_wanted_number_of_sessions_stays_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network(warm=1)
    streams = await network.open(2 * MAX)
    for stream in streams:
        session_of(stream).data_received(frame(FIN, stream.id))
        stream.close()
    await clock.passes(2 * sessions.IDLE_TIME)
    (kept,) = [session for session in network.sessions if not session.lost]
    kept.data_received(frame(NOP, 0))  # the peer is alive
    await network.open()
    assert network.dials == 2
    await network.close()


async def test_silent_session_gets_no_new_stream() -> None:
    network = Network(warm=1)
    await network.open()
    network.sessions[0].heard_at -= 60.0
    (stream,) = await network.open()
    assert session_of(stream) is network.sessions[1]
    await network.close()


@pytest.mark.parametrize("change", ["network", "sleep"])
async def test_network_change_moves_streams_to_a_new_session(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    network = Network(warm=1)
    await network.open()
    await turns()
    network.lowers[0].take()
    await clock.passes(1.0)
    if change == "network":
        monkeypatch.setattr(reuse, "source_address", lambda peer: "198.51.100.1")
    else:
        monkeypatch.setattr(reuse, "slept_seconds", lambda: 1e9)
    (stream,) = await network.open()
    assert session_of(stream) is network.sessions[1]
    assert network.lowers[0].take() == frame(NOP, 0)  # it is verified, and used after the answer
    await clock.passes(OLD_READ_TIME + 0.1)
    network.sessions[0].data_received(frame(NOP, 0))
    (stream,) = await network.open()
    assert session_of(stream) is network.sessions[0]
    await network.close()


@pytest.mark.parametrize("dead", [True, False])
async def test_siblings_of_a_dead_session_are_verified(
    dead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    network = Network(warm=3)
    await network.open(2 * MAX - 1)
    await turns()
    network.lowers[1].take()
    if dead:
        network.sessions[0].connection_lost(ConnectionResetError())
    else:
        network.sessions[0].eof_received()
    assert network.lowers[1].take() == (frame(NOP, 0) if dead else b"")
    (stream,) = await network.open()
    assert session_of(stream) is network.sessions[2 if dead else 1]
    await clock.passes(OLD_READ_TIME + 0.1)
    network.sessions[1].data_received(frame(NOP, 0))
    (stream,) = await network.open()
    assert session_of(stream) is network.sessions[1 if dead else 2]
    await network.close()


async def test_paused_session_gets_no_new_stream() -> None:
    """A peer without per-stream flow control stalls all streams for one slow reader."""
    network = Network()
    (slow,) = await network.open()
    slow.pause_reading()
    piece = frame(PSH, slow.id, bytes(65535))
    while network.lowers[0].reading:
        network.sessions[0].data_received(piece)
    assert network.sessions[0]._queued >= RECEIVE_BUDGET
    (stream,) = await network.open()
    assert session_of(stream) is network.sessions[1]
    slow.resume_reading()
    await turns()
    (stream,) = await network.open()
    assert session_of(stream) is network.sessions[0]
    await network.close()


async def test_session_with_a_paused_peer_gets_no_new_stream(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    network = Network()
    await network.open()
    network.sessions[0].pause_writing()
    (stream,) = await network.open()
    assert session_of(stream) is network.sessions[0]  # it may just be busy
    await clock.passes(STALL_TIME)
    (stream,) = await network.open()
    assert session_of(stream) is network.sessions[1]
    network.sessions[0].resume_writing()
    (stream,) = await network.open()
    assert session_of(stream) is network.sessions[0]
    await network.close()


async def test_unended_streams_do_not_keep_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    # The Go server never ends streams whose destination was unreachable.
    clock = Clock(monkeypatch)
    network = Network()
    for stream in await network.open(MAX):
        stream.close()
    assert network.sessions[0].used_slots == MAX
    await network.open()
    assert network.dials == 2  # there was no free slot
    await clock.passes(sessions.FINISH_TIME)
    assert network.sessions[0].lost
    assert not network.sessions[1].lost
    await network.close()


async def test_late_end_restores_the_idle_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network()
    (stream,) = await network.open()
    stream.close()
    network.sessions[0].data_received(frame(FIN, 3))
    await clock.passes(2 * sessions.FINISH_TIME)
    assert not network.sessions[0].lost
    await network.close()


# The end.


async def test_close_aborts_sessions_and_dials() -> None:
    network = Network()
    (stream,) = await network.open()
    network.allowed.clear()
    await network.open(MAX - 1)
    waiting = asyncio.create_task(network.pool.open())
    await turns()
    assert network.dials == 2
    await network.close()
    assert network.lowers[0].aborted
    assert stream.is_closing()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await network.pool.close()
