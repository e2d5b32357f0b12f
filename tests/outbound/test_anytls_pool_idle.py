"""Idle timeouts, as in the reference (checks every 30 s, timeout 30 s), and warm sessions."""

from __future__ import annotations

import asyncio

import pytest

from mtt.errors import NetworkError, PeerError
from mtt.outbound import anytls_pool as anytls_sessions
from mtt.wire.anytls import HEART_REQUEST, PSH, SERVER_SETTINGS, SETTINGS, SYN, frame
from tests.outbound.anytls_network import Network
from tests.support.clock import Clock
from tests.support.transports import turns


async def test_oldest_idle_sessions_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network(min_idle=5)
    await network.idle(7)
    busy = await network.open()  # the newest
    await clock.passes(29)
    assert len(network.up()) == 7
    await clock.passes(62)
    assert network.up() == [1, 2, 3, 4, 5, 6]
    assert network.number(busy) == 6
    assert network.lost == [None]
    await network.over()


async def test_idle_session_is_closed_at_the_second_check(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network(min_idle=0)
    stream = await network.open()
    await clock.passes(1)  # the first check will find it idle for 29 s
    stream.close()
    await clock.passes(58)
    assert network.up() == [0]
    await clock.passes(2)
    assert network.up() == []
    await network.over()


async def test_newest_idle_sessions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network(min_idle=2, check_interval=100, idle_timeout=60)
    streams = [await network.open() for _ in range(5)]
    streams[0].close()
    streams[4].close()
    await clock.passes(50)
    for stream in streams[1:4]:
        stream.close()
    await clock.passes(51)
    # Sessions 1 to 3 are too young to close, and enough: 0 is closed. 4 was checked before them.
    assert network.up() == [1, 2, 3, 4]
    assert network.sessions[4].idle_since == 1100.0
    await clock.passes(100)
    assert network.up() == [3, 4]
    await network.over()


@pytest.mark.parametrize("seconds", [0.0, 5.0])
async def test_too_short_times_mean_the_defaults(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    network = Network(min_idle=0, check_interval=seconds, idle_timeout=seconds)
    await network.idle(1)
    await clock.passes(29)
    assert network.up() == [0]
    await clock.passes(32)
    assert network.up() == []
    await network.over()


async def test_session_with_an_unended_stream_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network(min_idle=5)
    network.greeting = frame(SERVER_SETTINGS, 0, b"v=2\nhalf-close=1")
    stream = await network.open()
    stream.close()
    assert network.pool.idle == 0
    assert network.number(await network.open()) == 1
    await clock.passes(31)
    assert network.up() == [0, 1]
    await clock.passes(30)
    assert network.up() == [1]
    await network.over()


# Warm-up.


async def test_sessions_are_made_on_demand() -> None:
    network = Network(min_idle=5)
    network.pool.start()
    await turns()
    assert network.dials == 0
    await network.over()


async def test_warm_sessions_are_verified_before_use() -> None:
    network = Network(warm=3, min_idle=0)
    network.pool.start()
    network.pool.start()
    await turns()
    assert network.dials == network.pool.idle == 3
    for lower in network.lowers:  # silence after the preamble would be conspicuous
        assert lower.said() == [SETTINGS]
    assert network.number(await network.open()) == 3
    for session, lower in zip(network.sessions[:2], network.lowers, strict=False):
        session.data_received(network.greeting)
        assert HEART_REQUEST in lower.said()
    await turns()  # for the answers
    streams = [await network.open() for _ in range(3)]
    assert [network.number(stream) for stream in streams] == [1, 0, 4]
    assert [stream.id for stream in streams] == [1, 1, 1]
    assert network.lowers[1].said() == [SYN, PSH]  # no settings again
    await network.over()


async def test_warm_sessions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network(warm=2, min_idle=0)
    network.pool.start()
    await turns()
    for session in network.sessions:
        session.data_received(network.greeting)
    await clock.passes(200.0)
    assert network.up() == [0, 1]
    assert network.number(await network.open()) == 1
    await network.over()


async def test_warm_session_with_a_version_1_server() -> None:
    """Such a server never answers; an open connection is the only sign of life."""
    network = Network(warm=1)
    network.pool._server.version = 1
    network.pool.start()
    await turns()
    network.greeting = b""
    session = network.sessions[0]
    assert not session.ping_answered()
    session.heard_at += 1e9
    assert network.pool.open_at_once()
    assert network.dials == 1
    await network.over()


async def test_warm_up_retries_an_unreachable_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "mtt")
    monkeypatch.setattr(anytls_sessions, "RETRY_TIMES", (0.01, 0.04))
    network = Network(warm=2)
    network.error = NetworkError("no server")
    loop = asyncio.get_running_loop()
    start = loop.time()
    network.pool.start()
    while network.dials < 6:
        await asyncio.sleep(0.005)
    assert loop.time() - start >= 0.01 + 0.02 + 0.04 + 0.04 + 0.04 - 0.005
    levels = [entry.levelname for entry in caplog.records if "no server" in entry.getMessage()]
    assert levels[:3] == ["WARNING", "DEBUG", "DEBUG"]
    network.error = None
    while network.pool.idle < 2:
        await asyncio.sleep(0.005)
    assert levels.count("WARNING") == 1
    await network.over()


async def test_warm_up_does_not_redial_a_refusing_server() -> None:
    network = Network(warm=3)
    network.pool.start()
    for _ in range(20):
        await turns()
        for session in network.sessions:
            if not session.lost:
                session.eof_received()
    assert network.dials == 3
    assert [type(error) for error in network.lost] == [PeerError] * 3
    await network.over()
