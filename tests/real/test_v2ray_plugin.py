"""Debian's v2ray-plugin at the other end of our tunnel."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real.checks import Route, destination_speaks_and_closes, http, small_messages
from tests.real.destinations import SOCKET_TIMEOUT, Destination
from tests.real.tunnels import start_server
from tests.support.certs import Certs
from tests.support.processes import Processes, free_port
from tests.support.programs import require_program

PATH = "/tunnel"
def start_plugin(processes: Processes, *options: str, port: int | None = None) -> int:
    """Start a v2ray-plugin; returns the port that it listens on."""
    port = port or free_port()
    plugin = processes.start(
        require_program("ss-v2ray-plugin"), "-localPort", str(port), "-path", PATH, *options
    )
    plugin.expect("started")
    return port


def start_client(processes: Processes, certs: Certs, server_port: int, mux: int) -> int:
    """A v2ray-plugin as the client of a server; returns its port for applications."""
    return start_plugin(
        processes, "-tls", "-host", certs.name, "-cert", certs.ca, "-mux", str(mux),
        "-remotePort", str(server_port),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mux", "check"),
    [
        (0, small_messages),
        (0, destination_speaks_and_closes),
        (1, small_messages),
        (8, http),
        (8, destination_speaks_and_closes),
    ],
)
def test_plugin_is_a_client(
    mux: int,
    check: Callable[[Route, Path], None],
    processes: Processes,
    certs: Certs,
    tmp_path: Path,
) -> None:
    def route(destination: str) -> int:
        options = "-wss", "-wss-path", PATH
        _, port = start_server(processes, certs, destination, *options)
        return start_client(processes, certs, port, mux)

    check(route, tmp_path)


def test_streams_of_the_plugin_share_a_connection(processes: Processes, certs: Certs) -> None:
    with Destination(_echo_once) as destination:
        server, server_port = start_server(
            processes, certs, destination.address, "-wss", "-wss-path", PATH, "-max-conns", "2",
        )  # fmt: skip
        port = start_client(processes, certs, server_port, mux=8)
        with _ask(port, b"one") as first:
            assert first.recv(3) == b"one"
            with _ask(port, b"two"):
                server.expect("a tunnel was refused: -max-conns 2 is reached")


def _echo_once(connection: socket.socket) -> None:
    connection.sendall(connection.recv(100))
    connection.recv(1)


def _ask(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=SOCKET_TIMEOUT)
    connection.sendall(data)
    return connection
