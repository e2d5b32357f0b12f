"""anyproxy-client with a gateway that behaves as the Go program."""

from __future__ import annotations

import asyncio
import gc
import random
import re

import pytest

from anyproxy.agent import Agent
from anyproxy.options import OpenPort
from mtt.layers import anyproxy
from mtt.proxy.host_rules import HostRules, parse_patterns
from mtt.wire.anyproxy import PORT_FORWARD
from tests.anyproxy.go_peers import joined_gateway as joined
from tests.anyproxy.go_peers import udp_target
from tests.anyproxy.serving import GROUP, PASSWORD, agent_options
from tests.support.anyproxypeer import GoGateway, Stream, go_gateway
from tests.support.certs import Certs
from tests.support.gopeer import Tls
from tests.support.stacks import server_context
from tests.support.tunnels import Tcp, echo, eventually, logged, serving

PIECE = 32 * 1024


async def test_headers_are_those_of_the_go_agent(certs: Certs) -> None:
    async with joined(certs) as (gateway, _):
        headers = gateway.headers
        assert re.fullmatch(r"agent-r0-[0-9a-v]{20}", headers["x-client-id"])
        assert headers["x-group-id"] == GROUP
        assert headers["x-group-password"] == PASSWORD


async def test_user_reaches_a_target(certs: Certs) -> None:
    data = random.Random(1).randbytes(3_000_000)
    async with serving(echo) as target, joined(certs) as (gateway, agent):
        user = await gateway.open(f"127.0.0.1:{target.port}", b"at once,")
        found = bytearray()

        async def send() -> None:
            for start in range(0, len(data), PIECE):
                await user.send(data[start : start + PIECE])
                await asyncio.sleep(0.001)  # else the agent would have no time to write

        sending = asyncio.create_task(send())
        while len(found) < len(data) + 8:
            found += await user.read()
        await sending
        assert found == b"at once," + data
        assert gateway.answers == [user.id]
        await user.leave()
        await eventually(lambda: not agent.open_tunnels)
        assert not gateway.killed


async def test_target_that_speaks_and_ends(certs: Certs) -> None:
    data = random.Random(2).randbytes(20_000_000)

    async def speak(connection: Tcp) -> None:
        await connection.send(data)

    async with serving(speak) as target, joined(certs) as (gateway, agent):
        user = await gateway.open(f"127.0.0.1:{target.port}")
        assert await user.rest() == data
        assert user.error is None
        await eventually(lambda: not agent.open_tunnels)


async def test_slow_user_is_sent_large_messages(certs: Certs) -> None:
    """48 MB to a user of some MB/s break the Go agent, whose messages have 32 KiB."""
    data = bytes(48_000_000)

    async def speak(connection: Tcp) -> None:
        await connection.send(data)

    async with serving(speak) as target, joined(certs) as (gateway, _):
        user = await gateway.open(f"127.0.0.1:{target.port}")
        size = 0
        while piece := await user.read():
            size += len(piece)
            await asyncio.sleep(len(piece) / 25e6)
        assert size == len(data)
        assert not gateway.killed


async def test_failures_are_told_as_go_tells_them(certs: Certs, refused_port: int) -> None:
    rules = HostRules(forbidden=parse_patterns("forbidden_hosts", ["192.0.2.0/24"], allow=False))
    async with joined(certs, rules=rules) as (gateway, agent):
        for network, address, error in (
            ("tcp", f"127.0.0.1:{refused_port}", "connect: connection refused"),
            ("tcp", "192.0.2.1:80", "Connection denied - host '192.0.2.1:80' is forbidden"),
            ("udp", "192.0.2.1:80", "Connection denied - host '192.0.2.1:80' is forbidden"),
            ("unix", "/run/socket", "connection failed"),
            ("tcp", "::1", "connection failed"),
        ):
            user = await gateway.open(address, b"early", network)
            assert await user.rest() == b""
            assert user.error is not None
            assert user.error.endswith(error)
        assert len(gateway.answers) == 5
        assert not agent.open_tunnels
        (session,) = agent.open_sessions
        await eventually(lambda: not session.open_streams)


async def test_user_who_leaves_ends_the_target(certs: Certs) -> None:
    ended = asyncio.Event()

    async def wait(connection: Tcp) -> None:
        assert await connection.rest() == b"hello"
        ended.set()

    async with serving(wait) as target, joined(certs) as (gateway, agent):
        user = await gateway.open(f"127.0.0.1:{target.port}", b"hello")
        await eventually(lambda: gateway.answers)
        await user.leave()
        await ended.wait()
        await eventually(lambda: not agent.open_tunnels)


async def test_datagrams(certs: Certs) -> None:
    async with udp_target() as (port, _), joined(certs) as (gateway, agent):
        user = await gateway.open(f"127.0.0.1:{port}", network="udp")
        for payload in (b"one", b"", b"x" * 9000):
            await user.send(payload)
            assert await user.queue.get() == b"re: " + payload
        await user.leave()
        await eventually(lambda: not agent.open_tunnels)


async def test_datagram_whose_stream_closes_at_once_is_sent(certs: Certs) -> None:
    """As the Go gateway does it for forwarded UDP ports."""
    async with udp_target() as (port, target), joined(certs) as (gateway, agent):
        user = await gateway.open(f"localhost:{port}", b"hello", "udp")
        await Stream.say_close(user)
        await eventually(lambda: target.received == [b"hello"])
        await eventually(lambda: gateway.answers == [user.id])
        await eventually(lambda: not agent.open_tunnels)


async def test_ports_are_asked_for_once(certs: Certs) -> None:
    ports = (OpenPort(remote_port=28500, local_host="127.0.0.1", local_port=28001),)
    with logged() as lines:
        restricted = OpenPort(
            remote_port=28501, local_host="x", local_port=1, proxy_protocol="v1"
        )
        async with joined(certs, open_ports=(*ports, restricted)) as (gateway, _):
            await eventually(lambda: gateway.port_requests)
            (request,) = gateway.port_requests
            size = int.from_bytes(request[:2], "big")
            assert request[2 : 2 + size].decode() == gateway.headers["x-client-id"]
            port = "6f54" "6d61" "00093132372e302e302e31" "03746370"
            assert request[2 + size :].hex() == "0001" + port
    assert any("port 28501 is not forwarded" in line for line in lines)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("01" "0000" "0000", "INFO open_ports: the gateway forwards 28500 (tcp), 53 (udp)"),
        ("00" "0002" "6e6f" "0000", "WARNING open_ports: the gateway answered: 'no'"),
    ],
)
async def test_answer_about_ports_is_logged_once(
    answer: str, line: str, refused_port: int, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GoGateway, "ports_answer", bytes.fromhex(answer))
    ports = (
        OpenPort(remote_port=28500, local_host="127.0.0.1", local_port=1),
        OpenPort(remote_port=53, local_host="127.0.0.1", local_port=1, protocol="udp"),
    )
    with logged() as lines:
        async with joined(certs, open_ports=ports) as (gateway, _):
            for _ in range(5):
                await gateway.received(PORT_FORWARD, b"")  # answers once more
            user = await gateway.open(f"127.0.0.1:{refused_port}")
            await eventually(lambda: gateway.answers == [user.id])  # after all that
            assert [found for found in lines if "open_ports" in found] == [line]


async def test_reconnects_with_a_new_id(certs: Certs) -> None:
    sessions: list[GoGateway] = []
    async with go_gateway(certs, sessions.append) as port:
        agent = Agent(agent_options(certs, port))
        await agent.start()
        await eventually(lambda: sessions)
        await sessions[0].close()
        await eventually(lambda: len(sessions) == 2)
        assert sessions[0].headers["x-client-id"] != sessions[1].headers["x-client-id"]
        await agent.close()


async def test_agent_that_stops_during_the_upgrade_leaves_no_socket(certs: Certs) -> None:
    async def say_nothing(connection: Tcp) -> None:
        tls = Tls(connection, server_context(certs), server_side=True)
        await tls.handshake()
        await tls.until(b"\r\n\r\n")
        asked.set()
        await connection.rest()

    asked = asyncio.Event()
    async with serving(say_nothing) as gateway:
        agent = Agent(agent_options(certs, gateway.port))
        await agent.start()
        await asked.wait()
        await agent.close()
        await eventually(lambda: not agent.open_sessions)
        gc.collect()  # a socket that is left behind is a warning


async def test_refused_agent_backs_off(certs: Certs) -> None:
    with logged() as lines:
        async with go_gateway(certs, lambda _: None, refusal="group ID is empty") as port:
            agent = Agent(agent_options(certs, port))
            await agent.start()
            await eventually(lambda: any("'group ID is empty'" in line for line in lines))
            await asyncio.sleep(0.3)
            await agent.close()
    assert sum("group ID is empty" in line for line in lines) == 1


async def test_slow_target_does_not_stop_other_streams(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anyproxy, "PAUSE_TIME", 0.3)
    stopped = asyncio.Event()

    async def stop(connection: Tcp) -> None:
        await stopped.wait()

    async with serving(stop) as slow, serving(echo) as quick, joined(certs) as (gateway, _):
        blocked = await gateway.open(f"127.0.0.1:{slow.port}")
        user = await gateway.open(f"127.0.0.1:{quick.port}")
        for _ in range(20_000_000 // PIECE):
            await blocked.send(bytes(PIECE))
        await user.send(b"quick")
        assert await user.read() == b"quick"
        assert not gateway.socket.is_zombie
        stopped.set()
