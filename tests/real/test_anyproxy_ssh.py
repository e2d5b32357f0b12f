"""ssh reaches a server behind an agent: through the proxies, and through a forwarded port."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.anyproxy.serving import GROUP
from tests.real.destinations import payload
from tests.real.gateways import start_agent, start_gateway
from tests.support.certs import Certs
from tests.support.processes import Processes, free_port, run
from tests.support.programs import require_program

# Everyone who reaches the ports may use them: nc has no passwords.
NO_LOGIN = {"group": GROUP, "group_login": False}

SSHD = """
ListenAddress 127.0.0.1:{port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/user_key.pub
PidFile none
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
"""


class Ssh(NamedTuple):
    """A running server, and keys for it."""

    directory: Path
    port: int

    def echo(self, port: int, *options: str) -> None:
        """Send 20 MB through ssh to `cat` on the server, and back."""
        settings = {
            "UserKnownHostsFile": self.directory / "known_hosts",
            "HostKeyAlias": "server",
            "IdentityFile": self.directory / "user_key",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "BatchMode": "yes",
        }
        given = [part for name in settings for part in ("-o", f"{name}={settings[name]}")]
        address = ("-p", str(port), f"{getpass.getuser()}@127.0.0.1", "cat")
        ssh = require_program("ssh")
        echoed = run(ssh, "-F", "none", *given, *options, *address, stdin=payload())
        assert echoed == payload()


@pytest.fixture
def ssh(processes: Processes, tmp_path: Path) -> Ssh:
    sshd, directory, port = require_program("sshd"), tmp_path, free_port()
    for name in ("host_key", "user_key"):
        key = ("-t", "ed25519", "-N", "", "-f", directory / name)
        run(require_program("ssh-keygen"), "-q", *key)
    kind, key_data, *_ = (directory / "host_key.pub").read_text().split()
    (directory / "known_hosts").write_text(f"server {kind} {key_data}\n")
    config = directory / "sshd_config"
    config.write_text(SSHD.format(port=port, directory=directory))
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # as Debian's unit does; others do not need it
    processes.start(sshd, "-D", "-e", "-f", config).expect("Server listening on ")
    return Ssh(directory, port)


@pytest.mark.parametrize("protocol", ["5", "4", "connect"])
def test_ssh_through_a_proxy(
    processes: Processes, certs: Certs, tmp_path: Path, ssh: Ssh, protocol: str
) -> None:
    gateway = start_gateway(processes, certs, tmp_path, http=NO_LOGIN, socks5=NO_LOGIN)
    start_agent(processes, certs, tmp_path, gateway)
    port = gateway.http if protocol == "connect" else gateway.socks5
    command = f"{require_program('nc')} -X {protocol} -x 127.0.0.1:{port} %h %p"
    ssh.echo(ssh.port, "-o", f"ProxyCommand={command}")


def test_ssh_through_a_forwarded_port(
    processes: Processes, certs: Certs, tmp_path: Path, ssh: Ssh
) -> None:
    gateway = start_gateway(processes, certs, tmp_path)
    port = free_port()
    forwarded = [{"remote_port": port, "local_port": ssh.port}]
    agent = start_agent(processes, certs, tmp_path, gateway, open_ports=forwarded)
    agent.expect(f"port 127.0.0.1:{port} .* is forwarded")
    ssh.echo(port)
