"""An agent whose way to its gateway leads through an HTTP proxy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anyproxy.agent import Agent
from anyproxy.agent_reload import apply
from mtt.address import Endpoint
from mtt.options.proxy import ProxyServer, from_environment
from mtt.users.user import User
from tests.anyproxy.serving import agent_for, agent_options, gateway_for, socks_port
from tests.anyproxy.test_gateway import LOGIN
from tests.proxy.clients import socks5_login
from tests.proxy.direct import direct_proxy
from tests.support.certs import Certs
from tests.support.tunnels import connect, echo, eventually, logged, port_of, serving

USER = User("user", "hush")


def proxy_on(port: int, password: str = USER.password) -> ProxyServer:
    address = Endpoint(("127.0.0.1",), port)
    return ProxyServer(address, (USER.name, password), "client.gateway.proxy")


@pytest.mark.parametrize("tls", [True, False])
async def test_agent_joins_through_a_proxy(tls: bool, certs: Certs) -> None:
    plain = {} if tls else {"tls": None}
    async with (
        serving(echo) as there,
        gateway_for(certs, **plain) as gateway,
        direct_proxy(users=(USER,)) as proxy,
        agent_for(certs, gateway, proxy=proxy_on(port_of(proxy)), **plain),
        await connect(socks_port(gateway)) as user,
    ):
        assert proxy.asked == [("127.0.0.1", port_of(gateway))]
        said, answer = socks5_login(there.port, LOGIN)
        await user.send(said)
        assert await user.exactly(len(answer)) == answer
        await user.check_echo(b"hello")


async def test_proxy_looks_up_the_name_of_the_gateway(certs: Certs) -> None:
    async with gateway_for(certs) as gateway, direct_proxy(users=(USER,)) as proxy:
        named = Endpoint(("echo.test",), port_of(gateway))  # only the proxy knows this name
        way = proxy_on(port_of(proxy))
        async with agent_for(certs, gateway, gateways=(named,), proxy=way, replicas=2):
            assert proxy.asked == [("echo.test", port_of(gateway))] * 2


async def test_proxy_of_the_environment(certs: Certs) -> None:
    async with gateway_for(certs) as gateway, direct_proxy() as proxy:
        named = Endpoint(("echo.test",), port_of(gateway))  # only the proxy knows this name
        environ = {"HTTPS_PROXY": f"socks5://127.0.0.1:{port_of(proxy)}"}
        way = from_environment(environ)
        async with agent_for(certs, gateway, gateways=(named,), proxy=way):
            assert proxy.asked == [("echo.test", port_of(gateway))]
        # This machine is never asked for through a proxy of the environment.
        async with agent_for(certs, gateway, proxy=way):
            assert len(proxy.asked) == 1


async def test_refused_agent_logs_no_password(certs: Certs) -> None:
    with logged() as lines:
        async with gateway_for(certs) as gateway, direct_proxy(users=(USER,)) as proxy:
            options = agent_options(
                certs, port_of(gateway), proxy=proxy_on(port_of(proxy), "hush-hush")
            )
            agent = Agent(options)
            await agent.start()
            try:
                agent.announce()
                await eventually(lambda: any(" (407)" in line for line in lines))
            finally:
                await agent.close()
    text = "\n".join(lines)
    assert f", through the proxy 127.0.0.1:{port_of(proxy)}" in text
    assert "does not accept the user and the password of client.gateway.proxy (407)" in text
    assert "hush" not in text


async def test_proxy_changes_while_the_agent_runs(certs: Certs) -> None:
    async with (
        gateway_for(certs) as gateway,
        direct_proxy(users=(USER,)) as proxy,
        agent_for(certs, gateway) as agent,
    ):
        way = proxy_on(port_of(proxy))
        changes = await apply(agent, replace(agent.options, proxy=way))
        assert changes.done == ["TLS and proxy of gateways"]
        await eventually(lambda: proxy.asked == [("127.0.0.1", port_of(gateway))])
        await eventually(lambda: len(agent.open_sessions) == 1)
        await apply(agent, replace(agent.options, proxy=None))
        await eventually(lambda: not proxy.tunnels)
        assert len(proxy.asked) == 1
