"""anyproxy-gateway with an agent that behaves as the Go program, under load and with bad peers."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from typing import Any

import pytest

from mtt.layers import anyproxy, stall
from mtt.tunnels import relay
from mtt.users.user import User
from mtt.wire.anyproxy import ForwardedPort, PortForward
from tests.anyproxy.forwarding import Udp
from tests.anyproxy.go_peers import joined_agent as joined
from tests.anyproxy.serving import GROUP, PASSWORD, socks_port
from tests.anyproxy.users import status, tunnel_request, user_of
from tests.proxy.clients import socks5_login
from tests.support.certs import Certs
from tests.support.tunnels import Tcp, connect, echo, eventually, serving


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a user who says no more than FIN is passed on soon."""
    monkeypatch.setattr(relay, "QUIET_TIME", 0.1)
    monkeypatch.setattr(relay, "END_TIME", 0.2)


async def test_bulk_in_both_directions_at_once(certs: Certs, hurried: None) -> None:
    data = random.Random(1).randbytes(10_000_000)
    async with (
        serving(echo) as target,
        joined(certs) as (gateway, agent),
        user_of(gateway, target.port) as user,
    ):
        sending = asyncio.create_task(user.send(data))
        assert await user.exactly(len(data)) == data
        await sending
        assert not agent.killed
        user.close()
        await eventually(lambda: not agent.streams)
        await eventually(lambda: not gateway.tunnels)


async def test_upload_to_a_target_that_pauses(certs: Certs) -> None:
    """Go's own gateway sends 32 KiB in a message, of which the agent drops the 101st."""
    size = 30_000_000

    async def read_late(connection: Tcp) -> None:
        await asyncio.sleep(0.3)
        assert len(await connection.exactly(size)) == size
        await connection.send(b"thanks")

    async with (
        serving(read_late) as target,
        joined(certs) as (gateway, agent),
        await connect(socks_port(gateway)) as user,
    ):
        said, answer = socks5_login(target.port, User(GROUP, PASSWORD))
        await user.send(said)
        assert await user.exactly(len(answer)) == answer
        await user.send(bytes(size))
        assert await user.exactly(6) == b"thanks"
        assert not agent.killed


async def test_slow_user_gets_the_whole_download(certs: Certs) -> None:
    """The Go gateway ends such a download: 100 messages of 32 KiB are 3 MB."""
    data = random.Random(2).randbytes(20_000_000)

    async def speak(connection: Tcp) -> None:
        await connection.send(data)

    async with (
        serving(speak) as target,
        joined(certs) as (gateway, agent),
        await connect(socks_port(gateway)) as user,
    ):
        said, answer = socks5_login(target.port, User(GROUP, PASSWORD))
        await user.send(said)
        assert await user.exactly(len(answer)) == answer
        found = bytearray()
        while piece := await user.read():
            found += piece
            await asyncio.sleep(len(piece) / 20e6)
        assert found == data
        assert not agent.socket.is_zombie


async def test_stopped_user_is_cut_and_the_others_go_on(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anyproxy, "PAUSE_TIME", 0.3)

    async def speak(connection: Tcp) -> None:
        with contextlib.suppress(OSError):
            while True:
                await connection.send(bytes(1_000_000))

    async with (
        serving(speak) as endless,
        serving(echo) as target,
        joined(certs) as (gateway, agent),
        user_of(gateway, target.port) as other,
        await connect(socks_port(gateway), buffer=32 * 1024) as stopped,
    ):
        await stopped.send(socks5_login(endless.port, User(GROUP, PASSWORD))[0])
        await eventually(lambda: len(agent.streams) == 2)
        await eventually(lambda: len(agent.streams) == 1)
        await other.check_echo(b"still here")
        assert not agent.socket.is_zombie


async def test_refused_target_and_missing_agent(certs: Certs, refused_port: int) -> None:
    async with joined(certs) as (gateway, agent):
        port = int(gateway.proxies[0].addresses[0].rpartition(":")[2])
        assert await status(port, tunnel_request(refused_port)) == 502
        await eventually(lambda: not agent.streams)  # it got the CLOSE that it needs
        await agent.close()
        await eventually(lambda: gateway.groups.get(GROUP) is None)


async def test_user_who_leaves_ends_the_target(certs: Certs, hurried: None) -> None:
    ended = asyncio.Event()

    async def wait(connection: Tcp) -> None:
        await connection.send(await connection.read())
        assert await connection.rest() == b""
        ended.set()

    async with serving(wait) as target, joined(certs) as (gateway, agent):
        async with user_of(gateway, target.port):
            pass
        await ended.wait()
        await eventually(lambda: not agent.streams)
        await eventually(lambda: not gateway.tunnels)


async def test_close_that_is_not_answered_is_no_harm(certs: Certs, hurried: None) -> None:
    async with serving(echo) as target, joined(certs) as (gateway, agent):
        agent.answers_close = False
        async with user_of(gateway, target.port):
            pass
        await eventually(lambda: not gateway.tunnels)
        (session,) = gateway.groups.get(GROUP).agents.values()
        await eventually(lambda: not session.session.open_streams)


async def test_datagrams_of_a_user(certs: Certs) -> None:
    loop = asyncio.get_running_loop()
    async with joined(certs) as (gateway, agent), await connect(socks_port(gateway)) as user:
        said = socks5_login(0, User(GROUP, PASSWORD))[0]
        await user.send(said[: said.rindex(b"\5")] + b"\5\3\0\1" + bytes(6))
        answer = await user.exactly(4 + 10)
        assert answer[:4] == b"\5\2\1\0"
        relay = socket.inet_ntoa(answer[8:12]), int.from_bytes(answer[12:14], "big")
        with Udp().sock as one, Udp().sock as two, Udp().sock as mine:
            for target in (one, two):
                number = target.getsockname()[1].to_bytes(2, "big")
                header = b"\0\0\0\1" + socket.inet_aton("127.0.0.1") + number
                await loop.sock_sendto(mine, header + b"question", relay)
                data, source = await loop.sock_recvfrom(target, 100)
                assert data == b"question"
                await loop.sock_sendto(target, b"answer", source)
                assert await loop.sock_recv(mine, 100) == header + b"answer"
            assert len(agent.streams) == 2
            user.close()
            await eventually(lambda: not agent.streams)


async def test_datagrams_of_a_forwarded_port_are_answered(certs: Certs) -> None:
    """Those of the Go gateway are not."""
    loop = asyncio.get_running_loop()
    with Udp().sock as target, Udp().sock as user:
        async with joined(certs) as (gateway, agent):
            port = ForwardedPort(0, target.getsockname()[1], "127.0.0.1", "udp")
            await agent.socket.send(PortForward("c1", (port,)).encode())
            await eventually(lambda: list(gateway.ports))
            (opened,) = gateway.ports
            await loop.sock_sendto(user, b"hello", ("127.0.0.1", opened.number))
            data, source = await loop.sock_recvfrom(target, 100)
            assert data == b"hello"
            await loop.sock_sendto(target, b"answer", source)
            assert await loop.sock_recv(user, 100) == b"answer"


async def test_unknown_protocol_of_a_port_is_an_error(certs: Certs) -> None:
    async with joined(certs) as (gateway, agent):
        ports = (ForwardedPort(0, 80, "nas", "TCP"), ForwardedPort(0, 80, "nas", "tcp"))
        await agent.socket.send(PortForward("c1", ports).encode())
        await eventually(lambda: agent.ports_response)
        assert agent.ports_response[0] == 0
        assert b"TCP" in agent.ports_response
        assert len(list(gateway.ports)) == 1


async def test_agent_that_stops_reading_is_cut(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anyproxy, "STALL_LIMIT", 0.5)
    monkeypatch.setattr(stall, "CHECK_INTERVAL", 0.1)
    async with (
        serving(echo) as target,
        joined(certs) as (gateway, agent),
        user_of(gateway, target.port) as user,
    ):
        agent.socket.is_reading.clear()
        sending = asyncio.create_task(user.send(bytes(50_000_000)))
        await eventually(lambda: gateway.groups.get(GROUP) is None)
        with contextlib.suppress(OSError):
            await sending
        agent.socket.is_reading.set()


async def test_late_pongs_do_not_end_a_session(certs: Certs) -> None:
    async with serving(echo) as target, joined(certs) as (gateway, agent):
        agent.socket.pong_delay = 0.2
        (member,) = gateway.groups.get(GROUP).agents.values()
        session: Any = member.session
        session._session.ping()
        await eventually(lambda: agent.socket.pings)
        async with user_of(gateway, target.port):
            assert session._session.ping_answered()


