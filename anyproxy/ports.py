"""The forwarded ports of a gateway: which are open, and which agents serve them.

    announced -> open -> its agents leave -> held for HOLD_TIME -> claimed again, or closed

A port belongs to the group whose agent has opened it. Other agents of the group may claim it, too,
and serve it when that one leaves. It is independent of how agents announce their ports.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from anyproxy.forwarded import HOLD_TIME, ForwardedPort, Means
from anyproxy.forwarded_tcp import TcpPort
from anyproxy.forwarded_udp import UdpPort
from anyproxy.options import MAX_OPEN_PORTS, PROTOCOLS, TCP, UDP, GroupOptions, OpenPort
from mtt.address import endpoint
from mtt.errors import StartError
from mtt.log import FAILURE_BURST, Throttle
from mtt.net.accept import first_reserved
from mtt.observe.metrics import Values, labels, metric
from mtt.outbound.groups import Agent
from mtt.wire import addresses

# Ports of a group. Each takes a descriptor of the gateway.
MAX_GROUP_PORTS = 1024
# The part of the gateway's descriptors that all ports may take: agents can make groups without end.
PORTS_PART = 1 / 4
# Ports that are tried when an agent asks for any.
DRAWS = 64

_KINDS: dict[str, type[TcpPort] | type[UdpPort]] = {TCP: TcpPort, UDP: UdpPort}
_ALL_PORTS = range(1, 65536)
# The suffix of an agent's replicas, also of the Go program; they share the agent's ports.
_REPLICA = re.compile(r"-r\d+(-[0-9a-v]{20})?$")


@dataclass(frozen=True, slots=True)
class PortResult:
    """What became of an announced port.

    Attributes:
        address: where users connect; empty if the port is not open for the group.
        error: why not.
        is_standby: whether another agent of the group serves it at present.
    """

    port: OpenPort
    address: str = ""
    error: str = ""
    is_standby: bool = False


class Ports:
    """All forwarded ports.

    Args:
        means: what ports need of the gateway.
    """

    def __init__(self, means: Means) -> None:
        self._means = means
        self._ports: dict[tuple[str, int], ForwardedPort] = {}  # by protocol and number
        self._claims: dict[Agent, set[ForwardedPort]] = {}
        # Ports that agents left to the gateway to choose, by what was asked for.
        self._drawn: dict[tuple[str, ...], ForwardedPort] = {}
        self._counts: Counter[str] = Counter()  # ports by group
        self._holds: dict[ForwardedPort, asyncio.TimerHandle] = {}
        # Agents that lack a port, the first to ask first; and what each agent does about it.
        self._lacking: dict[Agent, None] = {}
        self._watchers: dict[Agent, Callable[[], object]] = {}
        self._telling: asyncio.Handle | None = None
        self._is_over = False
        self._lines = Throttle(FAILURE_BURST)

    def __iter__(self) -> Iterator[ForwardedPort]:
        """The open ports."""
        return iter(self._ports.values())

    # Called for agents.

    def announce(self, group: str, agent: Agent, ports: Sequence[OpenPort]) -> list[PortResult]:
        """Forward exactly these ports to an agent of a group. Returns the results in their order.

        May be called again, with other ports or to retry. The agent must call `release` at its end.
        """
        if agent.session.lost or agent.session.is_draining:
            return [PortResult(port, error="the agent is leaving") for port in ports]
        kept: set[ForwardedPort] = set()
        results = []
        for number, wanted in enumerate(ports):
            try:
                if number >= MAX_OPEN_PORTS:
                    raise StartError(f"an agent may have {MAX_OPEN_PORTS} ports")
                port = self._obtain(group, agent, wanted, kept)
            except StartError as error:
                results.append(PortResult(wanted, error=str(error)))
                continue
            kept.add(port)
            port.claim(agent, wanted)
            self._resume(port)
            owner = next(iter(port.claims))
            results.append(
                PortResult(
                    wanted, ", ".join(port.addresses), is_standby=_name(owner) != _name(agent)
                )
            )
        for port in self._claims.get(agent, set()) - kept:
            port.release(agent)
            if not port.claims:
                self._close(port)
        if kept:
            self._claims[agent] = kept
        else:
            self._claims.pop(agent, None)
        if any(result.error for result in results):
            self._lacking.setdefault(agent)
        else:
            self._lacking.pop(agent, None)
        return results

    def watch(self, agent: Agent, again: Callable[[], object]) -> None:
        """Call `again`, which announces again, whenever the results may be others than before.

        That is until the agent's `release`.
        """
        self._watchers[agent] = again

    def release(self, agent: Agent) -> None:
        """Give an agent that leaves no new users; its ports are held for others, and its return."""
        self._watchers.pop(agent, None)
        self._lacking.pop(agent, None)
        successors: dict[Agent, None] = {}
        for port in self._claims.pop(agent, ()):
            is_owner = next(iter(port.claims)) is agent
            port.release(agent)
            if self._is_over:
                continue
            if not port.claims:
                loop = asyncio.get_running_loop()
                self._holds[port] = loop.call_later(HOLD_TIME, self._close, port)
            elif is_owner:
                successors[next(iter(port.claims))] = None
        for successor in successors:
            self._tell(successor)

    # Opening and closing.

    def _obtain(
        self, group: str, agent: Agent, wanted: OpenPort, kept: set[ForwardedPort]
    ) -> ForwardedPort:
        """The open port for what an agent wants. Raises StartError."""
        if self._is_over:
            raise StartError("the gateway is shutting down")
        if wanted.protocol not in _KINDS:
            raise StartError("the protocol is neither tcp nor udp")
        try:
            addresses.encode(wanted.local_host, wanted.local_port)
        except ValueError as error:
            raise StartError(f"the target: {error}") from None
        if wanted.proxy_protocol and wanted.protocol != TCP:
            raise StartError("proxy_protocol is for TCP ports only")
        number = wanted.remote_port
        if not number:
            return self._obtain_any(group, agent, wanted, kept)
        options = self._means.options(group)
        if not any(number in numbers for numbers in options.ports):
            raise StartError(
                f"the group may not open port {number}; groups.NAME.ports of the gateway lacks it"
            )
        port = self._ports.get((wanted.protocol, number))
        if port is None:
            return self._bind(group, agent, wanted.protocol, number, options)
        if port.group != group:
            raise StartError(f"port {number} ({wanted.protocol}) is in use by another group")
        if port in kept:
            raise StartError(f"port {number} ({wanted.protocol}) is there twice")
        return port

    def _obtain_any(
        self, group: str, agent: Agent, wanted: OpenPort, kept: set[ForwardedPort]
    ) -> ForwardedPort:
        """A port that the gateway chooses: the same one when the agent asks again."""
        target = wanted.protocol, wanted.local_host, str(wanted.local_port)
        drawn_for = group, _name(agent), *target
        port = self._drawn.get(drawn_for)
        if port is not None:
            if port in kept:
                raise StartError("a port for this target is there twice")
            return port
        options = self._means.options(group)
        failure = StartError("no port is free for the group")
        for number in _draws(options):
            if (wanted.protocol, number) in self._ports:
                continue
            try:
                port = self._bind(group, agent, wanted.protocol, number, options)
            except StartError as error:
                failure = error
            else:
                port.drawn_for = drawn_for
                self._drawn[drawn_for] = port
                return port
        raise failure

    def _bind(
        self, group: str, agent: Agent, protocol: str, number: int, options: GroupOptions
    ) -> ForwardedPort:
        if self._counts[group] >= MAX_GROUP_PORTS:
            raise StartError(f"the group has {MAX_GROUP_PORTS} ports, which is the limit")
        if len(self._ports) >= first_reserved() * PORTS_PART:
            raise StartError(
                f"the gateway has {len(self._ports)} ports; its limit of open files allows no more"
            )
        try:
            where = endpoint(options.ports_bind, str(number))
        except ValueError as error:
            raise StartError(f"ports_bind: {error}") from None
        port = _KINDS[protocol](self._means, group, where)
        port.bound_to = options.ports_bind
        self._ports[protocol, port.number] = port
        self._counts[group] += 1
        self._lines.info(
            "port %s (%s) opened for agent %r of group %r",
            ", ".join(port.addresses), protocol, agent.id, group,
        )  # fmt: skip
        return port

    def _resume(self, port: ForwardedPort) -> None:
        hold = self._holds.pop(port, None)
        if hold is not None:
            hold.cancel()

    def _close(self, port: ForwardedPort) -> None:
        self._resume(port)
        del self._ports[port.protocol, port.number]
        self._counts[port.group] -= 1
        if not self._counts[port.group]:
            del self._counts[port.group]
        if port.drawn_for is not None:
            del self._drawn[port.drawn_for]
        port.close()
        self._lines.info("port %s (%s) closed", ", ".join(port.addresses), port.protocol)
        if self._lacking and self._telling is None:
            self._telling = asyncio.get_running_loop().call_soon(self._tell_lacking)

    def _tell_lacking(self) -> None:
        self._telling = None
        for agent in list(self._lacking):
            self._tell(agent)

    def _tell(self, agent: Agent) -> None:
        again = self._watchers.get(agent)  # one call may release another agent
        if again is not None:
            again()

    # Called by the gateway.

    def recheck(self) -> None:
        """Apply changed options of groups: close ports, and have the agents announce theirs."""
        for (_, number), port in list(self._ports.items()):
            options = self._means.options(port.group)
            is_allowed = any(number in numbers for numbers in options.ports)
            if not is_allowed or port.bound_to != options.ports_bind:
                for agent in list(port.claims):
                    self._claims[agent].discard(port)
                    port.release(agent)
                self._close(port)
        for agent in list(self._watchers):
            self._tell(agent)

    def lines(self) -> str:
        """Metrics."""
        users = {
            protocol: [port.users for port in self if port.protocol == protocol]
            for protocol in PROTOCOLS
        }

        def by_protocol(value: Callable[[list[int]], int]) -> Values:
            return {labels(protocol=protocol): value(found) for protocol, found in users.items()}

        return metric(
            "mtt_forwarded_ports", "gauge", "Open forwarded ports.", by_protocol(len)
        ) + metric(
            "mtt_forwarded_users",
            "gauge",
            "Users of forwarded ports: connections (tcp), addresses with recent datagrams (udp).",
            by_protocol(sum),
        )

    def cleanup(self) -> None:
        """Stop listening; users stay. Safe in a signal handler."""
        self._is_over = True
        for port in list(self._ports.values()):
            port.stop_listening()

    def close(self) -> None:
        """Close all ports. TCP connections belong to the gateway's tunnels."""
        self.cleanup()
        for hold in self._holds.values():
            hold.cancel()
        if self._telling is not None:
            self._telling.cancel()
        for port in self._ports.values():
            port.close()
        self._ports.clear()
        self._claims.clear()


def _name(agent: Agent) -> str:
    """The name that all replicas of an agent have in common."""
    return _REPLICA.sub("", agent.id)


def _draws(options: GroupOptions) -> Iterator[int]:
    """Numbers to try for a port of any number; 0 leaves it to the system."""
    if _ALL_PORTS in options.ports:
        yield 0
        return
    total = sum(map(len, options.ports))
    for index in random.sample(range(total), min(total, DRAWS)):
        for numbers in options.ports:
            if index < len(numbers):
                yield numbers[index]
                break
            index -= len(numbers)
