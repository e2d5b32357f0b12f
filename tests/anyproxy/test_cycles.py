"""Users of the proxies, and agents that come and go, leave nothing to the garbage collector.

See tests/engine/test_cycles.py.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Awaitable, Callable

import pytest

from anyproxy.gateway import Gateway
from anyproxy.options import ProxyOptions
from mtt.proxy.host_rules import HostRules, parse_patterns
from mtt.trust.tls_options import ServerTls
from mtt.users.user import User
from mtt.wire.agent import SUBPROTOCOL
from tests.anyproxy.forwarding import Udp
from tests.anyproxy.serving import (
    ANY,
    GROUP,
    PASSWORD,
    agent_for,
    gateway_for,
    http_port,
    known,
    socks_port,
)
from tests.anyproxy.test_gateway import basic
from tests.anyproxy.users import status, tunnel_request, user_of
from tests.proxy.clients import socks5_login
from tests.support.certs import Certs
from tests.support.garbage import collector_off
from tests.support.gopeer import SYN, WebSocket, smux_frame, tls_connect, upgrade_request
from tests.support.tunnels import (
    Tcp,
    connect,
    eventually,
    port_of,
    serving,
    settled,
)

TIMES = 3

Use = Callable[[Gateway, int, Certs], Awaitable[None]]


async def tunnel(gateway: Gateway, target: int, certs: Certs) -> None:
    async with user_of(gateway, target) as user:
        await user.finish()
        await user.rest()


async def reset(gateway: Gateway, target: int, certs: Certs) -> None:
    async with user_of(gateway, target) as user:
        user.reset()


async def refused(gateway: Gateway, target: int, certs: Certs) -> None:
    assert await status(http_port(gateway), tunnel_request(1)) == 502


async def denied(gateway: Gateway, target: int, certs: Certs) -> None:
    said = tunnel_request(80).replace(b"127.0.0.1", b"10.0.0.1")
    assert await status(http_port(gateway), said) == 403


async def wrong_password(gateway: Gateway, target: int, certs: Certs) -> None:
    assert await status(http_port(gateway), tunnel_request(target, "wrong")) == 407


async def no_agent(gateway: Gateway, target: int, certs: Certs) -> None:
    assert await status(http_port(gateway), tunnel_request(target, group="other")) == 503


async def requests(gateway: Gateway, target: int, certs: Certs) -> None:
    async with await connect(http_port(gateway)) as user:
        for _ in range(2):
            head = f"POST http://127.0.0.1:{target}/ HTTP/1.1\r\nHost: a\r\n{basic()}\r\n"
            await user.send(f"{head}Content-Length: 4\r\n\r\nbody".encode())
            assert await user.until(b"body")
        await user.send(b"nonsense\r\n\r\n")
        await user.rest()


async def user_who_does_not_wait(gateway: Gateway, target: int, certs: Certs) -> None:
    async with await connect(http_port(gateway)) as user:
        await user.send(tunnel_request(target))
        user.reset()


async def datagrams(gateway: Gateway, target: int, certs: Certs) -> None:
    said = socks5_login(0, User(GROUP, PASSWORD))[0]
    associate = b"\5\3\0\1" + bytes(6)
    async with await connect(socks_port(gateway)) as control:
        await control.send(said[: -len(associate)] + associate)
        answer = await control.exactly(14)
        with Udp() as there, Udp() as user:
            head = b"\0\0\0\1\x7f\0\0\1" + there.port.to_bytes(2, "big")
            user.send(head + b"ping", ("127.0.0.1", int.from_bytes(answer[12:], "big")))
            assert (await there.receive())[0] == b"ping"


async def no_tls(gateway: Gateway, target: int, certs: Certs) -> None:
    async with await connect(port_of(gateway)) as peer:
        await peer.send(b"GET /ws HTTP/1.1\r\n\r\n")
        await peer.rest()


async def hostile_agents(gateway: Gateway, target: int, certs: Certs) -> None:
    headers = {"X_Client_Id": "guest", "X_Group_Id": GROUP, "X_Group_Password": PASSWORD}
    for said in (b"\xff" * 9, smux_frame(SYN, 2), smux_frame(SYN, 3) + smux_frame(SYN, 5)):
        peer = await tls_connect(port_of(gateway), certs)
        await peer.send(upgrade_request(certs.name, "/ws", SUBPROTOCOL, **headers))
        await peer.until(b"\r\n\r\n")
        agent = WebSocket(peer, client=True)
        await agent.send(said)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await agent.rest()
        agent.close()


async def answering(connection: Tcp) -> None:
    """Echo, behind the beginning of a response if it is HTTP."""
    while data := await connection.read():
        if data.startswith(b"POST"):
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
            data = data[-4:]
        await connection.send(data)


@pytest.mark.parametrize(
    "use",
    [
        tunnel, reset, refused, denied, wrong_password, no_agent, requests, user_who_does_not_wait,
        datagrams, no_tls, hostile_agents,
    ],
    ids=lambda use: use.__name__,
)  # fmt: skip
async def test_users_and_agents_leave_no_cycles(certs: Certs, use: Use) -> None:
    rules = HostRules(forbidden=parse_patterns("forbidden_hosts", ["10.0.0.0/8"], allow=False))
    async with (
        serving(answering) as there,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, rules=rules) as own,
    ):
        with collector_off() as left:
            for _ in range(TIMES):
                await use(gateway, there.port, certs)
            await eventually(lambda: not (gateway.tunnels or own.tunnels))
            await eventually(lambda: len(gateway._frontend.sessions) == 1)
            await eventually(lambda: not any(proxy.port.pending for proxy in gateway.proxies))
            await settled()
        assert not left


async def test_users_of_an_https_proxy_leave_no_cycles(certs: Certs) -> None:
    tls = ServerTls(cert=certs.cert, key=certs.key, alpn=("http/1.1",))
    async with (
        serving(answering) as there,
        gateway_for(certs, http=ProxyOptions(bind=ANY, tls=tls)) as gateway,
        agent_for(certs, gateway) as own,
    ):
        with collector_off() as left:
            for _ in range(TIMES):
                user = await tls_connect(http_port(gateway), certs)
                await user.send(tunnel_request(there.port))
                assert b" 200 " in await user.until(b"\r\n\r\n")
                await user.check_echo()
                user.close()
                async with await connect(http_port(gateway)) as stranger:
                    await stranger.send(b"GET / HTTP/1.1\r\n\r\n")
                    await stranger.rest()
            await eventually(lambda: not (gateway.tunnels or own.tunnels))
            await settled()
        assert not left


async def test_agents_that_come_back_leave_no_cycles(certs: Certs) -> None:
    async with (
        serving(answering) as there,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway) as own,
    ):
        for link in own.links:
            link.wait_times = 0.01, 0.01
        with collector_off() as left:
            for _ in range(TIMES):
                async with user_of(gateway, there.port) as user:
                    for session in list(own.open_sessions):
                        session.abort()
                    with contextlib.suppress(ConnectionError):
                        await user.rest()
                await eventually(lambda: known(gateway, own) and own.open_sessions)
            await eventually(lambda: not (gateway.tunnels or own.tunnels))
            await settled()
        assert not left
