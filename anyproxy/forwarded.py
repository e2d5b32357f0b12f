"""One forwarded port of the gateway.

    user -> port -> its owner, else another agent that has claimed the port -> the agent's target

A port belongs to a group. The agents that claim it serve it in turn: the first usable one gets all
users. While no agent is usable, TCP connections and the first datagrams of UDP users wait for
HOLD_TIME: an agent that reconnects is back by then.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from anyproxy.options import ANYWHERE, GroupOptions, Network, OpenPort
from mtt.address import unmapped
from mtt.errors import DestinationError
from mtt.layers.base import StreamTransport
from mtt.log import FAILURE_BURST, Throttle
from mtt.observe.metrics import Counters
from mtt.outbound.groups import Agent
from mtt.outcome import Outcome
from mtt.tunnels.open_tunnels import OpenTunnels
from mtt.wire.agent import Head

# Seconds for which a port stays open without an agent, and a user waits for one: an agent that has
# lost its connection notices within 10 s and connects at once.
HOLD_TIME = 10.0


@dataclass(frozen=True, slots=True)
class Means:
    """What all ports share.

    Attributes:
        open: opens a stream of a group, for a head, through one of these agents; see `Groups.open`.
        options: returns the options of a group.
        tunnels: owns TCP connections.
        counters: counts the bytes of UDP.
        udp_timeout: idle timeout of a UDP user, seconds.
    """

    open: Callable[[str, Head, Iterable[Agent]], Awaitable[StreamTransport]]
    options: Callable[[str], GroupOptions]
    tunnels: OpenTunnels
    counters: Counters
    udp_timeout: float


class ForwardedPort:
    """Base class of both kinds.

    Attributes:
        claims: what each agent wants the port for, the owner first.
        addresses: where it listens.
        bound_to: the option that says where.
        drawn_for: for what the gateway has chosen the number; None if an agent has.
    """

    protocol: ClassVar[str]

    def __init__(self, means: Means, group: str) -> None:
        self.group = group
        self.claims: dict[Agent, OpenPort] = {}
        self.addresses: list[str] = []
        self.bound_to = ""
        self.drawn_for: tuple[str, ...] | None = None
        self._means = means
        self._loop = asyncio.get_running_loop()
        self._allow_from: tuple[Network, ...] = ANYWHERE  # the owner's, also when it has left
        self._changed = asyncio.Event()  # replaced when it is set
        self._closed = False
        self._refusals = Throttle(FAILURE_BURST)

    @property
    def users(self) -> int:
        """Number of users: open connections, or addresses with recent datagrams."""
        raise NotImplementedError

    @property
    def number(self) -> int:
        return int(self.addresses[0].rpartition(":")[2])

    def claim(self, agent: Agent, wanted: OpenPort) -> None:
        """Let an agent serve the port, after those that have claimed it before."""
        self.claims[agent] = wanted
        self._note_change()

    def release(self, agent: Agent) -> None:
        """Give an agent no new users."""
        self.claims.pop(agent, None)
        self._note_change()

    def stop_listening(self) -> None:
        """Take no new users. Safe in a signal handler."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop listening, and give up users that have no stream yet."""
        self._closed = True
        self.stop_listening()
        self._note_change()

    def _note_change(self) -> None:
        owner = next(iter(self.claims.values()), None)
        if owner is not None:
            self._allow_from = owner.allow_from
        self._changed.set()
        self._changed = asyncio.Event()

    # For users.

    def _allows(self, host: str) -> bool:
        """Whether a user at `host` may use the port; a refusal is logged."""
        if _is_within(host, self._means.options(self.group).allow_from) and _is_within(
            host, self._allow_from
        ):
            return True
        self._refusals.info(
            "port %s: user refused (allow_from): %s", self.addresses[0], unmapped(host)
        )
        return False

    async def _open(self, network: int, user: tuple[str, int]) -> tuple[StreamTransport, OpenPort]:
        """Open a stream to the target of the first agent that can.

        Raises DestinationError: with the outcome NO_AGENT if none can within HOLD_TIME, and at once
        with OVERLOADED if they or the group have too many streams.
        """
        deadline = self._loop.time() + HOLD_TIME
        while True:
            changed = self._changed
            is_overloaded = False
            for agent, wanted in list(self._usable_first()):
                if not _is_within(user[0], wanted.allow_from):
                    continue
                head = Head(network, wanted.local_host, wanted.local_port, user)
                try:
                    return await self._means.open(self.group, head, (agent,)), wanted
                except DestinationError as error:
                    if error.outcome is Outcome.OVERLOADED:
                        is_overloaded = True
                    elif error.outcome is not Outcome.NO_AGENT:
                        raise
            if is_overloaded:
                raise DestinationError(Outcome.OVERLOADED)
            left = deadline - self._loop.time()
            if left <= 0 or self._closed:
                raise DestinationError(Outcome.NO_AGENT)
            timer = self._loop.call_later(left, changed.set)
            try:
                await changed.wait()
            finally:
                timer.cancel()

    def _usable_first(self) -> Iterator[tuple[Agent, OpenPort]]:
        others = []
        now = self._loop.time()
        for claim in self.claims.items():
            agent = claim[0]
            if agent.session.is_usable and agent.resting_until <= now:
                yield claim
            else:
                others.append(claim)
        yield from others


def _is_within(host: str, networks: tuple[Network, ...]) -> bool:
    if networks is ANYWHERE:
        return True
    address = ipaddress.ip_address(unmapped(host.partition("%")[0]))
    return any(address in network for network in networks)
