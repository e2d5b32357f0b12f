"""Which agent of a forwarded port gets a user's stream."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterable
from typing import Any

import pytest

from anyproxy import forwarded
from anyproxy.forwarded import ForwardedPort, Means
from anyproxy.options import DEFAULT_GROUP, OpenPort
from mtt.errors import DestinationError
from mtt.layers.base import StreamTransport
from mtt.observe.metrics import Counters
from mtt.outbound.groups import Agent
from mtt.outcome import Outcome
from mtt.tunnels.open_tunnels import OpenTunnels
from mtt.wire.agent import TCP, Head
from tests.support.clock import Clock
from tests.support.transports import turns

USER = ("192.0.2.7", 4000)


class Session:
    """A session that fails with an outcome, or gives a stream."""

    def __init__(self, outcome: Outcome = Outcome.SUCCEEDED) -> None:
        self.outcome = outcome
        self.is_usable = True


class Port(ForwardedPort):
    """A port without sockets; `asked` has the agents in the order in which they were asked."""

    def __init__(self) -> None:
        tunnels = OpenTunnels(Counters(), timeout=300)
        means = Means(self._give, lambda _: DEFAULT_GROUP, tunnels, tunnels.counters, 300)
        super().__init__(means, "home")
        self.asked: list[str] = []

    def add(self, name: str, outcome: Outcome = Outcome.SUCCEEDED, **changes: Any) -> Agent:
        session: Any = Session(outcome)
        agent = Agent(name, "192.0.2.1:1", session, 0.0)
        self.claim(agent, OpenPort(remote_port=1, local_host=name, local_port=22, **changes))
        return agent

    async def _give(self, group: str, head: Head, agents: Iterable[Agent]) -> StreamTransport:
        (agent,) = agents
        assert (group, head.host, head.user) == ("home", agent.id, USER)
        self.asked.append(agent.id)
        session: Any = agent.session
        if session.outcome is not Outcome.SUCCEEDED:
            raise DestinationError(session.outcome)
        return StreamTransport()

    async def opened(self) -> str:
        """The name of the agent that a user's stream goes through."""
        _, wanted = await self._open(TCP, USER)
        return wanted.local_host

    def stop_listening(self) -> None:
        pass


async def test_owner_gets_all_users() -> None:
    port = Port()
    port.add("a")
    port.add("b")
    assert [await port.opened() for _ in range(3)] == ["a"] * 3


@pytest.mark.parametrize("outcome", [Outcome.NO_AGENT, Outcome.OVERLOADED])
async def test_next_agent_is_asked_if_the_owner_cannot(outcome: Outcome) -> None:
    port = Port()
    port.add("a", outcome)
    port.add("b")
    assert await port.opened() == "b"
    assert port.asked == ["a", "b"]


async def test_target_that_fails_is_not_tried_through_another_agent() -> None:
    port = Port()
    port.add("a", Outcome.CONNECTION_REFUSED)
    port.add("b")
    with pytest.raises(DestinationError) as caught:
        await port.opened()
    assert caught.value.outcome is Outcome.CONNECTION_REFUSED
    assert port.asked == ["a"]


async def test_agents_that_seem_unusable_or_rest_are_asked_last() -> None:
    port = Port()
    unusable: Any = port.add("a").session
    unusable.is_usable = False
    port.add("b").resting_until = asyncio.get_running_loop().time() + 100
    port.add("c")
    assert await port.opened() == "c"


async def test_agents_whose_list_lacks_the_user_are_passed_over() -> None:
    port = Port()
    port.add("a", allow_from=(ipaddress.ip_network("10.0.0.0/8"),))
    port.add("b", allow_from=(ipaddress.ip_network("192.0.2.0/24"),))
    assert await port.opened() == "b"
    assert port.asked == ["b"]


async def test_overloaded_agents_fail_users_at_once() -> None:
    port = Port()
    port.add("a", Outcome.OVERLOADED)
    port.add("b", Outcome.NO_AGENT)
    with pytest.raises(DestinationError) as caught:
        await port.opened()
    assert caught.value.outcome is Outcome.OVERLOADED


async def test_user_waits_for_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    port = Port()
    port.release(port.add("a"))
    waiting = asyncio.ensure_future(port.opened())
    await clock.passes(forwarded.HOLD_TIME - 1)
    port.add("b", Outcome.NO_AGENT)
    await turns()
    assert port.asked == ["b"]
    port.add("c")
    assert await waiting == "c"
    assert not clock.pending


async def test_user_gives_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    port = Port()
    waiting = asyncio.ensure_future(port.opened())
    await clock.passes(forwarded.HOLD_TIME - 1)
    port.add("a", Outcome.NO_AGENT)
    await clock.passes(0.5)
    assert not waiting.done()
    await clock.passes(0.5)
    with pytest.raises(DestinationError) as caught:
        await waiting
    assert caught.value.outcome is Outcome.NO_AGENT


async def test_users_of_a_closed_port_do_not_wait() -> None:
    port = Port()
    waiting = asyncio.ensure_future(port.opened())
    await turns()
    port.close()
    with pytest.raises(DestinationError):
        await waiting
