"""v2ray-plugin as the client of our server."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.checks import small_messages
from tests.real.destinations import SOCKET_TIMEOUT, Destination
from tests.real.tunnels import start_server
from tests.support.processes import Process, Processes, free_port
from tests.support.programs import require_program

NAMED = (
    r"127\.0\.0\.1:[0-9]+: (smux: version 0 instead of 1: )?"
    r"the client is a v2ray-plugin with its mux.* set mux=0 in the client"
)


def start_plugin(processes: Processes, server_port: int, mux: int) -> int:
    """A v2ray-plugin that speaks WebSocket without TLS to the server; returns its port."""
    port = free_port()
    plugin = processes.start(
        require_program("ss-v2ray-plugin"),
        *("-localAddr", "127.0.0.1", "-localPort", str(port)),
        *("-remoteAddr", "127.0.0.1", "-remotePort", str(server_port), "-mux", str(mux)),
    )
    plugin.expect("started")
    return port


@pytest.fixture
def destination() -> Iterator[Destination]:
    with Destination(lambda connection: connection.recv(1)) as running:
        yield running


@pytest.mark.parametrize("mode", [["-wss"], ["-wss", "-mux"]], ids=["wss", "wss+mux"])
def test_a_client_with_mux_is_named_in_the_log(
    mode: list[str], processes: Processes, destination: Destination
) -> None:
    server, server_port = start_server(processes, None, destination.address, *mode)
    port = start_plugin(processes, server_port, mux=1)
    with socket.create_connection(("127.0.0.1", port), timeout=SOCKET_TIMEOUT) as application:
        application.sendall(b"hello")
        server.expect(NAMED)


def test_a_client_without_mux_works(processes: Processes, tmp_path: Path) -> None:
    servers: list[Process] = []

    def route(destination: str) -> int:
        server, server_port = start_server(processes, None, destination, "-wss")
        servers.append(server)
        return start_plugin(processes, server_port, mux=0)

    small_messages(route, tmp_path)
    assert not re.search("v2ray-plugin", servers[0].output)
