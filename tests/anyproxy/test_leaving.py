"""Agents and gateways that stop: what they tell the other side, and what they wait for."""

from __future__ import annotations

import asyncio

from anyproxy.agent import Agent
from tests.anyproxy.serving import GROUP, agent_for, agent_options, gateway_for
from tests.support.certs import Certs
from tests.support.tunnels import SOON, eventually, listening, logged, maybe_reset


async def test_agent_that_leaves_does_not_wait_for_idle_sessions(certs: Certs) -> None:
    async with (
        gateway_for(certs) as gateway,
        gateway_for(certs) as other,
        agent_for(certs, gateway, other, replicas=2) as agent,
    ):
        with logged() as lines:
            async with asyncio.timeout(SOON):
                await agent.drain()
            await eventually(lambda: gateway.groups.get(GROUP) is None)
            await eventually(lambda: other.groups.get(GROUP) is None)
        assert sum("is leaving" in line for line in lines) == 4


async def test_stopped_gateway_does_not_wait_for_idle_agents(certs: Certs) -> None:
    async with gateway_for(certs) as gateway, agent_for(certs, gateway, replicas=3):
        async with asyncio.timeout(SOON):
            gateway.cleanup()
            await gateway.drain()


async def test_agent_that_stops_while_it_connects_closes_the_connection(certs: Certs) -> None:
    async with listening() as there:
        agent = Agent(agent_options(certs, there.port, tls=None))
        await agent.start()
        gateway = await there.accept()
        assert (await gateway.until(b"\r\n\r\n")).startswith(b"GET /ws ")
        await agent.close()
        with maybe_reset():
            assert await gateway.rest() == b""
