"""anytls-client behind an HTTP proxy."""

from __future__ import annotations

import asyncio

from anytls.client_command import COMMAND
from anytls.options import client_options
from tests.anytls.proxying import check_echo, client_for
from tests.anytls.serving import server_for
from tests.proxy.direct import direct_proxy
from tests.support.certs import Certs
from tests.support.tunnels import SOON, echo, logged, port_of, serving


async def test_sessions_go_through_the_proxy(certs: Certs) -> None:
    with logged() as lines:
        async with (
            asyncio.timeout(SOON),
            serving(echo) as there,
            server_for(certs) as server,
            direct_proxy() as proxy,
            client_for(
                certs, port_of(server), proxy=f"http://127.0.0.1:{port_of(proxy)}"
            ) as client,
        ):
            client.announce()
            await check_echo(client, there.port)
            assert proxy.asked == [("127.0.0.1", port_of(server))]
    assert any(f" through the proxy 127.0.0.1:{port_of(proxy)}" in line for line in lines)


def test_proxy_of_the_environment_is_chosen_for_each_server() -> None:
    given = {"p": "password", "proxy": "env"}
    environ = {"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": ".intern"}
    assert COMMAND.complete is not None
    values = COMMAND.complete(given, environ)
    (outside,) = client_options(values | {"s": "vpn.example.com:443"}).servers
    (inside,) = client_options(values | {"s": "vpn.intern:443"}).servers
    assert str(outside.proxy) == "proxy:3128"
    assert inside.proxy is None
