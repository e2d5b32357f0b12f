"""Agents that are the Go program, at our gateway."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from anyproxy import ports
from anyproxy.gateway import Gateway
from mtt.users.user import User
from mtt.wire.anyproxy import (
    FROM_GATEWAY,
    Close,
    Connect,
    ConnectResponse,
    ForwardedPort,
    PortForward,
    PortForwardResponse,
    StreamData,
    parse,
)
from mtt.wire.websocket import BINARY, Decoder, frame
from tests.anyproxy.forwarding import opened, to_tcp
from tests.anyproxy.serving import agent_for, gateway_for, http_port, socks_port
from tests.proxy.clients import reply5, socks5_login
from tests.support.certs import Certs
from tests.support.tunnels import Tcp, connect, eventually, port_of
from tests.support.vectors import handshake

LOGIN = User("grp", "grppass")


class GoAgent:
    """Speaks as the Go program's agent does; the test decides what."""

    def __init__(self, connection: Tcp) -> None:
        self.connection = connection
        self._decoder = Decoder(masked=False)
        self._messages: list[object] = []

    async def say(self, message: bytes) -> None:
        """Send a message in frames of 4096 bytes, the last one with FIN."""
        pieces = [message[at : at + 4096] for at in range(0, len(message), 4096)] or [b""]
        for number, piece in enumerate(pieces):
            whole = bytearray(frame(BINARY if not number else 0, piece, b"\1\2\3\4"))
            if number < len(pieces) - 1:
                whole[0] &= 0x7F
            await self.connection.send(bytes(whole))

    async def heard(self) -> object:
        """The next message of the gateway; it sends each in one frame."""
        while not self._messages:
            data = await self.connection.read()
            assert data, "the gateway has ended the session"
            self._messages += [
                parse(bytes(payload), FROM_GATEWAY)
                for opcode, payload in self._decoder.feed(data)
                if opcode == BINARY
            ]
        return self._messages.pop(0)


@contextlib.asynccontextmanager
async def go_agent(gateway: Gateway) -> AsyncIterator[GoAgent]:
    """An agent that joins with a recorded upgrade request."""
    head, _ = handshake("p-anyproxy-http-connect")
    async with await connect(port_of(gateway)) as connection:
        await connection.send(head)
        answer = await connection.until(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"Protocol" not in answer.partition(b"\r\n")[2]
        yield GoAgent(connection)


async def test_user_reaches_a_target_through_a_go_agent(certs: Certs) -> None:
    async with gateway_for(certs, tls=None) as gateway, go_agent(gateway) as agent:
        said, answer = socks5_login(80, LOGIN)
        async with await connect(socks_port(gateway)) as user:
            await user.send(said + b"early")
            asked = await agent.heard()
            assert isinstance(asked, Connect)
            assert (asked.network, asked.address) == ("tcp", "127.0.0.1:80")
            await agent.say(ConnectResponse(asked.id, True).encode())
            assert await user.exactly(len(answer)) == answer
            assert await agent.heard() == StreamData(asked.id, b"early")
            await agent.say(StreamData(asked.id, bytes(10_000)).encode())
            assert await user.exactly(10_000) == bytes(10_000)
            await agent.say(Close(asked.id).encode())
            assert await user.rest() == b""


async def test_reason_of_a_go_agent_reaches_the_user(certs: Certs) -> None:
    async with (
        gateway_for(certs, tls=None) as gateway,
        go_agent(gateway) as agent,
        await connect(socks_port(gateway)) as user,
    ):
        await user.send(socks5_login(1, LOGIN)[0])
        asked = await agent.heard()
        assert isinstance(asked, Connect)
        text = "dial tcp 127.0.0.1:1: connect: connection refused"
        await agent.say(ConnectResponse(asked.id, False, text).encode())
        assert await user.rest() == b"\5\2\1\0" + reply5(5)
        closed = await agent.heard()
        assert isinstance(closed, Close)
        assert closed.id == asked.id  # or the Go program keeps the stream


async def test_port_of_a_go_agent_is_forwarded(certs: Certs) -> None:
    async with gateway_for(certs, tls=None) as gateway, go_agent(gateway) as agent:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            number = probe.getsockname()[1]
        wanted = (ForwardedPort(number, 22, "192.0.2.9", "tcp"),)
        await agent.say(PortForward("c1", wanted).encode())
        assert await agent.heard() == PortForwardResponse(True)
        async with await connect(number) as user:
            asked = await agent.heard()
            assert isinstance(asked, Connect)
            assert asked.address == "192.0.2.9:22"
            await agent.say(ConnectResponse(asked.id, True).encode())
            await agent.say(StreamData(asked.id, b"SSH-2.0").encode())
            assert await user.exactly(7) == b"SSH-2.0"


async def test_conflict_of_a_go_agents_port_is_named(certs: Certs) -> None:
    async with gateway_for(certs, tls=None) as gateway, go_agent(gateway) as agent:
        taken = http_port(gateway)
        await agent.say(PortForward("c1", (ForwardedPort(taken, 22, "a", "tcp"),)).encode())
        answer = await agent.heard()
        assert isinstance(answer, PortForwardResponse)
        assert not answer.ok
        assert f"port {taken} (tcp): " in answer.error


async def test_go_agent_gets_its_port_when_another_group_gives_it_up(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Go program asks once, so the gateway tries again for it."""
    monkeypatch.setattr(ports, "HOLD_TIME", 0.05)
    async with (
        gateway_for(certs, tls=None) as gateway,
        agent_for(certs, gateway, tls=None, open_ports=(to_tcp(22),)),
        go_agent(gateway) as agent,
    ):
        number = await opened(gateway)
        wanted = PortForward("c1", (ForwardedPort(number, 22, "", "tcp"),)).encode()
        await agent.say(wanted)
        answer = await agent.heard()
        assert isinstance(answer, PortForwardResponse)
        assert f"port {number} (tcp) is in use by another group" in answer.error
        (group,) = [each for each in gateway.groups if each.name != "grp"]
        for other in group.agents.values():
            gateway.ports.release(other)
        await eventually(lambda: [port.group for port in gateway.ports] == ["grp"])
        await agent.say(wanted)  # once more: it misbehaves
        with contextlib.suppress(ConnectionResetError):
            assert await agent.connection.rest() == b""
        await eventually(lambda: gateway.groups.get("grp") is None)


async def test_go_agent_that_leaves_ends_its_users(certs: Certs) -> None:
    async with gateway_for(certs, tls=None) as gateway:
        async with go_agent(gateway) as agent:
            said, answer = socks5_login(80, LOGIN)
            user = await connect(socks_port(gateway))
            await user.send(said)
            asked = await agent.heard()
            assert isinstance(asked, Connect)
            await agent.say(ConnectResponse(asked.id, True).encode())
            assert await user.exactly(len(answer)) == answer
        async with user:
            with contextlib.suppress(ConnectionResetError):
                assert await user.rest() == b""
        await eventually(lambda: gateway.groups.get("grp") is None)


async def test_garbage_of_a_go_agent_ends_its_session(certs: Certs) -> None:
    async with gateway_for(certs, tls=None) as gateway, go_agent(gateway) as agent:
        await agent.say(b"\x01\xff")
        with contextlib.suppress(ConnectionResetError):
            await agent.connection.rest()
        await eventually(lambda: gateway.groups.get("grp") is None)
