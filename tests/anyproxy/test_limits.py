"""Limits of a group: open connections of users, and bytes per second."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest

from anyproxy import rates
from anyproxy.options import GroupOptions
from anyproxy.rates import GroupRates
from mtt.layers.parked import Parked
from mtt.layers.reads import READ_SIZE
from mtt.outbound.groups import Agent, Groups
from mtt.tunnels.rate_limit import BURST_TIME
from mtt.users.user import User
from tests.anyproxy.serving import GROUP, PASSWORD, both, http_port, socks_port
from tests.anyproxy.test_gateway import basic
from tests.outbound.test_groups import FakeSession
from tests.proxy.clients import http_connect, reply5, socks5_login
from tests.support.certs import Certs
from tests.support.transports import FakeLayer
from tests.support.tunnels import Tcp, connect, echo, eventually, serving

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


# The rate.


SIZE = 200_000
RATE = 200_000


@pytest.mark.parametrize("direction", ["up", "down", "plain up", "plain down"])
async def test_rate_of_a_group_is_limited(certs: Certs, direction: str) -> None:
    groups = {GROUP: GroupOptions(rate=RATE)}
    loop = asyncio.get_running_loop()
    received = 0

    async def serve(connection: Tcp) -> None:
        nonlocal received
        if direction == "down":
            await connection.send(bytes(SIZE))
        elif direction == "plain down":
            await connection.until(b"\r\n\r\n")
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"
            await connection.send(head.encode() + bytes(SIZE))
        elif direction == "up":
            received = len(await connection.exactly(SIZE))
            await connection.send(b"+")
        else:
            await connection.until(b"\r\n\r\n")
            received = len(await connection.exactly(SIZE))
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n+")
        await connection.rest()

    async with serving(serve) as target, both(certs, groups=groups) as (gateway, _):
        said, answer = http_connect(target.port, "127.0.0.1", basic())
        if "plain" in direction:
            method, size = ("POST", SIZE) if "up" in direction else ("GET", 0)
            head = f"{method} http://127.0.0.1:{target.port}/ HTTP/1.1\r\nHost: x\r\n{basic()}"
            said = f"{head}\r\nContent-Length: {size}\r\n\r\n".encode()
            answer = b"HTTP/1.1 200 OK\r\n"
        async with await connect(http_port(gateway)) as user:
            began = loop.time()
            sending = asyncio.create_task(user.send(said + bytes(SIZE if "up" in direction else 0)))
            assert await user.exactly(len(answer)) == answer
            if "plain" in direction:
                await user.until(b"\r\n\r\n")
            assert len(await user.exactly(1 if "up" in direction else SIZE)) >= 1
            seconds = loop.time() - began
            await sending
        # The last read upwards is paid for after it has been sent.
        most = SIZE - (READ_SIZE if "up" in direction else 0)
        assert seconds >= (most - RATE * BURST_TIME) / RATE * 0.95
        assert received == (SIZE if "up" in direction else 0)


async def test_streams_of_a_group_share_the_rate_and_others_have_none(certs: Certs) -> None:
    groups = {GROUP: GroupOptions(rate=RATE)}
    async with serving(echo) as target, both(certs, groups=groups) as (gateway, agent):
        said, answer = http_connect(target.port, "127.0.0.1", basic())
        port = http_port(gateway)
        async with await connect(port) as one, await connect(port) as two:
            for user in (one, two):
                await user.send(said)
                assert await user.exactly(len(answer)) == answer
            bucket = gateway._rates._buckets[GROUP]
            bucket.charge(RATE)  # a second's worth
            began = asyncio.get_running_loop().time()
            await two.check_echo()
            assert asyncio.get_running_loop().time() - began >= 0.7
            # A new configuration counts for open connections, too.
            bucket.charge(1000 * RATE)
            gateway.use_options(replace(gateway.options, groups={}))
            await one.check_echo()
        async with await connect(http_port(gateway)) as user:
            await user.send(said)
            assert await user.exactly(len(answer)) == answer
            await user.check_echo()
        await eventually(lambda: not agent.tunnels)


async def test_buckets_of_groups_that_have_gone_are_forgotten(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "MAX_BUCKETS", 10)
    groups = Groups()
    groups.join(GROUP, Agent("a", "", FakeSession(), 0.0))
    limits = GroupRates(lambda _: RATE, groups)
    for name in (GROUP, *map(str, range(100))):
        limits.limited(name, FakeLayer(Parked()))
        assert len(limits._buckets) <= 11
    assert GROUP in limits._buckets
