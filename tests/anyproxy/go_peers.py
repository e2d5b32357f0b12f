"""Our programs with peers that behave as the Go programs, and a target for datagrams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from anyproxy.agent import Agent
from anyproxy.gateway import Gateway
from tests.anyproxy.serving import GROUP, PASSWORD, agent_options, gateway_for
from tests.support.anyproxypeer import GoAgent, GoGateway, go_agent, go_gateway
from tests.support.certs import Certs
from tests.support.tunnels import eventually, port_of


@contextlib.asynccontextmanager
async def joined_agent(certs: Certs, **changes: Any) -> AsyncIterator[tuple[Gateway, GoAgent]]:
    """A gateway, and a Go agent that has joined."""
    async with gateway_for(certs, **changes) as gateway:
        agent = await go_agent(
            port_of(gateway), certs, X_Group_Id=GROUP, X_Group_Password=PASSWORD
        )
        try:
            await eventually(lambda: gateway.groups.get(GROUP))
            yield gateway, agent
        finally:
            await agent.close()


@contextlib.asynccontextmanager
async def joined_gateway(certs: Certs, **changes: Any) -> AsyncIterator[tuple[GoGateway, Agent]]:
    """A Go gateway, and an agent of ours that has joined."""
    sessions: list[GoGateway] = []
    async with go_gateway(certs, sessions.append) as port:
        agent = Agent(agent_options(certs, port, **changes))
        await agent.start()
        try:
            await eventually(lambda: sessions and agent.open_sessions)
            yield sessions[0], agent
        finally:
            await agent.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.append(data)
        self.transport.sendto(b"re: " + data, addr)


@contextlib.asynccontextmanager
async def udp_target() -> AsyncIterator[tuple[int, _Datagrams]]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(
        _Datagrams, local_addr=("127.0.0.1", 0)
    )
    try:
        yield transport.get_extra_info("sockname")[1], protocol
    finally:
        transport.close()
        await asyncio.sleep(0)
