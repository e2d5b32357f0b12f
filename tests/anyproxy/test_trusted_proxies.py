"""A gateway behind proxies: logins count by the addresses of agents and users."""

from __future__ import annotations

import pytest

from anyproxy.gateway import Gateway
from mtt.options.trusted_proxies import parse_trusted_proxies
from mtt.users.login_throttle import MAX_FAILURES
from mtt.users.user import User
from mtt.wire.proxy_protocol import V1, V2, encode
from tests.anyproxy.configs import error_of_gateway, gateway_of
from tests.anyproxy.serving import GROUP, PASSWORD, agent_for, gateway_for, socks_port
from tests.anyproxy.test_web import ADMIN, WITH_LOGIN, log_in, pages
from tests.anyproxy.upgrades import LOGIN, answered, plain_gateway, upgrade
from tests.proxy.clients import socks5_login
from tests.support.certs import Certs
from tests.support.tunnels import connect, echo, logged, port_of, serving

HERE = parse_trusted_proxies("", "127.0.0.1")
ELSEWHERE = parse_trusted_proxies("", "192.0.2.1")
OWN = ("198.51.100.1", 443)


def header(user: str, version: str = V2) -> bytes:
    return encode(version, (user, 4711), OWN)


async def agent_says(gateway: Gateway, request: bytes, before: bytes = b"") -> int:
    async with await connect(port_of(gateway)) as peer:
        await peer.send(before + request)
        return (await answered(peer))[0]


def named(user: str, login: User) -> bytes:
    """A request that nginx passes on from `user`."""
    return upgrade("agent", GROUP, PASSWORD, f"X-Forwarded-For: {user}", login=login)


@pytest.mark.parametrize("way", ["header", "request"])
async def test_wrong_logins_of_an_agent_block_its_address_alone(way: str, certs: Certs) -> None:
    def says(user: str, login: User) -> tuple[bytes, bytes]:
        if way == "header":
            return upgrade("agent", GROUP, PASSWORD, login=login), header(user)
        return named(user, login), b""

    async with plain_gateway(certs, login=LOGIN, trusted_proxies=HERE) as gateway:
        with logged() as lines:
            for _ in range(MAX_FAILURES):
                wrong = says("203.0.113.7", User("gate", "wrong"))
                assert await agent_says(gateway, *wrong) == 401
            assert await agent_says(gateway, *says("203.0.113.7", LOGIN)) == 403
            assert await agent_says(gateway, *says("203.0.113.8", LOGIN)) == 101
        throttle = gateway.credentials.throttle
        assert throttle.blocks("203.0.113.7") and not throttle.blocks("127.0.0.1")
        port = ":4711" if way == "header" else ""
        assert any(f"203.0.113.7{port}: agent 'agent' refused" in line for line in lines)
        assert any(f"joined group '{GROUP}' from 203.0.113.8{port}" in line for line in lines)


async def test_others_cannot_name_an_agents_address(certs: Certs) -> None:
    async with plain_gateway(certs, login=LOGIN, trusted_proxies=ELSEWHERE) as gateway:
        for number in range(MAX_FAILURES):
            wrong = named(f"203.0.113.{number}", User("gate", "wrong"))
            assert await agent_says(gateway, wrong) == 401
        assert gateway.credentials.throttle.blocks("127.0.0.1")


async def test_one_connection_carries_requests_of_several_agents(certs: Certs) -> None:
    async with (
        plain_gateway(certs, login=LOGIN, trusted_proxies=HERE) as gateway,
        await connect(port_of(gateway)) as proxy,
    ):
        for number in range(MAX_FAILURES):
            await proxy.send(named(f"203.0.113.{number}", User("gate", "wrong")))
            assert (await answered(proxy))[0] == 401
        await proxy.send(named("203.0.113.1", LOGIN))
        assert (await answered(proxy))[0] == 101


@pytest.mark.parametrize("version", [V1, V2])
async def test_wrong_logins_of_a_user_block_its_address_alone(version: str, certs: Certs) -> None:
    async with (
        serving(echo) as target,
        gateway_for(certs, trusted_proxies=HERE) as gateway,
        agent_for(certs, gateway),  # without a header, as directly
    ):
        async def status(user: str, password: str) -> bytes:
            async with await connect(socks_port(gateway)) as proxy:
                said, _ = socks5_login(target.port, User(GROUP, password))
                await proxy.send(header(user, version) + said)
                return await proxy.exactly(4)

        for _ in range(MAX_FAILURES):
            assert await status("203.0.113.7", "wrong") == b"\5\2\1\1"
        assert await status("203.0.113.7", PASSWORD) == b"\5\2\1\1"
        assert await status("203.0.113.8", PASSWORD) == b"\5\2\1\0"


async def test_users_without_a_header_are_served(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        gateway_for(certs, trusted_proxies=HERE) as gateway,
        agent_for(certs, gateway),
        await connect(socks_port(gateway)) as user,
    ):
        said, heard = socks5_login(target.port, User(GROUP, PASSWORD))
        await user.send(said)
        assert await user.exactly(len(heard)) == heard
        await user.check_echo()


async def test_wrong_logins_of_pages_block_their_address_alone(certs: Certs) -> None:
    async with pages(certs, WITH_LOGIN) as (gateway, _):
        assert gateway.web is not None
        gateway.web.proxies = HERE

        async def status(user: str, password: str) -> int:
            header = f"X-Forwarded-For: {user}"
            return (await log_in(gateway, ADMIN.name, password, header)).status

        for _ in range(MAX_FAILURES):
            assert await status("203.0.113.7", "wrong") == 401
        assert await status("203.0.113.7", ADMIN.password) == 403
        assert await status("203.0.113.8", ADMIN.password) == 200


def test_key_of_the_file() -> None:
    tree = {"gateway": {"listen_addr": "127.0.0.1:0", "proxy": {}}}
    assert gateway_of(tree).trusted_proxies is None
    tree["gateway"]["trusted_proxies"] = ["127.0.0.1", "10.0.0.0/8"]  # type: ignore[assignment]
    assert gateway_of(tree).trusted_proxies == parse_trusted_proxies("", "127.0.0.1,10.0.0.0/8")
    tree["gateway"]["trusted_proxies"] = ["proxy"]  # type: ignore[assignment]
    assert error_of_gateway(tree).startswith("gateway.trusted_proxies: 'proxy' is not a range")
