"""Limits of a group: open connections of users, and bytes per second."""

from __future__ import annotations

import contextlib

import pytest

from anyproxy.options import GroupOptions
from mtt.users.user import User
from tests.anyproxy.serving import GROUP, PASSWORD, both, http_port, socks_port
from tests.anyproxy.test_gateway import basic
from tests.proxy.clients import http_connect, reply5, socks5_login
from tests.support.certs import Certs
from tests.support.tunnels import connect, echo, eventually, serving

LOGIN = User(GROUP, PASSWORD)


async def test_users_beyond_the_limit_are_told(certs: Certs) -> None:
    groups = {GROUP: GroupOptions(max_streams=2)}
    async with serving(echo) as target, both(certs, groups=groups) as (gateway, agent):
        said, answer = http_connect(target.port, "127.0.0.1", basic())
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                user = await stack.enter_async_context(await connect(http_port(gateway)))
                await user.send(said)
                assert await user.exactly(len(answer)) == answer
            async with await connect(http_port(gateway)) as third:
                await third.send(said)
                refusal = await third.rest()
                assert refusal.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
                assert refusal.endswith(b"\r\n\r\ntoo many connections\n")
            async with await connect(socks_port(gateway)) as third:
                await third.send(socks5_login(target.port, LOGIN)[0])
                assert await third.rest() == b"\5\2\1\0" + reply5(1)
            await user.check_echo(b"not disturbed")
        await eventually(lambda: not agent.tunnels)
        async with await connect(http_port(gateway)) as user:
            await user.send(said)
            assert await user.exactly(len(answer)) == answer


@pytest.mark.parametrize("limit", [0, 1])
async def test_failed_connections_leave_room(certs: Certs, limit: int, refused_port: int) -> None:
    groups = {GROUP: GroupOptions(max_streams=limit)}
    async with both(certs, groups=groups) as (gateway, _):
        for _ in range(3):
            async with await connect(http_port(gateway)) as user:
                await user.send(http_connect(refused_port, "127.0.0.1", basic())[0])
                assert (await user.rest()).startswith(b"HTTP/1.1 502 ")
