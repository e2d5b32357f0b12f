"""An agent gets another configuration while it runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from anyproxy.agent import Agent
from anyproxy.agent_reload import apply
from anyproxy.gateway import Gateway
from anyproxy.options import GroupOptions, OpenPort
from mtt.address import Endpoint
from mtt.errors import UsageError
from mtt.proxy.host_rules import HostRules, parse_patterns
from mtt.trust.tls_options import ClientTls
from mtt.users.user import User
from tests.anyproxy.serving import GROUP, PASSWORD, agent_for, both, gateway_for, http_port, known
from tests.anyproxy.users import status, tunnel_request, user_of
from tests.support.certs import Certs
from tests.support.tunnels import echo, eventually, port_of, serving


async def changes(agent: Agent, **fields: Any) -> list[str]:
    """Change fields of the options; returns what was done."""
    found = await apply(agent, replace(agent.options, **fields))
    assert not found.refused
    return found.done


def forbidding(*patterns: str) -> HostRules:
    return HostRules((), parse_patterns("forbidden_hosts", patterns, allow=False))


def endpoint(gateway: Gateway) -> Endpoint:
    return Endpoint(("127.0.0.1",), port_of(gateway))


def agents(gateway: Gateway, group: str = GROUP) -> set[str]:
    """Names of the agents that take new streams."""
    found = gateway.groups.get(group)
    return set(found.agents) if found is not None else set()


def sessions(gateway: Gateway) -> int:
    """Number of sessions, those that are leaving included."""
    return sum(len(group.agents) + len(group.leaving) for group in gateway.groups)


@contextlib.asynccontextmanager
async def two_gateways(certs: Certs) -> AsyncIterator[tuple[Gateway, Gateway]]:
    async with gateway_for(certs) as first, gateway_for(certs) as second:
        yield first, second


# Targets.


async def test_the_same_options_change_nothing(certs: Certs) -> None:
    async with both(certs) as (_, agent):
        assert await changes(agent) == []
        assert await changes(agent, rules=HostRules()) == []


async def test_rules_hold_for_new_connections(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        both(certs) as (gateway, agent),
        user_of(gateway, target.port) as user,
    ):
        assert await changes(agent, rules=forbidding("127.0.0.0/8")) == ["rules"]
        assert await status(http_port(gateway), tunnel_request(target.port)) == 403
        await user.check_echo()
        assert await changes(agent, rules=HostRules(), protocols=frozenset(["udp"])) == ["rules"]
        assert await status(http_port(gateway), tunnel_request(target.port)) == 403
        await user.check_echo()


async def test_open_ports_are_announced_again(certs: Certs) -> None:
    def port(target: int) -> OpenPort:
        return OpenPort(remote_port=0, local_host="127.0.0.1", local_port=target)

    async with both(certs) as (gateway, agent):
        assert await changes(agent, open_ports=(port(1), port(2))) == ["open ports"]
        await eventually(lambda: len(list(gateway.ports)) == 2)
        assert await changes(agent, open_ports=(port(2),)) == ["open ports"]
        await eventually(lambda: len(list(gateway.ports)) == 1)
        assert await changes(agent, open_ports=()) == ["open ports"]
        await eventually(lambda: not list(gateway.ports))


# Gateways.


async def test_gateways_come_and_go(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        two_gateways(certs) as (first, second),
        agent_for(certs, first) as agent,
        user_of(first, target.port) as user,
    ):
        done = await changes(agent, gateways=(endpoint(first), endpoint(second)))
        assert done == ["1 gateway added"]
        await eventually(lambda: known(second, agent))
        assert await changes(agent, gateways=(endpoint(second),)) == ["1 gateway removed"]
        await eventually(lambda: not agents(first))
        await user.check_echo()
        user.close()
        await eventually(lambda: not sessions(first))
        assert len(agent.links) == 1
        async with user_of(second, target.port):
            pass


async def test_replicas_come_and_go(certs: Certs) -> None:
    async with serving(echo) as target, both(certs) as (gateway, agent):
        assert await changes(agent, replicas=3) == ["replicas"]
        await eventually(lambda: len(agents(gateway)) == 3)
        assert await changes(agent, replicas=1) == ["replicas"]
        await eventually(lambda: sessions(gateway) == 1)
        async with user_of(gateway, target.port):
            pass


async def test_changes_at_the_same_time_end_in_the_last_one(certs: Certs) -> None:
    async with both(certs) as (gateway, agent):
        await asyncio.gather(
            changes(agent, replicas=4),
            agent.relink(renew=True),
            changes(agent, replicas=2),
            agent.relink(),
        )
        assert len(agent.links) == agent.options.replicas
        await eventually(lambda: len(agents(gateway)) == sessions(gateway) == len(agent.links))


async def test_another_name_replaces_the_session(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        both(certs) as (gateway, agent),
        user_of(gateway, target.port) as user,
    ):
        before = agents(gateway)
        assert await changes(agent, id="another") == ["names"]
        await eventually(lambda: agents(gateway) and not agents(gateway) & before)
        await user.check_echo()
        assert sessions(gateway) == 2
        user.close()
        await eventually(lambda: sessions(gateway) == 1)


async def test_another_group_gets_the_agent(certs: Certs) -> None:
    async with serving(echo) as target, both(certs) as (gateway, agent):
        assert await changes(agent, group="work", password="theirs") == ["names", "passwords"]
        await eventually(lambda: agents(gateway, "work") and not agents(gateway))
        async with user_of(gateway, target.port, "theirs", "work"):
            pass


async def test_a_refused_password_keeps_the_session(certs: Certs) -> None:
    groups = {GROUP: GroupOptions(password=PASSWORD)}
    async with serving(echo) as target, both(certs, groups=groups) as (gateway, agent):
        assert await changes(agent, password="too early") == ["passwords"]
        async with user_of(gateway, target.port):
            pass
        assert await changes(agent, password="also too early") == ["passwords"]
        assert len(agent.open_sessions) == 1
        assert await changes(agent, password=PASSWORD) == ["passwords"]
        await eventually(lambda: len(agents(gateway)) == 1 == sessions(gateway))
        async with user_of(gateway, target.port):
            pass


async def test_another_login_of_the_gateway_is_shown(certs: Certs) -> None:
    async with both(certs) as (gateway, agent):
        (before,) = agent.open_sessions
        assert await changes(agent, login=User("agents", "secret")) == ["passwords"]
        await eventually(lambda: before.lost and known(gateway, agent))


async def test_broken_certificates_change_nothing(certs: Certs, tmp_path: Any) -> None:
    (tmp_path / "ca.pem").write_text("junk")
    async with both(certs) as (_, agent):
        before, (session,) = agent.options, agent.open_sessions
        with pytest.raises(UsageError):
            await changes(agent, tls=ClientTls(ca=str(tmp_path / "ca.pem")), rules=forbidding("x"))
        assert agent.options is before
        assert not session.lost


async def test_other_certificates_replace_the_session(certs: Certs) -> None:
    async with both(certs) as (gateway, agent):
        (before,), old = agent.open_sessions, agent.certificates
        tls = ClientTls(ca=certs.ca, server_name=certs.name, tls_min="1.3")
        assert await changes(agent, tls=tls) == ["TLS and proxy of gateways"]
        await eventually(lambda: before.lost and known(gateway, agent))
        assert not set(agent.certificates) & set(old)
