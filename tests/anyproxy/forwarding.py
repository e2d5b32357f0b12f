"""Forwarded ports for tests: agents that announce them, and their users."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any

from anyproxy.agent import Agent
from anyproxy.forwarded import ForwardedPort
from anyproxy.gateway import Gateway
from anyproxy.options import TCP, UDP, OpenPort
from tests.anyproxy.serving import agent_for, gateway_for
from tests.support.certs import Certs
from tests.support.tunnels import SOON, Tcp, eventually

# What agents ask for: as in a message, and as options.
PORT: dict[str, Any] = {"port": 0, "protocol": "tcp", "host": "127.0.0.1", "target_port": 22}
SSH = OpenPort(remote_port=2222, local_host="127.0.0.1", local_port=22)
DNS = OpenPort(
    remote_port=5353,
    local_host="dns.example",
    local_port=53,
    protocol="udp",
    allow_from=(ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("2001:db8::/32")),
)


def to_tcp(target: int, port: int = 0, **changes: Any) -> OpenPort:
    """A TCP port of the gateway (0: any), forwarded to a port of this machine."""
    return OpenPort(remote_port=port, local_host="127.0.0.1", local_port=target, **changes)


def to_udp(target: int, port: int = 0, **changes: Any) -> OpenPort:
    """A UDP port of the gateway (0: any), forwarded to a port of this machine."""
    return to_tcp(target, port, protocol=UDP, **changes)


def ports_of(gateway: Gateway, protocol: str = TCP) -> list[ForwardedPort]:
    """The gateway's open ports of a protocol."""
    return [port for port in gateway.ports if port.protocol == protocol]


@contextlib.asynccontextmanager
async def forwarding(certs: Certs, *wanted: OpenPort, **changes: Any) -> AsyncIterator[Gateway]:
    """A gateway whose only agent wants these ports; `changes` are those of the gateway."""
    async with (
        gateway_for(certs, **changes) as gateway,
        agent_for(certs, gateway, open_ports=wanted),
    ):
        if wanted:
            await eventually(lambda: list(gateway.ports))
        yield gateway


async def opened(gateway: Gateway, protocol: str = TCP) -> int:
    """The number of the gateway's only port of a protocol, once it is open."""
    await eventually(lambda: ports_of(gateway, protocol))
    (port,) = ports_of(gateway, protocol)
    return port.number


async def dropped(agent: Agent) -> None:
    """Cut the agent's sessions, as the network does; it will connect again."""
    for session in list(agent.open_sessions):
        session.lower.bottom.abort()


async def received(sock: socket.socket) -> tuple[bytes, Any]:
    """The next datagram and its source. (uvloop has no `sock_recvfrom`.)"""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return sock.recvfrom(65536)
        except BlockingIOError:
            readable = asyncio.Event()
            loop.add_reader(sock, readable.set)
            try:
                await readable.wait()
            finally:
                loop.remove_reader(sock)


class Udp:
    """One end of UDP on this machine."""

    def __init__(self, to: int = 0, host: str = "127.0.0.1") -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind((host, 0))
        if to:
            self.sock.connect(("127.0.0.1", to))  # takes answers from there only

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    def send(self, data: bytes, to: Any = None) -> None:
        if to is None:
            self.sock.send(data)
        else:
            self.sock.sendto(data, to)

    async def receive(self) -> tuple[bytes, Any]:
        async with asyncio.timeout(SOON):
            return await received(self.sock)

    async def ask(self, data: bytes) -> bytes:
        self.send(data)
        return (await self.receive())[0]

    def __enter__(self) -> Udp:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


@contextlib.asynccontextmanager
async def udp_echo() -> AsyncIterator[int]:
    """A port that answers each datagram with "re: " and the datagram."""

    async def serve(there: Udp) -> None:
        while True:
            data, source = await received(there.sock)
            there.send(b"re: " + data, source)

    with Udp() as there:
        task = asyncio.create_task(serve(there))
        try:
            yield there.port
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def is_refused(user: Tcp) -> bool:
    """Whether a connection ends without data."""
    try:
        return not await user.read()
    except ConnectionResetError:
        return True
