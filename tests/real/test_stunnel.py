"""A stunnel at one end in place of ours: TLS mode is plain TLS, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.real.checks import CHECKS, Route, half_close
from tests.real.tunnels import start_client, start_server
from tests.support.certs import Certs
from tests.support.processes import Processes, free_port
from tests.support.programs import require_program

COMMON = """
foreground = yes
pid =
syslog = no
debug = notice
[tunnel]
accept = 127.0.0.1:{port}
"""

SERVER = """
connect = {destination}
cert = {certs.cert}
key = {certs.key}
"""

CLIENT = """
client = yes
connect = {destination}
CAfile = {certs.ca}
verifyChain = yes
checkHost = {certs.name}
sni = {certs.name}
"""


class Stunnel:
    """Starts stunnels in `directory`."""

    def __init__(self, processes: Processes, certs: Certs, directory: Path) -> None:
        self._processes = processes
        self._certs = certs
        self._directory = directory

    def start(self, role: str, destination: str) -> int:
        """Start one as a TLS server or client; returns the port it listens on."""
        port = free_port()
        path = self._directory / "stunnel.conf"
        settings = {"port": port, "destination": destination, "certs": self._certs}
        path.write_text((COMMON + role).format_map(settings))
        process = self._processes.start(require_program("stunnel4"), path)
        process.expect("Configuration successful")
        return port

    def as_server(self, destination: str) -> int:
        server_port = self.start(SERVER, destination)
        return start_client(self._processes, self._certs, server_port)[1]

    def as_client(self, destination: str) -> int:
        _, server_port = start_server(self._processes, self._certs, destination)
        return self.start(CLIENT, f"127.0.0.1:{server_port}")


@pytest.fixture
def stunnel(processes: Processes, certs: Certs, tmp_path: Path) -> Stunnel:
    return Stunnel(processes, certs, tmp_path)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_stunnel_as_server(
    check: Callable[[Route, Path], None], stunnel: Stunnel, tmp_path: Path
) -> None:
    check(stunnel.as_server, tmp_path)


# It passes an application's end on as close_notify and goes on reading: half-close.
@pytest.mark.parametrize("check", [*CHECKS.values(), half_close], ids=[*CHECKS, "half-close"])
def test_stunnel_as_client(
    check: Callable[[Route, Path], None], stunnel: Stunnel, tmp_path: Path
) -> None:
    check(stunnel.as_client, tmp_path)
