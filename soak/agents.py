"""A gateway and its agents as processes, and the ways of their users."""

from __future__ import annotations

import contextlib
import random
import re
import socket
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.processes import free_port
from mtt.outcome import Outcome
from mtt.wire import addresses, httpproxy, socks
from soak.programs import Program, Programs
from soak.talk import LOOPBACK

GROUP, PASSWORD = "soak", "a password of the soak"
# What a SOCKS5 server answers to `socks_login()`.
SOCKS_WELCOME = b"\5\2\1\0"
_ANY = addresses.encode("0.0.0.0", 0)

# Logged by an agent for each of its ports.
FORWARDED = re.compile(rb"is forwarded")
_PROXIES = re.compile(rb"HTTP proxy on 127\.0\.0\.1:(\d+), SOCKS5 proxy on 127\.0\.0\.1:(\d+)")
_CONNECTED = re.compile(rb"connected to the gateway")

Configuration = dict[str, Any]


class Way(NamedTuple):
    """How applications reach their destination."""

    name: str
    port: int
    opening: tuple[bytes, bytes] = (b"", b"")


@dataclass
class Gateway:
    """A gateway and those of its agents that stay."""

    gateway: Program
    http: int
    socks5: int
    agents: tuple[Program, ...] = ()
    mode: str = "gateway"

    @property
    def programs(self) -> tuple[Program, ...]:
        return self.gateway, *self.agents

    def check(self) -> None:
        for program in self.programs:
            program.check()

    def ways(self, destination: int) -> list[Way]:
        """Through the proxies, to a port of this machine."""
        return [
            Way("CONNECT", self.http, connect(destination)),
            Way("SOCKS5", self.socks5, socks5(destination)),
        ]


def connect(port: int, group: str = GROUP) -> tuple[bytes, bytes]:
    """What a user of the HTTP proxy says to reach a port of this machine, and the answer."""
    target = b"%b:%d" % (LOOPBACK.encode(), port)
    login = b64encode(f"{group}:{PASSWORD}".encode())
    head = b"CONNECT %b HTTP/1.1\r\nHost: %b\r\nProxy-Authorization: Basic %b\r\n\r\n"
    return head % (target, target, login), httpproxy.CONNECTED


def socks5(port: int, group: str = GROUP) -> tuple[bytes, bytes]:
    """The same with SOCKS5."""
    request = b"\5\1\0" + addresses.encode(LOOPBACK, port)
    return socks_login(group) + request, SOCKS_WELCOME + socks.reply5(Outcome.SUCCEEDED)


def socks_login(group: str = GROUP) -> bytes:
    """A SOCKS5 client's methods and login (RFC 1929)."""
    return b"\5\1\2\1%c%b%c%b" % (len(group), group.encode(), len(PASSWORD), PASSWORD.encode())


def associate(group: str = GROUP) -> bytes:
    """What a SOCKS5 client says to get a UDP association; an address ends the answer."""
    return socks_login(group) + b"\5\3\0" + _ANY


def gateway_configuration(
    programs: Programs, ports: list[int], **groups: Configuration
) -> Configuration:
    """`ports`: those that GROUP may have forwarded; `groups`: other ones."""
    return {
        "gateway": {
            "listen_addr": f"{LOOPBACK}:0",
            "tls_cert": programs.certs.cert,
            "tls_key": programs.certs.key,
            "proxy": {
                "http": {"listen_addr": f"{LOOPBACK}:0"},
                "socks5": {"listen_addr": f"{LOOPBACK}:0"},
            },
            "groups": {GROUP: {"password": PASSWORD, "ports": ports}, "*": {"ports": []}, **groups},
        }
    }


def agent_configuration(
    programs: Programs, name: str, gateway: int, **more: Any
) -> Configuration:
    return {
        "client": {
            "id": name,
            "group_id": GROUP,
            "group_password": PASSWORD,
            "gateway": {
                "addr": f"wss://{LOOPBACK}:{gateway}",
                "ca": programs.certs.ca,
                "server_name": programs.certs.name,
            },
            **more,
        }
    }


async def start_gateway(programs: Programs, configuration: Configuration) -> Gateway:
    """Raises Broken."""
    gateway = programs.configured("anyproxy-gateway", configuration)
    await gateway.started()
    found = await gateway.logged(_PROXIES)
    return Gateway(gateway, int(found[1]), int(found[2]))


async def start_agent(programs: Programs, configuration: Configuration) -> Program:
    """An agent that has joined, at least once. Raises Broken."""
    agent = programs.configured("anyproxy-client", configuration)
    await agent.logged(_CONNECTED)
    return agent


def forwarded(port: int, protocol: str, target: int) -> Configuration:
    """An entry of open_ports."""
    return {
        "remote_port": port, "local_host": LOOPBACK, "local_port": target, "protocol": protocol,
    }  # fmt: skip


def free_ports(count: int) -> list[int]:
    """Different ports on which nothing listens."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return sorted(found)


@contextlib.contextmanager
def udp_socket() -> Iterator[socket.socket]:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind((LOOPBACK, 0))
        yield sock


def random_loopback(rng: random.Random) -> str:
    """An address of this machine: a gateway blocks addresses that show wrong passwords."""
    return f"127.{rng.randrange(1, 255)}.{rng.randrange(256)}.{rng.randrange(1, 255)}"
