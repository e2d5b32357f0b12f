"""Users of forwarded ports, and agents, leave nothing to the garbage collector."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from anyproxy import link
from anyproxy.gateway import Gateway
from tests.anyproxy.forwarding import (
    Udp,
    dropped,
    forwarding,
    is_refused,
    opened,
    ports_of,
    to_tcp,
    to_udp,
    udp_echo,
)
from tests.anyproxy.serving import agent_for, gateway_for
from tests.support.certs import Certs
from tests.support.garbage import collector_off
from tests.support.tunnels import connect, echo, eventually, serving, settled

TIMES = 3

Use = Callable[[Gateway], Awaitable[None]]


async def orderly(gateway: Gateway) -> None:
    async with await connect(ports_of(gateway)[0].number) as user:
        await user.check_echo()
        await user.finish()
        await user.rest()


async def reset(gateway: Gateway) -> None:
    async with await connect(ports_of(gateway)[0].number) as user:
        await user.check_echo()
        user.reset()


async def refused(gateway: Gateway) -> None:
    async with await connect(ports_of(gateway)[1].number) as user:
        assert await is_refused(user)


async def datagrams(gateway: Gateway) -> None:
    (port,) = ports_of(gateway, "udp")
    with Udp(port.number) as user:
        assert await user.ask(b"hello") == b"re: hello"
    for known in list(port._users.values()):  # type: ignore[attr-defined]
        known.end()


@pytest.mark.parametrize("use", [orderly, reset, refused, datagrams], ids=lambda use: use.__name__)
async def test_users_leave_no_cycles(certs: Certs, use: Use, refused_port: int) -> None:
    async with serving(echo) as there, udp_echo() as udp:
        wanted = (to_tcp(there.port, proxy_protocol=""), to_tcp(refused_port), to_udp(udp))
        async with forwarding(certs, *wanted) as gateway:
            await opened(gateway, "udp")
            await use(gateway)
            with collector_off() as garbage:
                for _ in range(TIMES):
                    await use(gateway)
                await eventually(lambda: not any(port.users for port in gateway.ports))
                await settled()
    assert not garbage


async def test_agents_leave_no_cycles(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "FIRST_WAIT", 0.05)
    async with (
        serving(echo) as there,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, open_ports=(to_tcp(there.port),)) as agent,
    ):
        await opened(gateway)
        with collector_off() as garbage:
            for _ in range(TIMES):
                await dropped(agent)
                await eventually(lambda: not ports_of(gateway)[0].claims)
                await eventually(lambda: ports_of(gateway)[0].claims, 10)
            await settled()
    await asyncio.sleep(0)
    assert not garbage
