"""microsocks, a SOCKS5 server, between our clients and our servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtt.modes import MODES
from tests.real.checks import http
from tests.real.tunnels import start_client, start_server
from tests.support.certs import Certs
from tests.support.processes import Processes, accepts, eventually, free_port
from tests.support.programs import require_program

LOGIN = ("-u", "user", "-P", "pass-word")


def start_microsocks(processes: Processes, *options: str) -> int:
    """Start a microsocks; returns its port."""
    port = free_port()
    processes.start(require_program("microsocks"), "-i", "127.0.0.1", "-p", str(port), *options)
    eventually(lambda: accepts(port), "microsocks listens")
    return port


@pytest.mark.parametrize("mode", MODES)
def test_tunnel_through_microsocks(
    mode: str, processes: Processes, certs: Certs, tmp_path: Path
) -> None:
    options = MODES[mode].command_line("password")
    proxy_port = start_microsocks(processes, *LOGIN)

    def route(destination: str) -> int:
        _, port = start_server(processes, certs, destination, *options)
        way = f"socks5://user:pass%2Dword@127.0.0.1:{proxy_port}"
        return start_client(processes, certs, port, *options, "-proxy", way)[1]

    http(route, tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (LOGIN, r"the proxy \S+ wants a user and a password; give them in -proxy"),
        ((), r"through the proxy \S+: connection refused"),
    ],
)
def test_refusals_of_microsocks(
    options: tuple[str, ...], reason: str, processes: Processes, certs: Certs
) -> None:
    way = f"socks5://127.0.0.1:{start_microsocks(processes, *options)}"
    client, _ = start_client(processes, certs, free_port(), "-preconnect", "1", "-proxy", way)
    client.expect(reason)
