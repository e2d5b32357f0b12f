"""Gateways behind one name: an agent keeps sessions with each of its addresses."""

from __future__ import annotations

import socket
from typing import Any

from anyproxy.agent import Agent
from anyproxy.gateway_names import ANY, MAX_ADDRESSES, GatewayNames
from anyproxy.options import GatewayOptions
from mtt.address import Endpoint
from mtt.errors import NetworkError
from mtt.trust.tls_options import ClientTls
from tests.anyproxy.serving import GROUP, agent_options, gateway_for
from tests.support.certs import Certs
from tests.support.tunnels import eventually, port_of

GATEWAY = Endpoint(("gateways.example",), 8443)
V4, V6 = socket.AF_INET, socket.AF_INET6


class Names:
    """A resolver with the answers of the test; `None` fails."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: tuple[str, ...] | None = addresses

    async def resolve(self, host: str, port: int) -> list[Any]:
        if self.addresses is None:
            raise NetworkError(f"cannot resolve {host}: timed out")
        return [(V6 if ":" in each else V4, (each, port)) for each in self.addresses]


def names_with(resolver: Names) -> GatewayNames:
    async def changed() -> None:
        raise AssertionError("nothing follows names here")

    return GatewayNames(resolver, lambda: [GATEWAY], changed)  # type: ignore[arg-type]


async def test_several_addresses_count_as_several_gateways() -> None:
    resolver = Names("192.0.2.2", "192.0.2.1")
    names = names_with(resolver)
    assert names.addresses(GATEWAY) == (ANY,)
    assert await names.look_up()
    assert names.addresses(GATEWAY) == ("192.0.2.1", "192.0.2.2")
    resolver.addresses = ("192.0.2.1", "192.0.2.2")  # in another order
    assert not await names.look_up()
    resolver.addresses = ("192.0.2.1", "192.0.2.2", "192.0.2.3")
    assert await names.look_up()
    assert len(names.addresses(GATEWAY)) == 3


async def test_one_address_is_left_to_the_dialer() -> None:
    names = names_with(Names("192.0.2.1", "2001:db8::1"))  # one gateway with both families
    assert not await names.look_up()
    assert names.addresses(GATEWAY) == (ANY,)


async def test_failed_lookup_keeps_the_known_addresses() -> None:
    resolver = Names("192.0.2.1", "192.0.2.2")
    names = names_with(resolver)
    await names.look_up()
    resolver.addresses = None
    assert not await names.look_up()
    assert len(names.addresses(GATEWAY)) == 2


async def test_number_of_addresses_is_limited() -> None:
    names = names_with(Names(*(f"192.0.2.{number}" for number in range(100))))
    await names.look_up()
    assert len(names.addresses(GATEWAY)) == MAX_ADDRESSES


async def test_agent_joins_each_gateway_behind_a_name(certs: Certs) -> None:
    """Users may come to any of them; the name is verified, not the address."""
    async with gateway_for(certs) as first:
        port = port_of(first)
        bind = Endpoint(("127.0.0.2",), port)
        async with gateway_for(certs, bind=bind) as second:
            gateways = (Endpoint((certs.name,), port),)
            options = agent_options(certs, gateways=gateways, tls=ClientTls(ca=certs.ca))
            agent = Agent(options)
            resolver = Names("127.0.0.1", "127.0.0.2")
            agent.names._resolver = resolver  # type: ignore[assignment]
            await agent.start()
            try:
                await eventually(lambda: all(map(has_agent, (first, second))))
                await eventually(lambda: len(agent.open_sessions) == 2)
                resolver.addresses = ("127.0.0.2", "127.0.0.3")
                assert await agent.names.look_up()
                await agent.relink()
                await eventually(lambda: not has_agent(first))
                assert has_agent(second)
            finally:
                await agent.close()


async def test_two_addresses_of_one_gateway_are_two_sessions(certs: Certs) -> None:
    bind = Endpoint(("127.0.0.1", "127.0.0.2"), 0)
    async with gateway_for(certs, bind=bind) as gateway:
        gateways = (Endpoint((certs.name,), port_of(gateway)),)
        agent = Agent(agent_options(certs, gateways=gateways, tls=ClientTls(ca=certs.ca)))
        agent.names._resolver = Names("127.0.0.1", "127.0.0.2")  # type: ignore[assignment]
        await agent.start()
        try:
            await eventually(lambda: len(agent.open_sessions) == 2)
            assert agents_of(gateway) == ["agent-r0", "agent-r1"]
        finally:
            await agent.close()


def agents_of(gateway: Any) -> list[str]:
    group = gateway.groups.get(GROUP)
    return sorted(group.agents) if group is not None else []


def has_agent(gateway: Any) -> bool:
    assert isinstance(gateway.options, GatewayOptions)
    return gateway.groups.get(GROUP) is not None
