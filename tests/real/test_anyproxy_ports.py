"""Forwarded ports with real programs: dig, curl, nginx that reads the PROXY protocol, signals."""

from __future__ import annotations

import signal
import socket
import threading
from pathlib import Path

import pytest

from tests.net.fake_dns import holding
from tests.real.datagrams import Address, udp_server
from tests.real.destinations import SOCKET_TIMEOUT, Destination, digest, echo, payload, read_to_end
from tests.real.gateways import start_agent, start_gateway
from tests.real.nginx import start_nginx
from tests.support.certs import Certs
from tests.support.processes import Process, Processes, free_port, run
from tests.support.programs import require_program

# Tells the client the address that the PROXY protocol names.
NGINX = """
http {{
    access_log off;
    {paths}
    server {{
        listen 127.0.0.1:{port} proxy_protocol;
        return 200 "$proxy_protocol_addr $proxy_protocol_server_port";
    }}
}}
"""


def forwarded(port: int, target: int, **keys: str) -> dict[str, object]:
    return {"remote_port": port, "local_port": target, **keys}


def wait_for(agent: Process, port: int) -> None:
    agent.expect(rf"port 127.0.0.1:{port} \(\w+\) of \S+ is forwarded to")


def user_of(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SOCKET_TIMEOUT)


def test_dig(processes: Processes, certs: Certs, tmp_path: Path) -> None:
    handler = holding("192.0.2.7", "2001:db8::7")

    def answer(server: socket.socket, query: bytes, sender: Address) -> None:
        for message in handler(query, False):
            server.sendto(message, sender)

    port = free_port()
    gateway = start_gateway(processes, certs, tmp_path)
    with udp_server(answer) as dns:
        ports = [forwarded(port, dns, protocol="udp")]
        wait_for(start_agent(processes, certs, tmp_path, gateway, open_ports=ports), port)
        dig = (require_program("dig"), "@127.0.0.1", "-p", str(port), "+short", "+noedns")
        for kind, expected in (("A", b"192.0.2.7\n"), ("AAAA", b"2001:db8::7\n")):
            assert run(*dig, "nas.example", kind) == expected


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nginx_sees_the_user(
    processes: Processes, certs: Certs, tmp_path: Path, version: str
) -> None:
    port, target = free_port(), free_port()
    start_nginx(processes, tmp_path, NGINX, port=target)
    gateway = start_gateway(processes, certs, tmp_path)
    ports = [forwarded(port, target, proxy_protocol=version)]
    wait_for(start_agent(processes, certs, tmp_path, gateway, open_ports=ports), port)
    curl = (require_program("curl"), "--silent", "--fail", "--interface", "127.0.0.7")
    assert run(*curl, f"http://127.0.0.1:{port}/") == f"127.0.0.7 {port}".encode()


def test_agent_that_is_stopped_finishes_and_another_one_takes_over(
    processes: Processes, certs: Certs, tmp_path: Path
) -> None:
    port = free_port()
    gateway = start_gateway(processes, certs, tmp_path)
    goes_on = threading.Event()

    def slowly(connection: socket.socket) -> None:
        connection.sendall(payload()[: 1 << 20])
        goes_on.wait(SOCKET_TIMEOUT)
        connection.sendall(payload()[1 << 20 :])

    with Destination(slowly) as first, Destination(echo) as second:
        one = start_agent(
            processes, certs, tmp_path, gateway, name="one",
            open_ports=[forwarded(port, first.port)],
        )  # fmt: skip
        wait_for(one, port)
        start_agent(
            processes, certs, tmp_path, gateway, name="two",
            open_ports=[forwarded(port, second.port)],
        ).expect("is forwarded to another agent")  # fmt: skip
        with user_of(port) as download:
            begun = download.recv(1)
            one.send(signal.SIGTERM)
            gateway.process.expect("agent 'one-r0' of group .* is leaving")
            with user_of(port) as user:
                user.sendall(b"hello")
                assert user.recv(100) == b"hello"
            assert one.running
            goes_on.set()
            assert digest(begun + read_to_end(download)) == digest(payload())
        assert one.wait() == 0


def test_users_do_not_notice_that_an_agent_is_started_again(
    processes: Processes, certs: Certs, tmp_path: Path
) -> None:
    port = free_port()
    gateway = start_gateway(processes, certs, tmp_path)
    with Destination(echo) as destination:
        ports = [forwarded(port, destination.port)]
        agent = start_agent(processes, certs, tmp_path, gateway, open_ports=ports)
        wait_for(agent, port)
        agent.stop(signal.SIGKILL)
        gateway.process.expect("agent 'agent-r0' left group")
        with user_of(port) as user:
            user.sendall(b"hello")
            start_agent(processes, certs, tmp_path, gateway, times=2, open_ports=ports)
            assert user.recv(100) == b"hello"
