"""What the JSON interface shows of several agents, and of several sessions of one."""

from __future__ import annotations

from tests.anyproxy.serving import agent_for
from tests.anyproxy.test_web import ask, pages
from tests.anyproxy.users import user_of
from tests.support.certs import Certs
from tests.support.tunnels import echo, eventually, serving


async def test_agents_with_the_same_address_have_their_own_connections(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        pages(certs) as (gateway, agent),
        agent_for(certs, gateway, id="other"),
    ):
        group = gateway.groups.get(agent.options.group)
        assert group is not None
        for each in group.agents.values():
            each.address = "192.0.2.1"  # behind one proxy that names it
        async with user_of(gateway, target.port), user_of(gateway, target.port):
            found = (await ask(gateway, "/api/metrics/clients")).json
            assert {name: each["active_connections"] for name, each in found.items()} == {
                "agent-r0": 1, "other-r0": 1,
            }  # fmt: skip


async def test_agents_of_two_groups_with_the_same_id_are_both_shown(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        pages(certs) as (gateway, _),
        agent_for(certs, gateway, group="other"),
        agent_for(certs, gateway, group="other", id="third"),
        user_of(gateway, target.port),
    ):
        found = (await ask(gateway, "/api/metrics/clients")).json
        assert {name: each["active_connections"] for name, each in found.items()} == {
            "home/agent-r0": 1, "other/agent-r0": 0, "third-r0": 0,
        }  # fmt: skip
        one = await ask(gateway, "/api/metrics/clients?client_id=other/agent-r0")
        assert one.json["client_id"] == "other/agent-r0"


async def test_agent_is_online_although_its_former_session_has_users(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        pages(certs) as (gateway, agent),
        user_of(gateway, target.port),
        agent_for(certs, gateway),  # the same id
        user_of(gateway, target.port),
    ):
        group = gateway.groups.get(agent.options.group)
        assert group is not None
        await eventually(lambda: len(group.leaving) == 1)
        (client,) = (await ask(gateway, "/api/metrics/clients")).json.values()
        assert client["is_online"] is True
        assert client["active_connections"] == client["total_connections"] == 2
