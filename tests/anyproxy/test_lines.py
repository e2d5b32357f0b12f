"""A gateway and an agent with a line between them that is narrow, or fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from anyproxy import link
from anyproxy.agent import Agent
from mtt.outbound import agent as outbound_agent
from tests.anyproxy.serving import agent_options, gateway_for, http_port, known
from tests.anyproxy.test_gateway import basic
from tests.anyproxy.users import status, tunnel_request
from tests.proxy.clients import CONNECTED, http_connect
from tests.support.certs import Certs
from tests.support.faults import FaultProxy, Line
from tests.support.tunnels import Tcp, connect, echo, eventually, port_of, serving, settled

# Its buffers delay every message by more than a second while it is full.
NARROW = Line(rate=200_000, delay=0.02)


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A gateway that asks for signs of life sooner than the line can carry them."""
    monkeypatch.setattr(outbound_agent, "QUESTION_TIME", 0.2)
    monkeypatch.setattr(outbound_agent, "SIGN_TIME", 1.0)
    yield


@pytest.mark.parametrize("direction", ["down", "up"])
async def test_agent_behind_a_full_line_serves_another_user(
    certs: Certs, impatience: None, direction: str
) -> None:
    async def bulk(connection: Tcp) -> None:
        if direction == "down":
            await connection.send(bytes(10_000_000))
        else:
            await connection.rest()

    async def transfer(user: Tcp) -> None:
        if direction == "down":
            await user.rest()
        else:
            await user.send(bytes(10_000_000))

    async with (
        serving(bulk) as wide,
        serving(echo) as target,
        gateway_for(certs) as gateway,
        FaultProxy(port_of(gateway), line=NARROW) as line,
    ):
        agent = Agent(agent_options(certs, line.port))
        await agent.start()
        await eventually(lambda: known(gateway, agent))
        async with await connect(http_port(gateway)) as first:
            await first.send(http_connect(wide.port, "127.0.0.1", basic())[0])
            assert await first.exactly(len(CONNECTED)) == CONNECTED
            transferring = asyncio.create_task(transfer(first))
            async with await connect(http_port(gateway)) as user:
                await user.send(http_connect(target.port, "127.0.0.1", basic())[0])
                assert await user.exactly(len(CONNECTED)) == CONNECTED
                await user.check_echo()
            assert not transferring.done()
            transferring.cancel()
            await asyncio.wait([transferring])
        await agent.close()


async def test_agent_is_back_soon_after_an_outage(
    certs: Certs, impatience: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gateway has cut the session meanwhile, and the agent could not hear of it."""
    monkeypatch.setattr(link, "QUIET_TIME", 0.5)
    monkeypatch.setattr(link, "LOOK_INTERVAL", 0.1)
    async with (
        serving(echo) as target,
        gateway_for(certs) as gateway,
        FaultProxy(port_of(gateway)) as line,
    ):
        agent = Agent(agent_options(certs, line.port))
        for each in agent.links:
            each.wait_times = 0.01, 0.01
        await agent.start()
        await eventually(lambda: known(gateway, agent))
        assert await status(http_port(gateway), tunnel_request(target.port)) == 200
        await settled()  # nothing is on its way, which the kernel would send again
        await line.vanish()
        assert await status(http_port(gateway), tunnel_request(target.port)) == 503
        assert not known(gateway, agent)
        line.come_back()
        await eventually(lambda: known(gateway, agent))
        assert await status(http_port(gateway), tunnel_request(target.port)) == 200
        await agent.close()
