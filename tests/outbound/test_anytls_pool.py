"""The pool of AnyTLS sessions: which session gets a stream, liveness checks, close."""

from __future__ import annotations

import asyncio

import pytest

from mtt.errors import DestinationError, NetworkError, PeerError
from mtt.layers.parked import Parked, hand_over
from mtt.outbound import reuse
from mtt.outcome import Outcome
from mtt.wire.anytls import (
    FIN,
    HEART_REQUEST,
    HEART_RESPONSE,
    PSH,
    SYN,
    SYNACK,
    UPDATE_PADDING,
    WASTE,
    PreambleReader,
    frame,
)
from tests.outbound.anytls_network import Network
from tests.support.clock import Clock
from tests.support.transports import Recorder, turns


async def test_newest_idle_session_is_used_and_not_shared() -> None:
    network = Network()
    streams = [await network.open() for _ in range(3)]
    assert [network.number(stream) for stream in streams] == [0, 1, 2]
    streams[1].close()
    streams[0].close()
    assert network.pool.idle == 2
    again = [await network.open() for _ in range(3)]
    assert [network.number(stream) for stream in again] == [1, 0, 3]
    assert [stream.id for stream in again] == [2, 2, 1]
    assert network.pool.idle == 0
    await network.over()


async def test_open_at_once_uses_only_existing_sessions() -> None:
    network = Network()
    assert network.pool.open_at_once() is None
    first, second = await network.idle(2)
    for session in (second, first):
        stream = network.pool.open_at_once()
        assert stream is not None
        assert stream._session is session
        assert not stream.is_reading()  # until its owner is attached
    assert network.pool.open_at_once() is None
    assert network.dials == 2
    await network.over()
    assert network.pool.open_at_once() is None


async def test_dialled_session_goes_to_its_dialler() -> None:
    network = Network()
    network.allowed.clear()
    tasks = [asyncio.ensure_future(network.pool.open()) for _ in range(3)]
    await turns()
    tasks[0].cancel()
    await turns()
    network.allowed.set()
    streams = await asyncio.gather(*tasks[1:])
    assert sorted(network.number(stream) for stream in streams) == [0, 1]
    assert network.dials == 3
    await network.over()


async def test_early_data_is_kept_for_the_stream() -> None:
    network = Network()
    stream = await network.open()
    session = network.sessions[0]
    session.data_received(frame(PSH, 1, b"early") + frame(FIN, 1))
    await turns()
    parked = stream.get_protocol()
    assert isinstance(parked, Parked)
    assert not parked.early
    assert network.pool.idle == 0  # until the early data is read
    upper = Recorder(stay=False)
    hand_over(stream, upper)
    assert await upper.at_eof() == b"early"
    await upper.ended()
    assert network.pool.idle == 1
    await network.over()


async def test_unreachable_destination_keeps_the_session() -> None:
    network = Network()
    with pytest.raises(DestinationError) as caught:
        await network.open(b"connection refused")
    assert caught.value.outcome is Outcome.CONNECTION_REFUSED
    assert network.pool.idle == 1
    assert network.number(await network.open()) == 0
    assert network.dials == 1
    await network.over()


async def test_unhealthy_sessions_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    sessions = await network.idle(3)
    network.lowers[1].answers = False
    sessions[2].connection_lost(ConnectionResetError())  # the pool verifies the others
    await turns()
    monkeypatch.setattr("mtt.layers.anytls_client.LATE_TIME", 0.0)
    assert network.number(await network.open()) == 0
    assert len(network.lost) == 1
    await network.over()


async def test_session_found_dead_is_replaced_by_a_new_one() -> None:
    """The pool does not try other idle sessions, which may be dead too: each takes seconds."""
    network = Network()
    await network.idle(2)
    task = asyncio.ensure_future(network.pool.open(b"dest"))
    await turns()
    assert network.sessions[1].open_streams == 1
    network.sessions[1].eof_received()
    await turns()
    assert network.dials == 3
    network.sessions[2].data_received(network.greeting + frame(SYNACK, 1))
    assert network.number(await task) == 2
    await network.over()


async def test_lost_session_makes_the_pool_verify_idle_ones() -> None:
    network = Network()
    sessions = await network.idle(3)
    await network.open()  # on the newest session
    for lower in network.lowers:
        lower.said()
    sessions[1].connection_lost(ConnectionResetError())
    assert [HEART_REQUEST in lower.said() for lower in network.lowers] == [True, False, False]
    await turns()
    sessions[2].abort()  # closed by this side
    assert not network.lowers[0].sent
    await network.over()


async def test_network_change_verifies_idle_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    await network.idle(1)
    network.lowers[0].answers = False
    network.lowers[0].said()
    monkeypatch.setattr(reuse, "source_address", lambda peer: "198.51.100.1")
    assert network.number(await network.open()) == 1
    assert HEART_REQUEST in network.lowers[0].said()
    network.sessions[0].data_received(frame(UPDATE_PADDING, 0))  # may have waited in the kernel
    assert network.number(await network.open()) == 2
    network.sessions[0].data_received(frame(HEART_RESPONSE, 0))
    assert network.number(await network.open()) == 0
    await network.over()


async def test_busy_session_is_verified_without_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Go server with a slow destination does not read the request for a sign of life."""
    clock = Clock(monkeypatch)
    network = Network()
    stream = await network.open()
    await network.idle(1)
    network.lowers[0].answers = False
    network.lowers[0].said()
    network.sessions[1].connection_lost(ConnectionResetError())
    assert network.lowers[0].sent[:5] == frame(WASTE, 0)[:5]
    assert network.lowers[0].said() == []
    await clock.passes(10.0)
    assert not stream.is_closing()
    await network.over()


async def test_dead_new_session_is_not_replaced() -> None:
    network = Network()
    task = asyncio.ensure_future(network.pool.open(b"dest"))
    await turns()
    network.sessions[0].eof_received()
    with pytest.raises(PeerError, match="password"):
        await task
    network.error = NetworkError("no server")
    with pytest.raises(NetworkError, match="no server"):
        await network.pool.open(b"dest")
    assert network.dials == 2
    await network.over()


async def test_cancelled_open_ends_the_stream() -> None:
    network = Network()
    await network.idle(1)
    network.lowers[0].said()
    task = asyncio.ensure_future(network.pool.open(b"dest"))
    await turns()
    task.cancel()
    await asyncio.wait([task])
    assert network.lowers[0].said() == [SYN, PSH, FIN]
    assert network.pool.idle == 1
    await network.over()


async def test_session_ends_with_its_stream_without_reuse() -> None:
    network = Network(reuse=False)
    network.pool.start()
    stream = await network.open()
    network.lowers[0].said()
    stream.write(b"last")
    stream.close()
    assert network.lowers[0].said() == [PSH, FIN]
    assert network.lowers[0].closing
    assert not network.lowers[0].aborted
    assert network.number(await network.open()) == 1
    assert network.lost == [None]
    await network.over()


async def test_sessions_share_the_learned_padding_scheme() -> None:
    network = Network()
    await network.idle(1)
    network.sessions[0].data_received(frame(UPDATE_PADDING, 0, b"stop=1\n0=77-77"))
    await network.open()
    await network.open()
    reader = PreambleReader()
    reader.feed(bytes(network.lowers[1].sent))
    assert network.lowers[1].sent[32:34] == (77).to_bytes(2, "big")
    assert reader.rest
    await network.over()


async def test_close_aborts_sessions_and_warm_up() -> None:
    network = Network(warm=2)
    await network.idle(1)
    network.allowed.clear()
    network.pool.start()
    taken = await network.open()
    task = asyncio.ensure_future(network.pool.open(b"dest"))
    await turns()
    await network.pool.close()
    network.allowed.set()
    with pytest.raises(NetworkError):
        await task
    with pytest.raises(NetworkError):
        await network.pool.open(b"dest")
    assert taken.is_closing()
    await network.over()
