"""Sessions with the Go programs, and their streams, leave nothing to the garbage collector."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from anyproxy.agent import Agent
from anyproxy.gateway import Gateway
from mtt.tunnels import relay
from mtt.users.user import User
from tests.anyproxy.forwarding import Udp
from tests.anyproxy.go_peers import joined_agent, joined_gateway, udp_target
from tests.anyproxy.serving import (
    GROUP,
    PASSWORD,
    agent_options,
    gateway_for,
    http_port,
    socks_port,
)
from tests.anyproxy.users import status, tunnel_request, user_of
from tests.proxy.clients import socks5_login
from tests.support.anyproxypeer import GoGateway, go_agent, go_gateway
from tests.support.certs import Certs
from tests.support.garbage import collector_off
from tests.support.tunnels import connect, echo, eventually, port_of, serving, settled

TIMES = 3


async def orderly(gateway: Gateway, target: int, refused: int) -> None:
    async with user_of(gateway, target) as user:
        await user.finish()
        await user.rest()


async def reset(gateway: Gateway, target: int, refused: int) -> None:
    async with user_of(gateway, target) as user:
        user.reset()


async def bulk(gateway: Gateway, target: int, refused: int) -> None:
    async with user_of(gateway, target) as user:
        await user.check_echo(bytes(200_000))


async def refused_target(gateway: Gateway, target: int, refused: int) -> None:
    assert await status(http_port(gateway), tunnel_request(refused)) == 502


async def datagrams(gateway: Gateway, target: int, refused: int) -> None:
    said = socks5_login(0, User(GROUP, PASSWORD))[0]
    with Udp() as there, Udp() as mine:
        async with await connect(socks_port(gateway)) as user:
            await user.send(said[: said.rindex(b"\5")] + b"\5\3\0\1" + bytes(6))
            answer = await user.exactly(4 + 10)
            header = b"\0\0\0\1\x7f\0\0\1" + there.port.to_bytes(2, "big")
            mine.send(header + b"x", ("127.0.0.1", int.from_bytes(answer[12:14], "big")))
            assert (await there.receive())[0] == b"x"


Use = Callable[[Gateway, int, int], Awaitable[None]]


@pytest.mark.parametrize(
    "use", [orderly, reset, bulk, refused_target, datagrams], ids=lambda use: use.__name__
)
async def test_users_of_a_go_agent_leave_no_cycles(
    certs: Certs, use: Use, refused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "QUIET_TIME", 0.1)
    async with serving(echo) as target, joined_agent(certs) as (gateway, _):
        await use(gateway, target.port, refused_port)
        with collector_off() as garbage:
            for _ in range(TIMES):
                await use(gateway, target.port, refused_port)
            await eventually(lambda: not gateway.tunnels)
            await settled()
        assert not garbage


async def test_go_agents_leave_no_cycles(certs: Certs) -> None:
    async def come_and_go() -> None:
        agent = await go_agent(
            port_of(gateway), certs, X_Group_Id=GROUP, X_Group_Password=PASSWORD
        )
        await eventually(lambda: gateway.groups.get(GROUP))
        async with user_of(gateway, target.port):
            await agent.close()
            await eventually(lambda: gateway.groups.get(GROUP) is None)

    async with serving(echo) as target, gateway_for(certs) as gateway:
        await come_and_go()
        with collector_off() as garbage:
            for _ in range(TIMES):
                await come_and_go()
            await eventually(lambda: not gateway.tunnels)
            await settled()
        assert not garbage


async def test_streams_of_a_go_gateway_leave_no_cycles(certs: Certs, refused_port: int) -> None:
    async def use() -> None:
        user = await gateway.open(f"127.0.0.1:{target.port}", b"hello")
        assert await user.read() == b"hello"
        await user.leave()
        user = await gateway.open(f"127.0.0.1:{refused_port}")
        await user.rest()
        user = await gateway.open(f"127.0.0.1:{udp}", b"hello", "udp")
        assert await user.read() == b"re: hello"
        await user.leave()
        user = await gateway.open(f"127.0.0.1:{target.port}", b"hello")
        await user.leave()  # before the answer

    async with serving(echo) as target, udp_target() as (udp, _), joined_gateway(certs) as (
        gateway, agent,
    ):  # fmt: skip
        await use()
        with collector_off() as garbage:
            for _ in range(TIMES):
                await use()
            await eventually(lambda: not agent.open_tunnels)
            await settled()
        assert not garbage


async def test_sessions_with_a_go_gateway_leave_no_cycles(certs: Certs) -> None:
    sessions: list[GoGateway] = []

    async with go_gateway(certs, sessions.append) as port:
        agent = Agent(agent_options(certs, port))
        agent.links[0].wait_times = 0.01, 0.01
        await agent.start()

        async def come_and_go() -> None:
            await eventually(lambda: agent.open_sessions and sessions)
            await sessions.pop().close()
            await eventually(lambda: sessions)

        await come_and_go()
        with collector_off() as garbage:
            for _ in range(TIMES):
                await come_and_go()
            await settled()
        assert not garbage
        await agent.close()
