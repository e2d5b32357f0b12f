"""What the JSON interface shows of several agents."""

from __future__ import annotations

from tests.anyproxy.serving import agent_for
from tests.anyproxy.test_web import ask, pages
from tests.anyproxy.users import user_of
from tests.support.certs import Certs
from tests.support.tunnels import echo, serving


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
