"""What the JSON interface shows of a gateway and of an agent.

As in the Go program, sent means towards agents at the gateway, and towards the gateway at the
agent.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from anyproxy.agent import Agent
from anyproxy.gateway import Gateway
from anyproxy.options import WebOptions
from anyproxy.web import View, Web, go_duration, go_time
from mtt.address import host_port
from mtt.layers.base import StreamTransport
from mtt.outbound.groups import Agent as GroupAgent
from mtt.outcome import Outcome
from mtt.tunnels.open_tunnels import Carrier, OpenTunnels
from mtt.tunnels.relay import Relay
from mtt.users.login_throttle import LoginThrottle
from mtt.wire.agent import TCP, Head

NANOSECONDS = 10**9
# Targets of streams to keep before those of ended ones are dropped.
MIN_TARGETS = 1000

Json = dict[str, Any]
Query = Mapping[str, str]


def _open(tunnels: OpenTunnels) -> dict[str, Carrier]:
    """The open tunnels by id, the oldest first."""
    # Nothing is kept for these ids: when it began, and where it is, make a tunnel unique.
    carriers = sorted(tunnels.carriers, key=lambda each: each.started)
    return {f"{round(each.started * 1e6):x}-{id(each) >> 4 & 0xFFFF:x}": each for each in carriers}


def _connection(
    number: str, client: str, target: str, sent: int, received: int, age: float
) -> Json:
    return {
        "connection_id": number,
        "client_id": client,
        "target_host": target,
        "start_time": go_time(-age),
        "bytes_sent": sent,
        "bytes_received": received,
        "status": "active",
        "duration": int(age * NANOSECONDS),
    }


def _counts(active: int, total: int, sent: int, received: int, errors: int) -> Json:
    return {
        "active_connections": active,
        "total_connections": total,
        "bytes_sent": sent,
        "bytes_received": received,
        "error_count": errors,
    }


def _one_or_all(found: dict[str, Json], query: Query, key: str) -> Any:
    return found.get(query[key]) if query.get(key) else found


def add_to_gateway(gateway: Gateway, options: WebOptions) -> None:
    """Serve the interface of a gateway. Raises UsageError if the certificate is unusable."""
    views, throttle = GatewayViews(gateway).views(), gateway.credentials.throttle
    gateway.web = Web(options, "gateway_session_id", views, throttle)
    gateway.web.proxies = gateway.options.trusted_proxies


def add_to_agent(agent: Agent, options: WebOptions) -> None:
    """Serve the interface of an agent. Raises UsageError if the certificate is unusable."""
    views = AgentViews(agent).views()
    agent.web = Web(options, "client_session_id", views, LoginThrottle())


class GatewayViews:
    """The views of a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._targets: dict[StreamTransport, str] = {}
        self._limit = MIN_TARGETS
        gateway.on_stream = self._note_target

    def views(self) -> dict[str, View]:
        """The views by path."""
        return {
            "/api/metrics/global": self._global,
            "/api/metrics/clients": self._clients,
            "/api/metrics/connections": self._show_connections,
        }

    def _note_target(self, stream: StreamTransport, head: Head) -> None:
        targets = self._targets
        if len(targets) >= self._limit:  # also those whose streams have ended
            open_ones = {
                each.far
                for each in self._gateway.open_tunnels.carriers
                if isinstance(each, Relay)
            }
            self._targets = targets = {
                each: target for each, target in targets.items() if each in open_ones
            }
            self._limit = max(MIN_TARGETS, 2 * len(targets))
        if head.network == TCP:
            targets[stream] = host_port(head.host, head.port)

    def _global(self, query: Query) -> Json:
        gateway = self._gateway
        tunnels, counters = gateway.open_tunnels, gateway.counters
        requests, failed = gateway.figures.requests, gateway.figures.failures
        counts = _counts(
            tunnels.open, counters.tunnels, tunnels.bytes_up, tunnels.bytes_down, failed
        )
        rate = 100.0 * (requests - failed) / requests if requests else 100.0
        uptime = go_duration(time.time() - counters.started)
        return counts | {"success_rate": rate, "uptime": uptime}

    def _agents(self) -> dict[GroupAgent, str]:
        """All agents with their names: the ids, with the group's name before it where agents of
        several groups have the same id."""
        groups = list(self._gateway.groups)
        # The ones that serve come last, because an id may also be that of a former session.
        agents = {group.name: (*group.leaving, *group.agents.values()) for group in groups}
        times = Counter(each for found in agents.values() for each in {one.id for one in found})
        return {
            agent: agent.id if times[agent.id] == 1 else f"{group}/{agent.id}"
            for group, found in agents.items()
            for agent in found
        }

    def _clients(self, query: Query) -> Any:
        moved: dict[str, list[Json]] = {}
        for connection in self._connections_by_number().values():
            moved.setdefault(connection["client_id"], []).append(connection)
        opened: Counter[str] = Counter()
        found = {}
        for agent, name in self._agents().items():
            mine = moved.get(name, [])
            opened[name] += agent.opened
            counts = _counts(
                len(mine),
                opened[name],
                sum(each["bytes_sent"] for each in mine),
                sum(each["bytes_received"] for each in mine),
                0,
            )
            state = {"last_seen": go_time(), "is_online": not agent.session.is_draining}
            found[name] = {"client_id": name} | counts | state
        return _one_or_all(found, query, "client_id")

    def _show_connections(self, query: Query) -> Any:
        return _one_or_all(self._connections_by_number(), query, "conn_id")

    def _connections_by_number(self) -> dict[str, Json]:
        # Not by address: agents behind one trusted proxy may have the same.
        names = {agent.session.bottom: name for agent, name in self._agents().items()}
        now = asyncio.get_running_loop().time()
        found = {}
        for number, carrier in _open(self._gateway.open_tunnels).items():
            client = target = ""
            if isinstance(carrier, Relay):
                far = carrier.far
                client = names.get(far.bottom, "")
                target = self._targets.get(far, "")
            found[number] = _connection(
                number, client, target, carrier.sent, carrier.received, now - carrier.started
            )
        return found


class AgentViews:
    """The views of an agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def views(self) -> dict[str, View]:
        """The views by path."""
        return {
            "/api/status": self._status,
            "/api/metrics/connections": self._show_connections,
        }

    def _status(self, query: Query) -> Json:
        agent = self._agent
        tunnels, outcomes = agent.open_tunnels, agent.targets.outcomes
        failed = outcomes.total() - outcomes[Outcome.SUCCEEDED]
        counts = _counts(
            tunnels.open, agent.counters.tunnels, tunnels.bytes_down, tunnels.bytes_up, failed
        )
        name = agent.options.id
        state = {"last_seen": go_time(), "is_online": bool(agent.open_sessions)}
        return {
            "client_id": name,
            "status": "running",
            "uptime": go_duration(time.time() - agent.counters.started),
            "local_metrics": counts,
            "client_metrics": {"client_id": name} | counts | state,
        }

    def _show_connections(self, query: Query) -> Any:
        now = asyncio.get_running_loop().time()
        found = {
            number: _connection(
                number,
                self._agent.options.id,
                _address(carrier.far) if isinstance(carrier, Relay) else "",
                carrier.received,
                carrier.sent,
                now - carrier.started,
            )
            for number, carrier in _open(self._agent.open_tunnels).items()
        }
        return _one_or_all(found, query, "conn_id")


def _address(target: StreamTransport) -> str:
    peer = target.get_extra_info("peername")
    return host_port(*peer[:2]) if isinstance(peer, tuple) else ""
