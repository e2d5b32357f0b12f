"""Debian's v2ray-plugin at the other end of our tunnel."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shlex
import socket
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.real import checks
from tests.real.checks import (
    Route,
    destination_speaks_and_closes,
    reply_after_the_end,
    small_messages,
)
from tests.real.destinations import SOCKET_TIMEOUT, Destination
from tests.real.tunnels import start_server
from tests.support.certs import Certs
from tests.support.processes import Processes, free_port, listening
from tests.support.programs import require_program

PATH = "/p"
DOCUMENT = (Path(__file__).parents[2] / "docs/v2ray-plugin.md").read_text()


def lines_of(heading: str) -> list[list[str]]:
    """The command lines in a section of the document."""
    section = DOCUMENT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [shlex.split(line) for line in re.findall(r"^    (.*)", section, re.M)]


def as_here(line: list[str], certs: Certs, **ports: int) -> list[str]:
    """A command line of the document with this machine's addresses, ports and files."""
    local, remote = ports["local"], ports["remote"]
    values = {
        "-b": f"127.0.0.1:{local}", "-d": f"127.0.0.1:{remote}", "-s": f"127.0.0.1:{remote}",
        "-localAddr": "127.0.0.1", "-localPort": str(local),
        "-remoteAddr": "127.0.0.1", "-remotePort": str(remote),
        "-host": certs.name, "-cert": certs.cert, "-key": certs.key,
    }  # fmt: skip
    options = [values.get(before, word) for before, word in pairwise(line)]
    if line[0] == "mtt-client":
        return [*options, "-n", certs.name, "-ca", certs.ca]
    return options if "-cert" in line else [*options, "-cert", certs.ca]


def start(processes: Processes, line: list[str], certs: Certs, remote: int) -> int:
    """Run a command line of the document; returns the port that it listens on."""
    local = free_port()
    options = as_here(line, certs, local=local, remote=remote)
    if line[0] == "ss-v2ray-plugin":
        processes.start(require_program(line[0]), *options).expect("started")
    else:
        listening(processes.command(line[0], *options))
    return local


def start_client(processes: Processes, certs: Certs, server_port: int, mux: int) -> int:
    """A v2ray-plugin as the client of a server; returns its port for applications."""
    line = [*lines_of("Server for v2ray-plugin")[1], "-mux", str(mux)]
    return start(processes, line, certs, server_port)


@pytest.mark.parametrize(
    ("mux", "check"),
    [
        (0, small_messages),
        (0, destination_speaks_and_closes),
        (1, small_messages),
        (8, checks.http),
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
        server, *_ = lines_of("Server for v2ray-plugin")
        port = start(processes, server, certs, int(destination.rpartition(":")[2]))
        return start_client(processes, certs, port, mux)

    check(route, tmp_path)


@pytest.mark.parametrize(
    ("mux", "check"),
    [
        (True, small_messages),
        (True, checks.http),
        (True, reply_after_the_end),
        (True, destination_speaks_and_closes),
        (False, small_messages),
        (False, checks.http),
        (False, destination_speaks_and_closes),
    ],
)
def test_plugin_is_a_server(
    mux: bool,
    check: Callable[[Route, Path], None],
    processes: Processes,
    certs: Certs,
    tmp_path: Path,
) -> None:
    def route(destination: str) -> int:
        lines = lines_of("Client of a v2ray-plugin server")
        server, client = lines[:2] if mux else lines[2:]
        port = start(processes, server, certs, int(destination.rpartition(":")[2]))
        return start(processes, client, certs, port)

    check(route, tmp_path)


def test_document_names_both_clients() -> None:
    with_mux, without = lines_of("Server for v2ray-plugin")[1:]
    assert without == [*with_mux, "-mux", "0"]


@pytest.mark.parametrize("mux", [0, 8])
def test_user_of_the_multi_user_server_has_the_plugin(
    mux: int, processes: Processes, certs: Certs, tmp_path: Path
) -> None:
    def route(destination: str) -> int:
        server = processes.command(
            "mtt-mu-server", "-b", "127.0.0.1:0", "-c", "127.0.0.1:0",
            "-cert", certs.cert, "-key", certs.key,
        )  # fmt: skip
        controller = server.expect(r"controller on (127\.0\.0\.1:[0-9]+)")[1]
        user = {"path": PATH, "dst": destination}
        with contextlib.closing(http.client.HTTPConnection(controller)) as connection:
            connection.request("POST", "/", json.dumps({"opt": 1, "args_bunch": [user]}))
            assert connection.getresponse().read() == b'{"res":1}'
        return start_client(processes, certs, listening(server)[1], mux)

    small_messages(route, tmp_path)


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
