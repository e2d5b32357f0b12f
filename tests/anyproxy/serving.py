"""A gateway and its agents for tests, in one process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from anyproxy.agent import Agent
from anyproxy.gateway import Gateway
from anyproxy.options import AgentOptions, GatewayOptions, ProxyOptions
from mtt.address import Endpoint
from mtt.trust.tls_options import ClientTls, ServerTls
from tests.support.certs import Certs
from tests.support.tunnels import eventually, port_of

ANY = Endpoint(("127.0.0.1",), 0)
GROUP, PASSWORD = "home", "a group's password"


def gateway_options(certs: Certs, **changes: Any) -> GatewayOptions:
    """Options of a gateway with both proxies, behind TLS."""
    tls = ServerTls(cert=certs.cert, key=certs.key, alpn=("http/1.1",))
    options = GatewayOptions(
        bind=ANY, tls=tls, http=ProxyOptions(bind=ANY), socks5=ProxyOptions(bind=ANY)
    )
    return replace(options, **changes)


def agent_options(certs: Certs, *ports: int, **changes: Any) -> AgentOptions:
    """Options of an agent of gateways on these ports."""
    options = AgentOptions(
        bind=None,
        id="agent",
        group=GROUP,
        password=PASSWORD,
        gateways=tuple(Endpoint(("127.0.0.1",), port) for port in ports),
        tls=ClientTls(ca=certs.ca, server_name=certs.name),
    )
    return replace(options, **changes)


@contextlib.asynccontextmanager
async def gateway_for(certs: Certs, **changes: Any) -> AsyncIterator[Gateway]:
    gateway = Gateway(gateway_options(certs, **changes))
    await gateway.start()
    try:
        yield gateway
    finally:
        await gateway.close()


@contextlib.asynccontextmanager
async def agent_for(certs: Certs, *gateways: Gateway, **changes: Any) -> AsyncIterator[Agent]:
    """An agent that has joined."""
    agent = Agent(agent_options(certs, *map(port_of, gateways), **changes))
    await agent.start()
    try:
        expected = len(gateways) * agent.options.replicas
        await eventually(lambda: len(agent.open_sessions) == expected)
        await eventually(lambda: all(known(gateway, agent) for gateway in gateways))
        yield agent
    finally:
        await agent.close()


@contextlib.asynccontextmanager
async def both(certs: Certs, **changes: Any) -> AsyncIterator[tuple[Gateway, Agent]]:
    """A gateway and one agent of it; `changes` are those of the gateway."""
    async with gateway_for(certs, **changes) as gateway, agent_for(certs, gateway) as agent:
        yield gateway, agent


def known(gateway: Gateway, agent: Agent) -> bool:
    """Whether all sessions of the agent are in their group."""
    group = gateway.groups.get(agent.options.group)
    if group is None:
        return False
    names = {f"{agent.options.id}-r{number}" for number in range(agent.options.replicas)}
    return names <= set(group.agents)


def http_port(gateway: Gateway) -> int:
    """The port of the HTTP proxy."""
    return _port(gateway, "HTTP")


def socks_port(gateway: Gateway) -> int:
    """The port of the SOCKS5 proxy."""
    return _port(gateway, "SOCKS5")


def _port(gateway: Gateway, name: str) -> int:
    (proxy,) = (proxy for proxy in gateway.proxies if proxy.name == name)
    return int(proxy.addresses[0].rpartition(":")[2])
