"""Links when the network changes, the computer sleeps, or the gateway falls silent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from anyproxy.link import FIRST_WAIT, LOOK_INTERVAL, QUIET_TIME, SIGN_TIME, Link
from mtt.address import Endpoint
from mtt.outbound import reuse
from tests.anyproxy.linking import DOWN, GATEWAY, Scene, Session, running


@pytest.mark.parametrize("change", ["route", "no route", "sleep"])
async def test_waiting_ends_when_the_network_changes(
    monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    async with running(monkeypatch, DOWN) as scene:
        await scene.clock.passes(200)
        await scene.clock.until(lambda: scene.attempts[-1] == scene.clock.now)
        count = len(scene.attempts)
        await scene.clock.passes(LOOK_INTERVAL + 1)
        assert len(scene.attempts) == count
        if change == "sleep":
            scene.slept += 60.0
        else:
            scene.route = None if change == "no route" else "198.51.100.1"
        changed_at = scene.clock.now
        await scene.clock.until(lambda: len(scene.attempts) > count)
        assert scene.clock.now - changed_at <= LOOK_INTERVAL
        # It may not work at once after a change, so the next waits are short again.
        await scene.clock.passes(FIRST_WAIT)
        assert len(scene.attempts) >= count + 2


async def test_network_that_changes_all_the_time_makes_no_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch, DOWN) as scene:
        for number in range(100):
            scene.route = f"198.51.100.{number}"
            await scene.clock.passes(1)
        assert min(scene.waits) >= FIRST_WAIT / 2


@pytest.mark.parametrize(
    "host, peers",
    [
        ("gateway.example", {("192.0.2.1", 9), ("2001:db8::1", 9, 0, 0)}),
        ("10.0.0.1", {("10.0.0.1", 443)}),
        ("fd00::1", {("fd00::1", 443, 0, 0)}),
    ],
)
async def test_route_is_that_to_the_gateway_if_its_address_is_known(
    monkeypatch: pytest.MonkeyPatch, host: str, peers: set[object]
) -> None:
    gateway = Endpoint((host,), 443)
    async with running(monkeypatch, DOWN, gateway) as scene:
        assert scene.peers == peers


async def test_route_is_that_to_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.error = DOWN
    scene.link = Link(GATEWAY, scene._connect, Endpoint(("10.0.0.1",), 3128))
    scene.link.start()
    await scene.clock.passes(1)
    await scene.link.stop()
    assert scene.peers == {("10.0.0.1", 3128)}


@pytest.mark.parametrize("change", ["route", "sleep"])
async def test_session_without_a_sign_of_life_after_a_change_is_replaced(
    monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    async with running(monkeypatch) as scene:
        await scene.clock.passes(60)
        session = scene.sessions[0]
        assert not session.pings
        session.answers = False
        if change == "sleep":
            scene.slept += 60.0
        else:
            scene.route = "198.51.100.1"
        began = scene.clock.now
        await scene.clock.until(lambda: len(scene.sessions) == 2)
        assert scene.clock.now - began <= SIGN_TIME + 2 * LOOK_INTERVAL
        assert session.pings == 1
        assert str(session.error) == "no sign of life from the gateway"


async def test_session_that_survives_a_change_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as scene:
        for number in range(20):
            scene.route = f"198.51.100.{number}"
            await scene.clock.passes(LOOK_INTERVAL)
        await scene.clock.passes(60)
        assert scene.link.session is scene.sessions[0]
        assert len(scene.sessions) == 1
        assert scene.sessions[0].pings >= 10


async def test_quiet_gateway_is_asked_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "heard_at", 0.0)  # it has nothing to say but answers
    async with running(monkeypatch) as scene:
        await scene.clock.passes(100)
        assert 8 <= scene.sessions[0].pings <= 12
        assert len(scene.sessions) == 1


async def test_quiet_gateway_that_does_not_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as scene:
        await scene.clock.passes(60)
        scene.sessions[0].answers = False
        began = scene.clock.now
        await scene.clock.until(lambda: len(scene.sessions) == 2)
        assert scene.clock.now - began <= QUIET_TIME + SIGN_TIME + 4 * LOOK_INTERVAL


async def test_agent_that_sends_asks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as scene:
        await scene.clock.passes(60)
        scene.sessions[0].answers = False
        scene.sessions[0].lower.buffered = 100_000
        await scene.clock.passes(100)
        assert not scene.sessions[0].pings
        assert len(scene.sessions) == 1


async def test_dead_gateway_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(reuse, "silent_seconds", lambda _: silent.seconds)
    monkeypatch.setattr(Session, "heard_at", 0.0)
    async with running(monkeypatch) as scene:
        await scene.clock.passes(100)
        assert len(scene.sessions) == 1
        scene.sessions[0].answers = False
        silent.seconds = 1000.0  # since the last answer, a packet is unacknowledged
        await scene.clock.passes(reuse.UNANSWERED_TIME + SIGN_TIME + 3 * LOOK_INTERVAL)
        assert scene.sessions[0].lost
        assert len(scene.sessions) >= 2
