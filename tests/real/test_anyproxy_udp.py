"""dig asks a DNS server behind an agent, over UDP through the SOCKS5 proxy."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

from mtt.users.user import User
from tests.anyproxy.serving import GROUP, PASSWORD
from tests.proxy.clients import reply5, socks5_login
from tests.real.datagrams import Address, echo, names, udp_server
from tests.real.destinations import SOCKET_TIMEOUT
from tests.real.gateways import Gateway, start_agent, start_gateway
from tests.support.certs import Certs
from tests.support.processes import Processes, run
from tests.support.programs import require_program

LOGIN = User(GROUP, PASSWORD)
UDP_ASSOCIATE = b"\5\3\0\1" + bytes(6)


@contextlib.contextmanager
def association(gateway: Gateway) -> Iterator[socket.socket]:
    """A UDP socket connected to the relay of a new association."""
    said = socks5_login(0, LOGIN)[0]
    with (
        socket.create_connection(("127.0.0.1", gateway.socks5), SOCKET_TIMEOUT) as control,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as relayed,
    ):
        control.sendall(said[: -len(UDP_ASSOCIATE)] + UDP_ASSOCIATE)
        answer = control.makefile("rb").read(14)
        assert answer[:8] == b"\5\2\1\0" + reply5(0)[:4]
        relayed.settimeout(SOCKET_TIMEOUT)
        relayed.connect((socket.inet_ntoa(answer[8:12]), int.from_bytes(answer[12:14], "big")))
        yield relayed


def test_dig(processes: Processes, certs: Certs, tmp_path: Path) -> None:
    gateway = start_gateway(processes, certs, tmp_path)
    start_agent(processes, certs, tmp_path, gateway)
    with udp_server(names("192.0.2.7", "2001:db8::7")) as dns, association(gateway) as relayed:
        header = b"\0\0\0\3\x09localhost" + dns.to_bytes(2, "big")

        def relay(server: socket.socket, query: bytes, sender: Address) -> None:
            """What dig would do if it knew SOCKS5."""
            relayed.send(header + query)
            data = relayed.recv(65536)
            assert data[:10] == b"\0\0\0\1\x7f\0\0\1" + dns.to_bytes(2, "big")
            server.sendto(data[10:], sender)

        with udp_server(relay) as port:
            dig = (require_program("dig"), "@127.0.0.1", "-p", str(port), "+short", "+noedns")
            for kind, expected in (("A", b"192.0.2.7\n"), ("AAAA", b"2001:db8::7\n")):
                assert run(*dig, "nas.example", kind) == expected


def test_many_datagrams_of_every_size(processes: Processes, certs: Certs, tmp_path: Path) -> None:
    gateway = start_gateway(processes, certs, tmp_path)
    start_agent(processes, certs, tmp_path, gateway)

    with udp_server(echo) as port, association(gateway) as relayed:
        header = b"\0\0\0\1\x7f\0\0\1" + port.to_bytes(2, "big")
        for size in (1, 2, 511, 512, 1200, 1472, 1473, 9000, 40_000, 65_000):
            message = header + size.to_bytes(4, "big") * (size // 4) + bytes(size % 4) + b"!"
            relayed.send(message)
            assert relayed.recv(65536) == message
