"""UDP sockets of servers: answers come from the address that a datagram was sent to."""

from __future__ import annotations

import socket

import pytest

from mtt.address import Endpoint
from mtt.net.listen import bind_udp
from mtt.net.udp_server import UdpServerSocket
from tests.support.loopback import linux_only, needs_ipv6


def exchange(bound_to: str, asked: str) -> str:
    """The address that the answer comes from, when `asked` is sent a datagram."""
    (sock,) = bind_udp(Endpoint((bound_to,), 0))
    server = UdpServerSocket(sock)
    with socket.socket(socket.AF_INET6 if ":" in asked else socket.AF_INET, socket.SOCK_DGRAM) as c:
        c.settimeout(5)
        c.sendto(b"question", (asked, server.name[1]))
        payload, source, control = server.receive()
        assert payload == b"question"
        server.send(b"answer", source, control)
        answer, (host, port, *_) = c.recvfrom(100)
        assert (answer, port) == (b"answer", server.name[1])
        with pytest.raises(BlockingIOError):
            server.receive()
    server.close()
    return str(host)


@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2"])
def test_one_address(asked: str) -> None:
    assert exchange(asked, asked) == asked


@linux_only
@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2"])
def test_all_ipv4_addresses(asked: str) -> None:
    assert exchange("0.0.0.0", asked) == asked


@linux_only
@needs_ipv6
@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.2", "::1"])
def test_all_addresses(asked: str) -> None:
    assert exchange("", asked) == asked
