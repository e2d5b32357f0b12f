"""The groups of a gateway: which agents are connected, and which of them gets a stream."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mtt.errors import DestinationError, MttError, describe
from mtt.layers.base import StreamTransport
from mtt.log import Throttle, logger
from mtt.outbound.agent import AgentSession
from mtt.outbound.balancer import FAILOVER_TIME
from mtt.outcome import Outcome
from mtt.wire.agent import Head

# Seconds for which an agent that failed a stream, but is still connected, is asked last.
REST_TIME = 10.0


@dataclass(eq=False, slots=True)
class Agent:
    """A connected agent.

    Attributes:
        id: its name, unique in its group.
        address: where it connects from.
        session: opens its streams.
        since: loop time of the connection.
        resting_until: loop time until which other agents go first.
        opened: streams opened so far.
    """

    id: str
    address: str
    session: AgentSession[Any]
    since: float
    resting_until: float = 0.0
    opened: int = 0


@dataclass(eq=False, slots=True)
class Group:
    """Agents that reach the same targets.

    Attributes:
        agents: by id; those that take new streams. The next one of a round robin comes first.
        leaving: agents whose streams continue, but which get no new ones.
    """

    name: str
    agents: dict[str, Agent] = field(default_factory=dict)
    leaving: set[Agent] = field(default_factory=set)

    @property
    def open_streams(self) -> int:
        """Number of streams of all agents, those that are being opened included."""
        agents = (*self.agents.values(), *self.leaving)
        return sum(agent.session.open_streams for agent in agents)

    def is_empty(self) -> bool:
        return not (self.agents or self.leaving)


# Orders the agents of a group for a stream; gets the user's address, "" if unknown.
Balance = Callable[[Group, str], Iterable[Agent]]


def round_robin(group: Group, user: str) -> Iterator[Agent]:
    """Each agent in turn. Costs the same however many there are."""
    for _ in range(len(group.agents)):
        if not group.agents:  # they left meanwhile
            return
        agent = next(iter(group.agents.values()))
        del group.agents[agent.id]
        group.agents[agent.id] = agent
        yield agent


def least_streams(group: Group, user: str) -> Iterable[Agent]:
    """The agent with the fewest open streams; in turn among equals."""
    # Streams that are being opened count, so a burst is spread evenly.
    return sorted(round_robin(group, user), key=lambda agent: agent.session.open_streams)


def sticky(group: Group, user: str) -> Iterable[Agent]:
    """Always the same agent for a user's address, as long as it is connected.

    Rendezvous hashing: when an agent comes or goes, only its own users move.
    """
    return sorted(
        group.agents.values(),
        key=lambda agent: zlib.crc32(f"{agent.id}\0{user}".encode()),
    )


BALANCES: dict[str, Balance] = {
    "round_robin": round_robin,
    "least_streams": least_streams,
    "sticky": sticky,
}


class Groups:
    """All groups. A group exists while it has agents.

    Args:
        balance: returns the balance of a group by its name.
        max_streams: returns the maximum number of streams of a group by its name; 0 for unlimited.
    """

    def __init__(
        self,
        balance: Callable[[str], Balance] = lambda name: round_robin,
        max_streams: Callable[[str], int] = lambda name: 0,
    ) -> None:
        self._balance = balance
        self._max_streams = max_streams
        self._refusals = Throttle()
        self._groups: dict[str, Group] = {}

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def get(self, name: str) -> Group | None:
        """The group of this name, if it has agents."""
        return self._groups.get(name)

    def join(self, name: str, agent: Agent) -> Agent | None:
        """Add an agent. An older one with the same id gets no new streams; its streams continue.

        Returns that one, if any.
        """
        group = self._groups.setdefault(name, Group(name))
        former = group.agents.get(agent.id)
        # First: the former may leave at once, and the group would end with it.
        group.agents[agent.id] = agent
        if former is not None:
            self.retire(name, former)
        return former

    def retire(self, name: str, agent: Agent) -> None:
        """Give an agent no new streams; its session closes when the last one has ended."""
        group = self._groups[name]
        agent.session.is_draining = True
        if group.agents.get(agent.id) is agent:
            del group.agents[agent.id]
        group.leaving.add(agent)
        self.stream_ended(agent)

    def stream_ended(self, agent: Agent) -> None:
        """Close the session of a leaving agent once it has no streams."""
        session = agent.session
        if session.is_draining and not (session.open_streams or session.lost):
            session.close()

    def leave(self, name: str, agent: Agent) -> None:
        """Forget an agent whose session is over."""
        group = self._groups[name]
        if group.agents.get(agent.id) is agent:
            del group.agents[agent.id]
        group.leaving.discard(agent)
        if group.is_empty():
            del self._groups[name]

    async def open(
        self, name: str, head: Head, agents: Iterable[Agent] | None = None
    ) -> StreamTransport:
        """Return a parked stream to the head's target, through an agent of the group.

        An agent that fails before its answer is replaced by the next one: nothing of the user's
        data was sent. Raises DestinationError: with the outcome NO_AGENT if no agent is usable, and
        OVERLOADED if the group, or each of its agents, has too many streams.

        `agents`: the agents of the group to ask, in this order; None: all, in the balance's order.
        """
        group = self._groups.get(name)
        if group is None or not group.agents:
            raise DestinationError(Outcome.NO_AGENT)
        most = self._max_streams(name)
        if most and group.open_streams >= most:  # only groups with a limit pay for the count
            self._refusals.warning("group %r has %d connections, its max_streams", name, most)
            raise DestinationError(Outcome.OVERLOADED)
        now = asyncio.get_running_loop().time
        started = now()
        if agents is None:
            user = head.user[0] if head.user is not None else ""
            agents = self._balance(name)(group, user)
        outcome = Outcome.NO_AGENT
        for agent in _usable_first(agents, started):
            if now() - started >= FAILOVER_TIME:
                break
            if agent.session.lost or agent.session.is_draining:
                continue
            try:
                stream = await agent.session.open(head)
            except DestinationError as error:
                if error.outcome is Outcome.OVERLOADED:
                    outcome = error.outcome  # unless another agent has room
                elif error.outcome is not Outcome.NO_AGENT:
                    raise
            except MttError as error:
                agent.resting_until = now() + REST_TIME
                logger.debug("agent %s of group %s: %s", agent.id, name, describe(error))
            else:
                agent.opened += 1
                return stream
        raise DestinationError(outcome)


def _usable_first(agents: Iterable[Agent], now: float) -> Iterator[Agent]:
    """The agents in their order, but those that seem unusable, or rest, last."""
    others: list[Agent] = []
    for agent in agents:
        if agent.session.is_usable and agent.resting_until <= now:
            yield agent
        else:
            others.append(agent)
    yield from others
