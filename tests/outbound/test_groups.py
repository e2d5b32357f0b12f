"""Groups of agents: who gets a stream, and what happens when an agent fails."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from mtt.errors import DestinationError, MttError, NetworkError
from mtt.layers.base import StreamTransport
from mtt.outbound import groups
from mtt.outbound.balancer import FAILOVER_TIME
from mtt.outbound.groups import BALANCES, Agent, Groups
from mtt.outcome import Outcome
from mtt.wire.agent import TCP, Head
from tests.support.clock import Clock
from tests.support.transports import FakeLayer
from tests.support.tunnels import logged

HEAD = Head(TCP, "nas.example", 80)


class FakeSession:
    """An agent's session that opens streams as told."""

    def __init__(self) -> None:
        self.is_draining = self.lost = self.closed = False
        self.is_usable = True
        self.open_streams = 0
        self.error: MttError | None = None
        self.asked = 0

    async def open(self, head: Head) -> StreamTransport:
        assert head.host == HEAD.host
        self.asked += 1
        if self.error is not None:
            raise self.error
        self.open_streams += 1
        return FakeLayer()

    def close(self) -> None:
        self.closed = True

    def abort(self, error: Exception | None = None) -> None:
        self.closed = True


class Scene:
    """A group with agents a, b, c."""

    def __init__(self, balance: str = "round_robin", names: str = "abc") -> None:
        self.max_streams = 0
        self.groups = Groups(lambda name: BALANCES[balance], lambda name: self.max_streams)
        self.sessions: dict[str, FakeSession] = {}
        self.agents: dict[str, Agent] = {}
        for name in names:
            self.join(name)

    def join(self, name: str) -> None:
        self.sessions[name] = FakeSession()
        self.agents[name] = Agent(name, "192.0.2.1:4000", self.sessions[name], 0.0)
        self.groups.join("home", self.agents[name])

    async def chosen(self, user: str = "") -> str:
        """The agent that gets the next stream."""
        before = {name: session.open_streams for name, session in self.sessions.items()}
        await self.groups.open("home", Head(TCP, HEAD.host, 80, (user, 1) if user else None))
        (name,) = [
            name for name, session in self.sessions.items() if session.open_streams > before[name]
        ]
        return name

    async def outcome(self) -> Outcome:
        with pytest.raises(DestinationError) as caught:
            await self.groups.open("home", HEAD)
        return caught.value.outcome


# Balancing.


async def test_round_robin_takes_turns_in_order_of_arrival() -> None:
    scene = Scene()
    assert [await scene.chosen() for _ in range(6)] == list("abcabc")
    scene.join("d")
    assert [await scene.chosen() for _ in range(4)] == list("abcd")


async def test_least_streams_evens_out() -> None:
    scene = Scene("least_streams")
    scene.sessions["a"].open_streams = 3
    scene.sessions["b"].open_streams = 1
    assert [await scene.chosen() for _ in range(3)] == ["c", "b", "c"]


async def test_sticky_users_keep_their_agent() -> None:
    scene = Scene("sticky")
    users = [f"198.51.100.{number}" for number in range(60)]
    first = {user: await scene.chosen(user) for user in users}
    assert {user: await scene.chosen(user) for user in users} == first
    assert set(Counter(first.values())) == set("abc")
    scene.groups.leave("home", scene.agents["b"])
    after = {user: await scene.chosen(user) for user in users}
    assert all(after[user] == agent for user, agent in first.items() if agent != "b")


# Failures.


async def test_next_agent_is_asked_when_one_fails() -> None:
    scene = Scene()
    scene.sessions["a"].error = NetworkError("lost")
    assert await scene.chosen() == "b"
    assert scene.sessions["a"].asked == 1


async def test_failed_agent_is_asked_last_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    scene = Scene()
    scene.sessions["a"].error = NetworkError("lost")
    assert await scene.chosen() == "b"
    scene.sessions["a"].error = None
    assert "a" not in [await scene.chosen() for _ in range(6)]
    clock.now += groups.REST_TIME + 1
    assert "a" in [await scene.chosen() for _ in range(3)]


async def test_unusable_agents_are_asked_only_if_there_are_no_others() -> None:
    scene = Scene(names="ab")
    scene.sessions["a"].is_usable = False
    assert [await scene.chosen() for _ in range(3)] == ["b", "b", "b"]
    scene.sessions["b"].is_usable = False
    assert await scene.chosen() in "ab"


async def test_unreachable_destination_is_final() -> None:
    scene = Scene()
    scene.sessions["a"].error = DestinationError(Outcome.CONNECTION_REFUSED)
    assert await scene.outcome() is Outcome.CONNECTION_REFUSED
    assert scene.sessions["b"].asked == 0


async def test_agent_that_is_leaving_passes_the_stream_on() -> None:
    scene = Scene()
    scene.sessions["a"].error = DestinationError(Outcome.NO_AGENT)
    assert await scene.chosen() == "b"


async def test_agent_without_room_passes_the_stream_on() -> None:
    scene = Scene(names="ab")
    scene.sessions["a"].error = DestinationError(Outcome.OVERLOADED)
    assert await scene.chosen() == "b"
    scene.sessions["b"].error = NetworkError("lost")
    assert await scene.outcome() is Outcome.OVERLOADED


async def test_streams_of_a_group_are_limited() -> None:
    scene = Scene(names="ab")
    scene.max_streams = 3
    with logged() as lines:
        for _ in range(3):
            await scene.chosen()
        assert await scene.outcome() is Outcome.OVERLOADED
        assert await scene.outcome() is Outcome.OVERLOADED
    assert lines == ["WARNING group 'home' has 3 connections, its max_streams"]
    scene.groups.retire("home", scene.agents["a"])  # its streams continue
    assert await scene.outcome() is Outcome.OVERLOADED
    scene.sessions["a"].open_streams -= 1
    assert await scene.chosen() == "b"
    scene.max_streams = 0
    assert await scene.chosen() == "b"


async def test_no_agent_is_an_outcome() -> None:
    scene = Scene(names="")
    assert await scene.outcome() is Outcome.NO_AGENT
    for name in "ab":
        scene.join(name)
        scene.sessions[name].error = NetworkError("lost")
    assert await scene.outcome() is Outcome.NO_AGENT
    assert [session.asked for session in scene.sessions.values()] == [1, 1]


async def test_failover_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    scene = Scene()

    class Slow(FakeSession):
        async def open(self, head: Head) -> StreamTransport:
            clock.now += FAILOVER_TIME
            self.asked += 1
            raise NetworkError("lost")

    slow = Slow()
    scene.agents["a"].session = slow
    assert await scene.outcome() is Outcome.NO_AGENT
    assert (slow.asked, scene.sessions["b"].asked) == (1, 0)


# Coming and going.


async def test_newer_agent_with_the_same_id_takes_over() -> None:
    scene = Scene(names="a")
    old, old_agent = scene.sessions["a"], scene.agents["a"]
    await scene.chosen()
    scene.join("a")
    assert old.is_draining
    assert not old.closed  # its stream continues
    assert await scene.chosen() == "a"
    assert scene.sessions["a"].open_streams == 1
    old.open_streams = 0
    scene.groups.stream_ended(old_agent)
    assert old.closed
    old.lost = True
    scene.groups.leave("home", old_agent)
    assert await scene.chosen() == "a"


async def test_idle_agent_that_is_replaced_closes_at_once() -> None:
    scene = Scene(names="a")
    old, old_agent = scene.sessions["a"], scene.agents["a"]

    def close() -> None:
        old.closed = old.lost = True
        scene.groups.leave("home", old_agent)  # sessions report their end in this call

    old.close = close  # type: ignore[method-assign]
    scene.join("a")
    assert old.closed
    assert await scene.chosen() == "a"


async def test_agent_that_replaces_the_only_one_is_in_its_group() -> None:
    scene = Scene(names="a")
    old = scene.agents["a"]
    scene.sessions["a"].close = lambda: scene.groups.leave(  # type: ignore[method-assign]
        "home", old
    )
    scene.join("a")
    assert await scene.chosen() == "a"
    group = scene.groups.get("home")
    assert group is not None
    assert list(group.agents.values()) == [scene.agents["a"]]
    assert not group.leaving
    scene.groups.leave("home", scene.agents["a"])
    assert scene.groups.get("home") is None


async def test_draining_agent_gets_no_new_streams() -> None:
    scene = Scene(names="ab")
    assert await scene.chosen() == "a"
    scene.groups.retire("home", scene.agents["a"])
    assert [await scene.chosen() for _ in range(3)] == ["b", "b", "b"]
    assert not scene.sessions["a"].closed


async def test_group_is_forgotten_with_its_last_agent() -> None:
    scene = Scene(names="ab")
    scene.groups.leave("home", scene.agents["a"])
    assert scene.groups.get("home") is not None
    scene.groups.retire("home", scene.agents["b"])
    scene.groups.leave("home", scene.agents["b"])
    assert scene.groups.get("home") is None
    assert not list(scene.groups)


async def test_agents_may_leave_while_one_is_asked() -> None:
    scene = Scene()
    gone = asyncio.get_running_loop().create_future()

    class Leaving(FakeSession):
        async def open(self, head: Head) -> StreamTransport:
            await gone
            raise NetworkError("lost")

    scene.agents["a"].session = Leaving()
    opening = asyncio.ensure_future(scene.groups.open("home", HEAD))
    await asyncio.sleep(0)
    scene.groups.leave("home", scene.agents["a"])
    scene.groups.leave("home", scene.agents["b"])
    gone.set_result(None)
    await opening
    assert scene.sessions["c"].asked == 1
