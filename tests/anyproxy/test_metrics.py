"""The metrics of gateways and agents."""

from __future__ import annotations

from typing import Any

import pytest

from anyproxy import figures
from anyproxy.figures import GatewayFigures
from anyproxy.options import GroupOptions
from mtt.outbound.groups import Group
from mtt.outcome import Outcome
from mtt.proxy.host_rules import HostRules, parse_patterns
from mtt.tunnels.service import Service
from mtt.users.user import User
from tests.anyproxy.serving import GROUP, PASSWORD, agent_for, both, gateway_for, http_port
from tests.anyproxy.upgrades import plain_gateway, upgrade, verdict
from tests.anyproxy.users import status, tunnel_request, user_of
from tests.support.certs import Certs
from tests.support.metrics import parse
from tests.support.tunnels import connect, echo, eventually, port_of, serving


def values(service: Service, *names: str) -> list[float]:
    page = parse(service.metrics_page())
    return [page[name] for name in names]


def dials(service: Service, name: str = "mtt_agent_dials_total") -> dict[str, float]:
    """The outcomes that there were."""
    start = name + '{outcome="'
    page = parse(service.metrics_page())
    return {
        key.removeprefix(start)[:-2]: value
        for key, value in page.items()
        if key.startswith(start) and value
    }


async def test_agents_and_groups_are_counted(certs: Certs) -> None:
    names = 'mtt_agents{state="serving"}', 'mtt_agents{state="leaving"}', "mtt_groups"
    async with gateway_for(certs) as gateway:
        assert values(gateway, *names) == [0, 0, 0]
        async with agent_for(certs, gateway, replicas=2), agent_for(certs, gateway, group="other"):
            assert values(gateway, *names, "mtt_sessions") == [3, 0, 2, 3]
        await eventually(lambda: values(gateway, *names) == [0, 0, 0])


async def test_requests_are_counted_by_outcome(certs: Certs, refused_port: int) -> None:
    async with serving(echo) as target, both(certs) as (gateway, agent):
        async with user_of(gateway, target.port):
            assert values(gateway, "mtt_tunnels", "mtt_streams_opened_total") == [1, 1]
        await status(http_port(gateway), tunnel_request(refused_port))
        await status(http_port(gateway), tunnel_request(target.port, group="nowhere"))
        assert dials(gateway) == {"succeeded": 1, "connection_refused": 1, "no_agent": 1}
        assert dials(agent, "mtt_targets_total") == {"succeeded": 1, "connection_refused": 1}
        # The last one was asked of no agent.
        count, total = values(gateway, "mtt_agent_dial_seconds_count", "mtt_agent_dial_seconds_sum")
        assert count == 2
        assert 0 < total < 10


async def test_refused_logins_are_counted_by_reason(certs: Certs) -> None:
    async with both(certs) as (gateway, _):
        for _ in range(12):
            await status(http_port(gateway), tunnel_request(1, "wrong"))
        assert values(
            gateway,
            'mtt_logins_refused_total{reason="password"}',
            'mtt_logins_refused_total{reason="blocked"}',
        ) == [10, 2]


@pytest.mark.parametrize(
    ("reason", "options", "request_of"),
    [
        ("login", {"login": User("a", "b")}, {}),
        ("password", {"groups": {GROUP: GroupOptions(password="x")}}, {}),
        ("no_password", {}, {"password": ""}),
        ("other", {}, {"group": ""}),
    ],
)
async def test_refused_agents_are_counted_by_reason(
    reason: str, options: dict[str, Any], request_of: dict[str, Any], certs: Certs
) -> None:
    async with plain_gateway(certs, **options) as gateway:
        assert (await verdict(gateway, **request_of))[0] in (401, 403)
        assert values(gateway, f'mtt_agents_refused_total{{reason="{reason}"}}') == [1]


async def test_agents_above_the_limit_are_counted(certs: Certs) -> None:
    groups = {GROUP: GroupOptions(max_agents=1)}
    async with plain_gateway(certs, groups=groups) as gateway, await connect(
        port_of(gateway)
    ) as agent:
        await agent.send(upgrade())
        assert (await agent.until(b"\r\n")).split()[1] == b"101"
        assert (await verdict(gateway, "another"))[0] == 403
        assert values(gateway, 'mtt_agents_refused_total{reason="limit"}') == [1]


async def test_groups_are_counted_one_by_one_if_asked_for(certs: Certs, refused_port: int) -> None:
    async with (
        serving(echo) as target,
        both(certs, metrics_per_group=True) as (gateway, _),
        user_of(gateway, target.port),
    ):
        await status(http_port(gateway), tunnel_request(refused_port))
        names = "agents", "streams_opened_total", "dial_failures_total"
        label = f'{{group="{GROUP}"}}'
        found = values(gateway, *(f"mtt_group_{name}{label}" for name in names))
        assert found == [1, 1, 1]


@pytest.mark.parametrize("rate", [0, 10**6])
async def test_bytes_of_groups_are_counted(rate: int, certs: Certs) -> None:
    groups = {GROUP: GroupOptions(rate=rate)}
    async with (
        serving(echo) as target,
        both(certs, metrics_per_group=True, groups=groups) as (gateway, _),
        user_of(gateway, target.port) as user,
    ):
        names = [
            f'mtt_group_transferred_bytes_total{{group="{GROUP}",direction="{direction}"}}'
            for direction in ("up", "down")
        ]
        before = values(gateway, *names)
        assert before[0] == before[1] > 0  # what `user_of` has checked
        await user.send(b"x" * 1000)
        assert await user.exactly(1000) == b"x" * 1000
        assert values(gateway, *names) == [each + 1000 for each in before]  # of open connections
        await user.finish()
        assert await user.rest() == b""
        assert values(gateway, *names) == [each + 1000 for each in before]


async def test_groups_have_no_lines_of_their_own_by_default(certs: Certs) -> None:
    async with both(certs) as (gateway, _):
        assert "mtt_group_" not in gateway.metrics_page()


def test_groups_above_the_limit_share_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "MAX_SHOWN", 2)
    counts = GatewayFigures(per_group=True)
    for name in "abcd":
        counts.dialled(name, Outcome.SUCCEEDED, 0.1)
    page = parse(counts.lines([Group("e")], {}))
    found = {key: value for key, value in page.items() if "mtt_group_streams_opened" in key}
    name = "mtt_group_streams_opened_total"
    assert found == {
        f'{name}{{group="a"}}': 1, f'{name}{{group="b"}}': 1, f'{name}{{group=""}}': 2,
    }  # fmt: skip


async def test_an_agent_counts_sessions_by_gateway_and_denied_targets(certs: Certs) -> None:
    rules = HostRules((), parse_patterns("forbidden_hosts", ["127.0.0.1"], allow=False))
    async with gateway_for(certs) as gateway, agent_for(certs, gateway, rules=rules) as agent:
        await status(http_port(gateway), tunnel_request(1, PASSWORD))
        label = f'{{gateway="127.0.0.1:{port_of(gateway)}"}}'
        assert values(
            agent, f"mtt_gateway_sessions{label}", "mtt_targets_denied_total", "mtt_sessions"
        ) == [1, 1, 1]
        assert dials(agent, "mtt_targets_total") == {"not_allowed": 1}
        await gateway.close()
        await eventually(lambda: values(agent, f"mtt_gateway_sessions{label}") == [0])
