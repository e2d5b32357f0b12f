"""Links: when an agent connects again, when it gives a session up, and what it says about it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from anyproxy import link as link_module
from anyproxy.link import (
    FIRST_WAIT,
    GOOD_TIME,
    LONGEST_WAIT,
    LOOK_INTERVAL,
    QUIET_TIME,
    SIGN_TIME,
    Link,
)
from mtt.address import Endpoint
from mtt.errors import MttError, NetworkError, PeerError, RefusedError
from mtt.outbound import reuse
from tests.support.clock import Clock
from tests.support.transports import FakeTransport, turns
from tests.support.tunnels import logged

GATEWAY = Endpoint(("gateway.example",), 443)
DOWN = NetworkError("connection refused")


class Session:
    """A session with a gateway that answers if a test wants so."""

    def __init__(self, on_end: Callable[[], object], clock: Clock) -> None:
        self.lower = FakeTransport()
        self.lost = False
        self.error: Exception | None = None
        self.open_streams = 0
        self.pings = 0
        self.answers = True
        self._on_end = on_end
        self._clock = clock
        self._heard_at = clock.now

    @property
    def heard_at(self) -> float:
        if self.answers:
            self._heard_at = self._clock.now
        return self._heard_at

    def ping(self) -> None:
        self.pings += 1

    def ping_answered(self) -> bool:
        return self.answers

    def close(self) -> None:
        self.abort()

    def abort(self, exc: Exception | None = None) -> None:
        self.lost, self.error = True, exc
        self._on_end()


class Scene:
    """A link, its gateway, the network in between, and time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, gateway: Endpoint = GATEWAY) -> None:
        self.clock = Clock(monkeypatch, link_module, reuse)
        self.route: str | None = "192.0.2.1"
        self.slept = 0.0
        self.peers: set[object] = set()
        for module in (link_module, reuse):
            monkeypatch.setattr(module, "source_address", self._source_address)
            monkeypatch.setattr(module, "slept_seconds", lambda: self.slept)
        self.error: Exception | None = None
        self.attempts: list[float] = []
        self.sessions: list[Session] = []
        self.link = Link(gateway, self._connect)

    def _source_address(self, peer: object) -> str | None:
        self.peers.add(peer)
        return self.route

    async def _connect(self, on_end: Callable[[], object]) -> Session:
        self.attempts.append(self.clock.now)
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.sessions.append(Session(on_end, self.clock))
        return self.sessions[-1]

    @property
    def waits(self) -> list[float]:
        """Seconds between attempts."""
        pairs = zip(self.attempts, self.attempts[1:], strict=False)
        return [later - sooner for sooner, later in pairs]

    async def ends(self, error: Exception | None = None) -> None:
        """The session ends."""
        self.sessions[-1].abort(error)
        await turns()


@asynccontextmanager
async def running(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None = None, gateway: Endpoint = GATEWAY
) -> AsyncIterator[Scene]:
    scene = Scene(monkeypatch, gateway)
    scene.error = error
    scene.link.start()
    await turns()
    try:
        yield scene
    finally:
        await scene.link.stop()
        assert not scene.clock.pending


@pytest.fixture
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are as long as they may be."""
    monkeypatch.setattr(random, "uniform", lambda least, most: most)


# Reconnecting.


@pytest.mark.usefixtures("longest")
async def test_waits_grow_exponentially_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, DOWN) as scene:
        await scene.clock.passes(200)
        assert scene.waits[:4] == pytest.approx([1.0, 1.5, 2.25, 3.375])
        assert scene.waits[-3:] == pytest.approx([LONGEST_WAIT] * 3)


async def test_link_never_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, DOWN) as scene:
        await scene.clock.passes(1800)
        assert 1800 / LONGEST_WAIT <= len(scene.attempts) <= 1800 / LONGEST_WAIT * 2 + 20
        scene.error = None
        await scene.clock.passes(LONGEST_WAIT)
        assert scene.link.session is scene.sessions[0]


async def test_waits_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, float]] = []

    def middle(least: float, most: float) -> float:
        asked.append((least, most))
        return (least + most) / 2

    monkeypatch.setattr(random, "uniform", middle)
    async with running(monkeypatch, DOWN) as scene:
        await scene.clock.passes(10)
        assert asked[:2] == [(FIRST_WAIT / 2, FIRST_WAIT), (0.75, 1.5)]
        assert scene.waits[:2] == pytest.approx([0.75, 1.125])


async def test_good_session_is_replaced_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as scene:
        await scene.clock.passes(GOOD_TIME)
        await scene.ends()
        assert len(scene.sessions) == 2
        assert scene.link.session is scene.sessions[1]
        assert scene.waits == [GOOD_TIME]


@pytest.mark.usefixtures("longest")
async def test_good_session_resets_the_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, DOWN) as scene:
        await scene.clock.passes(100)
        scene.error = None
        await scene.clock.passes(LONGEST_WAIT + GOOD_TIME)
        scene.error = DOWN
        scene.attempts.clear()
        await scene.ends()
        await scene.clock.passes(4)
        assert scene.waits == pytest.approx([1.0, 1.5])


@pytest.mark.usefixtures("longest")
async def test_gateway_that_ends_each_session_is_not_called_in_a_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch) as scene:
        for _ in range(12):
            await scene.ends()
            count = len(scene.attempts)
            await scene.clock.until(lambda: len(scene.attempts) > count)  # noqa: B023
        assert scene.waits[:3] == pytest.approx([1.0, 1.5, 2.25])
        assert scene.waits[-1] == LONGEST_WAIT


@pytest.mark.usefixtures("longest")
async def test_session_that_is_lost_before_it_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)

    async def connect(on_end: Callable[[], object]) -> Session:
        session = await scene._connect(on_end)
        session.abort(PeerError("smux: version 9"))
        return session

    scene.link = Link(GATEWAY, connect)
    with logged() as lines:
        scene.link.start()
        await scene.clock.passes(0.4)
        assert len(scene.attempts) == 1
        assert scene.link.session is None
        await scene.clock.passes(1)
        assert len(scene.attempts) == 2
        await scene.link.stop()
    assert lines[1].endswith(f"disconnected from the gateway {GATEWAY}: smux: version 9")


async def test_fault_of_the_program_does_not_end_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    with logged() as lines:
        async with running(monkeypatch, RuntimeError("a bug")) as scene:
            scene.error = None
            await scene.clock.passes(FIRST_WAIT)
            assert scene.link.session is not None
    assert "internal error: a bug" in lines[0]


async def test_fault_while_a_session_is_watched_replaces_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with logged() as lines:
        async with running(monkeypatch) as scene:
            monkeypatch.setattr(link_module, "SIGN_TIME", "a bug")
            scene.sessions[0].answers = False
            scene.route = "198.51.100.1"
            await scene.clock.until(lambda: len(scene.sessions) == 2)
            assert scene.sessions[0].lost
            assert scene.link.session is scene.sessions[1]
    assert "internal error: '>=' not supported" in lines[1]


# The network.


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


# What is logged.


async def test_each_reason_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with logged() as lines:
        async with running(monkeypatch, DOWN) as scene:
            await scene.clock.passes(200)
            scene.error = NetworkError("timed out")
            await scene.clock.passes(200)
            scene.error = DOWN
            await scene.clock.passes(200)
            assert lines == [
                "WARNING no session with the gateway, trying again: connection refused",
                "WARNING no session with the gateway, trying again: timed out",
            ]
            # After a session the story begins anew.
            scene.error = None
            await scene.clock.passes(LONGEST_WAIT)
            scene.error = DOWN
            await scene.ends(NetworkError("reset"))
            await scene.clock.passes(200)
    assert lines[2:] == [
        "INFO connected to the gateway gateway.example:443",
        "WARNING disconnected from the gateway gateway.example:443: reset",
        "WARNING no session with the gateway, trying again: connection refused",
    ]


async def test_reasons_that_always_change_take_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_REASONS", 3)
    async with running(monkeypatch, DOWN) as scene:
        for number in range(9):
            scene.error = PeerError(f"reason {number}")
            await scene.clock.passes(LONGEST_WAIT)
        assert len(scene.link._reasons) == 3


@pytest.mark.usefixtures("longest")
async def test_refusal_is_followed_by_long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = RefusedError("the gateway refuses this agent: 403, wrong group password")
    with logged() as lines:
        async with running(monkeypatch, refused) as scene:
            await scene.clock.passes(100)
            assert scene.waits == pytest.approx([LONGEST_WAIT] * 3)
            scene.error = None
            await scene.clock.passes(LONGEST_WAIT)
            assert scene.link.session is not None
    assert lines == [
        f"WARNING no session with the gateway, trying again: {refused}",
        "INFO connected to the gateway gateway.example:443",
    ]


# Stopping.


async def test_stop_leaves_the_session_and_makes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as scene:
        await scene.link.stop()
        assert not scene.sessions[0].lost
        await scene.ends()
        await scene.clock.passes(100)
        assert len(scene.sessions) == 1


async def test_stop_while_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, DOWN) as scene:
        await scene.link.stop()
        await scene.clock.passes(100)
        assert len(scene.attempts) == 1


async def test_stop_while_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    async def connect(_: Callable[[], object]) -> Session:
        try:
            await asyncio.get_running_loop().create_future()
            raise AssertionError
        finally:
            ended.append("cancelled")

    link = Link(GATEWAY, connect)
    link.start()
    await turns()
    await link.stop()
    assert ended == ["cancelled"]
    await link.stop()


async def test_stop_before_the_start() -> None:
    async def connect(_: Callable[[], object]) -> Session:
        raise MttError

    await Link(GATEWAY, connect).stop()
