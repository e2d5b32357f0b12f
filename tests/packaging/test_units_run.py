"""The package's units, run by systemd in a fresh Debian."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.packaging.life import OPTIONS, PAGE, fetch
from tests.packaging.roots import Root, asked, control_group
from tests.support.processes import Processes, eventually

pytestmark = asked
INSTALL = "apt-get -q=2 --yes --no-install-recommends install"


@pytest.fixture
def booted(
    base: Path, package: Path, newer: Path, tmp_path: Path, processes: Processes
) -> Iterator[Root]:
    """A running Debian with the package's dependencies, and without a network."""
    (tmp_path / "below").mkdir()
    (tmp_path / "system").mkdir()
    below = Root(base, tmp_path / "below", processes, network=True)
    packages = "systemd-sysv dbus python3-cryptography shadowsocks-libev"
    below.run(f"apt-get -q=2 update && {INSTALL} {packages}", seconds=300)
    for path in (package, newer):
        below.put(path, "/root")
    below.holder.kill()
    with control_group(f"mtt-test-{os.getpid()}") as cgroup:
        root = Root(base, tmp_path / "system", processes, network=False, below=below,
                    cgroup=cgroup)  # fmt: skip
        try:
            # Degraded: it cannot load the kernel's modules.
            state = "systemctl is-system-running"
            eventually(
                lambda: root.attempt(state)[1].strip() in ("running", "degraded"), "it has booted"
            )
            yield root
        finally:
            root.holder.kill()


def journal(root: Root) -> str:
    return root.run("journalctl -o cat -u mtt-server")


def main_pid(root: Root) -> str:
    return root.run("systemctl show --property MainPID --value mtt-server").strip()


@pytest.mark.deadline(600)
def test_life_of_a_service(booted: Root, package: Path, newer: Path) -> None:
    booted.run(f"dpkg --install /root/{package.name}")
    for unit in ("mtt-server", "mtt-client", "anytls-server", "anyproxy-gateway"):
        assert booted.attempt(f"systemctl is-enabled {unit}")[1] == "disabled\n"
    # Without options it ends with the reason, and is not started again and again.
    assert booted.attempt("systemctl start mtt-server")[0] == 1
    eventually(lambda: "mtt-server: -b is missing" in journal(booted), "the reason is logged")
    booted.run(f"cat >>/etc/default/mtt-server <<'EOF'\n{OPTIONS}EOF")
    booted.run("systemctl enable --now mtt-server")
    eventually(lambda: " pin sha256/" in journal(booted), "the pin is in the journal")
    pin = journal(booted).rpartition(" pin ")[2].split()[0]
    client = f'OPTIONS="-b 127.0.0.1:1080 -s 127.0.0.1:8443 -pin {pin}"'
    booted.run(f"echo '{client}' >>/etc/default/mtt-client && systemctl start mtt-client")
    booted.run(f"mkdir -p /srv/page && echo '{PAGE}' >/srv/page/index.html")
    booted.start("python3 -m http.server --directory /srv/page --bind 127.0.0.1 8080")
    assert fetch(booted) == PAGE
    booted.run("systemctl reload mtt-server")
    first = main_pid(booted)
    booted.run(f"dpkg --install /root/{newer.name}")
    assert main_pid(booted) not in (first, "0")
    assert fetch(booted) == PAGE
    booted.run("dpkg --remove mos-tls-tunnel")
    assert booted.attempt("systemctl is-active mtt-server mtt-client")[1].split() == [
        "inactive", "inactive"
    ]  # fmt: skip
    booted.run("dpkg --purge mos-tls-tunnel")
    assert booted.attempt("find /etc /var/lib -name 'mtt-*' | grep .")[1] == ""


@pytest.mark.deadline(600)
def test_service_of_shadowsocks_finds_the_plugin(booted: Root, package: Path) -> None:
    """As the documents have it: by its name."""
    booted.run(f"dpkg --install /root/{package.name}")
    config = {
        "server": "127.0.0.1", "server_port": 8388, "password": "secret", "method": "aes-256-gcm",
        "plugin": "mtt-server",
    }  # fmt: skip
    booted.run(f"echo '{json.dumps(config)}' >/etc/shadowsocks-libev/config.json")
    booted.run("systemctl restart shadowsocks-libev")
    log = "journalctl -o cat -u shadowsocks-libev"
    eventually(lambda: "mtt-server: listening on" in booted.run(log), "the plugin has started")
