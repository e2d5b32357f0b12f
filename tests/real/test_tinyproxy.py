"""tinyproxy between our clients and our servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mtt.modes import MODES
from tests.real.checks import Route, half_close, http
from tests.real.tunnels import start_client, start_server
from tests.support.certs import Authority, Certs, pem
from tests.support.processes import ROOT, Process, Processes, command, free_port, listening
from tests.support.programs import require_program

CONFIG = """
Port {port}
Listen 127.0.0.1
Timeout 60
LogLevel Info
{more}
"""

LOGIN = "BasicAuth user pass-word"


def start_tinyproxy(processes: Processes, directory: Path, more: str = "") -> tuple[Process, int]:
    """Start a tinyproxy; returns it and its port."""
    port = free_port()
    path = directory / "tinyproxy.conf"
    path.write_text(CONFIG.format(port=port, more=more))
    process = processes.start(require_program("tinyproxy"), "-d", "-c", path)
    process.expect("Accepting connections")
    return process, port


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("check", [http, half_close], ids=["http", "half-close"])
def test_tunnel_through_tinyproxy(
    check: Callable[[Route, Path], None],
    mode: str,
    processes: Processes,
    certs: Certs,
    tmp_path: Path,
) -> None:
    options = MODES[mode].command_line("password")
    proxy, proxy_port = start_tinyproxy(processes, tmp_path, LOGIN)

    def route(destination: str) -> int:
        _, port = start_server(processes, certs, destination, *options)
        way = f"http://user:pass%2Dword@127.0.0.1:{proxy_port}"
        return start_client(processes, certs, port, *options, "-proxy", way)[1]

    check(route, tmp_path)
    assert "CONNECT 127.0.0.1:" in proxy.output


STUNNEL = """
foreground = yes
pid =
syslog = no
debug = notice
[proxy]
accept = 127.0.0.1:{port}
connect = {proxy_port}
cert = {directory}/cert.pem
key = {directory}/key.pem
"""


@pytest.mark.parametrize("mode", ["tls", "wss+mux"])
@pytest.mark.parametrize("check", [http, half_close], ids=["http", "half-close"])
def test_tunnel_through_tinyproxy_behind_stunnel(
    check: Callable[[Route, Path], None],
    mode: str,
    processes: Processes,
    certs: Certs,
    tmp_path: Path,
) -> None:
    """An HTTP proxy in TLS, whose certificate the system's roots verify."""
    options = MODES[mode].command_line("password")
    authority = Authority("CA of the proxy")
    for name, content in zip(("cert", "key"), authority.issue("127.0.0.1"), strict=True):
        (tmp_path / f"{name}.pem").write_bytes(content)
    (tmp_path / "ca.pem").write_bytes(pem(authority.certificate))
    proxy, proxy_port = start_tinyproxy(processes, tmp_path, LOGIN)
    port = free_port()
    path = tmp_path / "stunnel.conf"
    path.write_text(STUNNEL.format(port=port, proxy_port=proxy_port, directory=tmp_path))
    processes.start(require_program("stunnel4"), path).expect("Configuration successful")

    def route(destination: str) -> int:
        _, server_port = start_server(processes, certs, destination, *options)
        client = processes.start(
            *command("mtt-client"), "-b", "127.0.0.1:0", "-s", f"127.0.0.1:{server_port}",
            "-n", certs.name, "-ca", certs.ca, *options,
            "-proxy", f"https://user:pass-word@127.0.0.1:{port}",
            env={"SSL_CERT_FILE": str(tmp_path / "ca.pem")}, cwd=ROOT,
        )  # fmt: skip
        return listening(client)[1]

    check(route, tmp_path)
    assert "CONNECT 127.0.0.1:" in proxy.output


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (LOGIN, r"the proxy \S+ wants a user and a password \(407\); give them in -proxy"),
        ("ConnectPort 443", r"through the proxy \S+: 403 "),
        ("", r"through the proxy \S+: 50[0-9] "),
    ],
)
def test_refusals_of_tinyproxy(
    more: str, reason: str, processes: Processes, certs: Certs, tmp_path: Path
) -> None:
    _, proxy_port = start_tinyproxy(processes, tmp_path, more)
    client, _ = start_client(
        processes, certs, free_port(), "-preconnect", "1", "-proxy", f"127.0.0.1:{proxy_port}"
    )
    client.expect(reason)
