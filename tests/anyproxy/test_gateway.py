"""Users reach targets behind an agent through the gateway's proxies."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import socket

import pytest

from anyproxy.options import ProxyOptions
from mtt.proxy.host_rules import HostRules, parse_patterns
from mtt.trust.tls_options import ServerTls
from mtt.users.user import User
from tests.anyproxy.serving import (
    ANY,
    GROUP,
    PASSWORD,
    agent_for,
    both,
    gateway_for,
    http_port,
    known,
    socks_port,
)
from tests.proxy.clients import CONNECTED, http_connect, reply5, socks4, socks5, socks5_login
from tests.support.certs import Certs
from tests.support.stacks import client_context
from tests.support.tunnels import Tcp, connect, echo, eventually, port_of, serving

LOGIN = User(GROUP, PASSWORD)


def basic(user: str = GROUP, password: str = PASSWORD) -> str:
    text = base64.b64encode(f"{user}:{password}".encode()).decode()
    return f"Proxy-Authorization: Basic {text}"


def tunnel_request(kind: str, port: int, host: str = "127.0.0.1") -> tuple[bytes, bytes]:
    if kind == "http":
        return http_connect(port, host, basic())
    return socks5_login(port, LOGIN)


def proxy_port(gateway, kind: str) -> int:  # type: ignore[no-untyped-def]
    return http_port(gateway) if kind == "http" else socks_port(gateway)


in_both_proxies = pytest.mark.parametrize("kind", ["http", "socks5"])


async def status_of(port: int, said: bytes) -> bytes:
    """The first line of the answer."""
    async with await connect(port) as user:
        await user.send(said)
        return (await user.until(b"\r\n")).rstrip()


# The main job.


@in_both_proxies
async def test_user_reaches_a_target_behind_the_agent(certs: Certs, kind: str) -> None:
    payload = random.Random(1).randbytes(3_000_000)
    async with serving(echo) as target, both(certs) as (gateway, _):
        said, answer = tunnel_request(kind, target.port)
        async with await connect(proxy_port(gateway, kind)) as user:
            sending = asyncio.create_task(user.send(said + payload))
            assert await user.exactly(len(answer)) == answer
            assert await user.exactly(len(payload)) == payload
            await sending
            await user.finish()
            assert await user.rest() == b""
        await eventually(lambda: not gateway.tunnels)


async def test_plain_http_request_goes_to_the_agent(certs: Certs) -> None:
    async def page(connection: Tcp) -> None:
        head = await connection.until(b"\r\n\r\n")
        assert b"proxy-authorization" not in head.lower()
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    async with serving(page) as target, both(certs) as (gateway, _):
        request = f"GET http://localhost:{target.port}/ HTTP/1.1\r\nHost: x\r\n{basic()}\r\n\r\n"
        async with await connect(http_port(gateway)) as user:
            await user.send(request.encode())
            assert (await user.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
            assert await user.exactly(5) == b"hello"


async def test_half_close_reaches_the_target_and_its_answer_the_user(certs: Certs) -> None:
    async def count(connection: Tcp) -> None:
        await connection.send(b"%d" % len(await connection.rest()))

    async with serving(count) as target, both(certs) as (gateway, _):
        said, answer = http_connect(target.port, "127.0.0.1", basic())
        async with await connect(http_port(gateway)) as user:
            await user.send(said)
            assert await user.exactly(len(answer)) == answer
            await user.send(bytes(100_000))
            await user.finish()
            assert await user.rest() == b"100000"


async def test_names_are_resolved_by_the_agent(certs: Certs) -> None:
    async with serving(echo) as target, both(certs) as (gateway, agent):
        asked: list[str] = []
        resolve = agent.targets._resolver.resolve

        async def resolver(host: str, port: int):  # type: ignore[no-untyped-def]
            asked.append(host)
            return await resolve("127.0.0.1" if host == "Nas.Home" else host, port)

        agent.targets._resolver.resolve = resolver  # type: ignore[method-assign]
        said, answer = http_connect(target.port, "Nas.Home", basic())
        async with await connect(http_port(gateway)) as user:
            await user.send(said)
            assert await user.exactly(len(answer)) == answer
            await user.check_echo()
        assert asked == ["Nas.Home"]


async def test_https_proxy(certs: Certs) -> None:
    tls = ServerTls(cert=certs.cert, key=certs.key, alpn=("http/1.1",))
    async with (
        serving(echo) as target,
        both(certs, http=ProxyOptions(bind=ANY, tls=tls)) as (gateway, _),
    ):
        context = client_context(certs, alpn=["h2", "http/1.1"])
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", http_port(gateway), ssl=context, server_hostname=certs.name
        )
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
        writer.write(http_connect(target.port, "127.0.0.1", basic())[0] + b"over TLS")
        assert await reader.readexactly(len(CONNECTED)) == CONNECTED
        assert await reader.readexactly(8) == b"over TLS"
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_udp_leaves_from_the_agent(certs: Certs) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.bind(("127.0.0.1", 0))
        target.setblocking(False)
        async with both(certs) as (gateway, _):
            said = socks5_login(0, LOGIN)[0][:-7] + b"\3\0\1" + bytes(6)
            said = said[: said.rindex(b"\5")] + b"\5\3\0\1" + bytes(6)
            async with await connect(socks_port(gateway)) as user:
                await user.send(said)
                answer = await user.exactly(4 + 10)
                assert answer[:4] == b"\5\2\1\0"
                relay = socket.inet_ntoa(answer[8:12]), int.from_bytes(answer[12:14], "big")
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
                    mine.setblocking(False)
                    number = target.getsockname()[1].to_bytes(2, "big")
                    header = b"\0\0\0\1" + socket.inet_aton("127.0.0.1") + number
                    await loop.sock_sendto(mine, header + b"question", relay)
                    data, source = await loop.sock_recvfrom(target, 100)
                    assert data == b"question"
                    await loop.sock_sendto(target, b"answer", source)
                    assert await loop.sock_recv(mine, 100) == header + b"answer"


# Why not.


@in_both_proxies
async def test_success_is_said_after_the_target_is_reached(
    certs: Certs, refused_port: int, kind: str
) -> None:
    async with both(certs) as (gateway, _):
        said, _ = tunnel_request(kind, refused_port)
        async with await connect(proxy_port(gateway, kind)) as user:
            await user.send(said)
            answer = await user.rest()
            if kind == "http":
                assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
                assert answer.endswith(b"\r\n\r\nconnection refused\n")
            else:
                assert answer == b"\5\2\1\0" + reply5(5)


@pytest.mark.parametrize(
    "login, status",
    [
        (basic(), b"HTTP/1.1 200 Connection established"),
        (basic(password="wrong"), b"HTTP/1.1 407 Proxy Authentication Required"),
        (basic(user="elsewhere"), b"HTTP/1.1 503 Service Unavailable"),
        ("X: y", b"HTTP/1.1 407 Proxy Authentication Required"),
    ],
)
async def test_users_log_in_with_group_and_password(
    certs: Certs, login: str, status: bytes
) -> None:
    async with serving(echo) as target, both(certs) as (gateway, _):
        said = http_connect(target.port, "127.0.0.1", login)[0]
        assert await status_of(http_port(gateway), said) == status


async def test_proxy_with_a_login_of_its_own_has_a_fixed_group(certs: Certs) -> None:
    own = ProxyOptions(bind=ANY, login=User("ada", "pw"), group=GROUP, group_login=False)
    async with serving(echo) as target, both(certs, http=own) as (gateway, _):
        for login, status in ((basic("ada", "pw"), b"200"), (basic(), b"407")):
            said = http_connect(target.port, "127.0.0.1", login)[0]
            assert status in await status_of(http_port(gateway), said)


async def test_open_proxy_with_a_fixed_group_takes_socks4_and_socks5(certs: Certs) -> None:
    unprotected = ProxyOptions(bind=ANY, group=GROUP, group_login=False)
    async with serving(echo) as target, both(certs, socks5=unprotected) as (gateway, _):
        for said, answer in (socks4(target.port), socks5(target.port), http_connect(target.port)):
            if answer == CONNECTED:
                said = http_connect(target.port, "127.0.0.1")[0]
            async with await connect(socks_port(gateway)) as user:
                await user.send(said)
                assert await user.exactly(len(answer)) == answer
                await user.check_echo()


async def test_rules_of_the_agent_deny_targets(certs: Certs) -> None:
    rules = HostRules(forbidden=parse_patterns("forbidden_hosts", ["127.0.0.0/8"], allow=False))
    async with (
        serving(echo) as target,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, rules=rules),
    ):
        for host in ("127.0.0.1", "localhost"):
            said = http_connect(target.port, host, basic())[0]
            assert b" 403 " in await status_of(http_port(gateway), said)
        async with await connect(socks_port(gateway)) as user:
            await user.send(socks5_login(target.port, LOGIN)[0])
            assert await user.rest() == b"\5\2\1\0" + reply5(2)


async def test_agent_that_serves_no_udp_says_so(certs: Certs) -> None:
    tcp_only = frozenset({"tcp"})
    async with (
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, protocols=tcp_only),
        await connect(socks_port(gateway)) as user,
    ):
        await user.send(_associate())
        assert await user.rest() == b"\5\2\1\0" + reply5(2)


def _associate() -> bytes:
    said = socks5_login(0, LOGIN)[0]
    return said[: said.rindex(b"\5")] + b"\5\3\0\1" + bytes(6)


async def test_no_agent_for_udp_is_a_failure(certs: Certs) -> None:
    async with gateway_for(certs) as gateway, await connect(socks_port(gateway)) as user:
        await user.send(_associate())
        # Not 7, command not supported: clients would never ask again.
        assert await user.rest() == b"\5\2\1\0" + reply5(1)


async def test_no_agent_is_503_until_one_joins(certs: Certs) -> None:
    async with serving(echo) as target, gateway_for(certs) as gateway:
        said = http_connect(target.port, "127.0.0.1", basic())[0]
        assert b" 503 " in await status_of(http_port(gateway), said)
        async with agent_for(certs, gateway):
            assert b" 200 " in await status_of(http_port(gateway), said)
        await eventually(lambda: gateway.groups.get(GROUP) is None)
        assert b" 503 " in await status_of(http_port(gateway), said)


# Several agents.


async def test_agents_of_a_group_share_its_load(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, id="one") as one,
        agent_for(certs, gateway, id="two") as two,
    ):
        said, answer = http_connect(target.port, "127.0.0.1", basic())
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(4):
                user = await stack.enter_async_context(await connect(http_port(gateway)))
                await user.send(said)
                assert await user.exactly(len(answer)) == answer
            assert (one.tunnels, two.tunnels) == (2, 2)


async def test_other_agents_serve_when_one_is_cut(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, id="one") as one,
        agent_for(certs, gateway, id="two"),
    ):
        said, _ = http_connect(target.port, "127.0.0.1", basic())
        for session in list(one.open_sessions):
            session.abort()
        for _ in range(4):
            assert b" 200 " in await status_of(http_port(gateway), said)
        await eventually(lambda: known(gateway, one))  # it is back


async def test_one_agent_serves_several_gateways_with_replicas(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        gateway_for(certs) as first,
        gateway_for(certs) as second,
        agent_for(certs, first, second, replicas=2) as agent,
    ):
        assert len(agent.open_sessions) == 4
        for gateway in (first, second):
            group = gateway.groups.get(GROUP)
            assert group is not None
            assert sorted(group.agents) == ["agent-r0", "agent-r1"]
            said, _ = http_connect(target.port, "127.0.0.1", basic())
            assert b" 200 " in await status_of(http_port(gateway), said)


async def test_agent_that_drains_finishes_its_streams(certs: Certs) -> None:
    async with (
        serving(echo) as target,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, id="one") as one,
    ):
        said, answer = http_connect(target.port, "127.0.0.1", basic())
        async with await connect(http_port(gateway)) as user:
            await user.send(said)
            assert await user.exactly(len(answer)) == answer
            draining = asyncio.create_task(one.drain())
            async with agent_for(certs, gateway, id="two"):
                for _ in range(3):
                    assert b" 200 " in await status_of(http_port(gateway), said)
                await user.check_echo(b"still here")
                assert not draining.done()
                await user.finish()
                assert await user.rest() == b""
                await draining


async def test_gateway_that_restarts_is_found_again(certs: Certs) -> None:
    async with serving(echo) as target, gateway_for(certs) as gateway:
        port = port_of(gateway)
        async with agent_for(certs, gateway) as agent:
            for link in agent.links:
                link.wait_times = 0.01, 0.01
            await gateway.close()
            await eventually(lambda: not agent.open_sessions)
            again = ProxyOptions(bind=ANY)
            bind = ANY._replace(port=port)
            async with gateway_for(certs, bind=bind, http=again) as second:
                await eventually(lambda: known(second, agent))
                said, _ = http_connect(target.port, "127.0.0.1", basic())
                assert b" 200 " in await status_of(http_port(second), said)
