"""Logins of users at the proxies: groups without agents, proxies with a login, guesses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from anyproxy.options import ProxyOptions
from mtt.users.login_throttle import MAX_FAILURES
from mtt.users.user import User
from tests.anyproxy.serving import (
    ANY,
    GROUP,
    PASSWORD,
    agent_for,
    both,
    gateway_for,
    http_port,
    socks_port,
)
from tests.anyproxy.test_gateway import basic, status_of
from tests.proxy.clients import http_connect, reply5, socks5_login
from tests.support.certs import Certs
from tests.support.tunnels import connect, echo, serving

OWN = User("ada", "pw")


# Groups without agents.


@pytest.mark.parametrize("password", [PASSWORD, "wrong"])
async def test_user_who_came_before_the_agent_does_not_get_through(
    certs: Certs, password: str
) -> None:
    said, _ = socks5_login(0, User(GROUP, password))
    async with serving(echo) as target, gateway_for(certs) as gateway:
        request = said[-10:-2] + target.port.to_bytes(2, "big")
        async with await connect(socks_port(gateway)) as user:
            await user.send(said[:-10])
            assert await user.exactly(4) == b"\5\2\1\0"  # the password cannot be checked
            async with agent_for(certs, gateway):
                await user.send(request)
                assert await user.rest() == reply5(1)


async def test_password_counts_for_each_request_of_a_connection(certs: Certs) -> None:
    async with serving(echo) as target, gateway_for(certs) as gateway:
        url = f"http://127.0.0.1:{target.port}/"
        request = f"GET {url} HTTP/1.1\r\nHost: x\r\n{basic(password='wrong')}\r\n\r\n".encode()
        async with await connect(http_port(gateway)) as user:
            await user.send(request)
            head = await user.until(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            async with agent_for(certs, gateway):
                await user.exactly(len(b"no agent is connected\n"))
                await user.send(request)
                rest = await user.rest()
                assert rest == b"" or rest.startswith(b"HTTP/1.1 407 ")


async def test_password_is_not_checked_for_a_group_without_agents(certs: Certs) -> None:
    async with gateway_for(certs) as gateway:
        for number in range(2 * MAX_FAILURES):
            said = http_connect(1, "127.0.0.1", basic(password=str(number)))[0]
            assert b" 503 " in await status_of(http_port(gateway), said)


@pytest.mark.parametrize("name", [b"\xff", b"a\xc3", b""])
async def test_group_that_no_agent_can_have_is_a_wrong_login(certs: Certs, name: bytes) -> None:
    async with gateway_for(certs) as gateway:
        said = b"\5\1\2\1%c%b\1x" % (len(name), name)
        for _ in range(MAX_FAILURES):
            async with await connect(socks_port(gateway)) as user:
                await user.send(said)
                assert await user.rest() == b"\5\2\1\1"
        assert gateway.credentials.throttle.blocks("127.0.0.1")


# Guesses.


@pytest.mark.parametrize("group_login", [False, True])
@pytest.mark.parametrize("user", ["ada", "someone"])
async def test_login_of_a_proxy_cannot_be_guessed_without_end(
    certs: Certs, group_login: bool, user: str
) -> None:
    proxy = ProxyOptions(bind=ANY, login=OWN, group=GROUP, group_login=group_login)
    async with serving(echo) as target, both(certs, http=proxy) as (gateway, _):
        port = http_port(gateway)
        for number in range(MAX_FAILURES):
            said = http_connect(target.port, "127.0.0.1", basic(user, str(number)))[0]
            # With group logins, "someone" may be a group without agents.
            expected = b" 503 " if group_login and user == "someone" else b" 407 "
            assert expected in await status_of(port, said)
        right = http_connect(target.port, "127.0.0.1", basic("ada", "pw"))[0]
        expected = b" 200 " if group_login and user == "someone" else b" 407 "
        assert expected in await status_of(port, right)


async def test_group_with_the_name_of_a_login_works_while_it_has_agents(certs: Certs) -> None:
    proxy = ProxyOptions(bind=ANY, login=replace(OWN, name=GROUP), group="elsewhere")
    async with serving(echo) as target, both(certs, http=proxy) as (gateway, _):
        for password, status in ((PASSWORD, b" 200 "), ("pw", b" 503 "), ("wrong", b" 407 ")):
            said = http_connect(target.port, "127.0.0.1", basic(password=password))[0]
            assert status in await status_of(http_port(gateway), said)


async def test_guesses_at_all_proxies_count_together(certs: Certs) -> None:
    async with serving(echo) as target, both(certs) as (gateway, _):
        wrong = http_connect(target.port, "127.0.0.1", basic(password="wrong"))[0]
        for _ in range(MAX_FAILURES // 2):
            assert b" 407 " in await status_of(http_port(gateway), wrong)
            async with await connect(socks_port(gateway)) as user:
                await user.send(socks5_login(target.port, User(GROUP, "wrong"))[0])
                assert (await user.rest())[:4] == b"\5\2\1\1"
        right = http_connect(target.port, "127.0.0.1", basic())[0]
        assert b" 407 " in await status_of(http_port(gateway), right)


async def test_right_logins_never_block(certs: Certs) -> None:
    async with serving(echo) as target, both(certs) as (gateway, _):
        said = http_connect(target.port, "127.0.0.1", basic())[0]
        for _ in range(3 * MAX_FAILURES):
            assert b" 200 " in await status_of(http_port(gateway), said)
