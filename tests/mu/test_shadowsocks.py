"""Two users at once: curl -> ss-local -> mtt-client => mtt-mu-server -> ss-server of libev.

Each user has an ss-server and a password of their own, so a connection to the wrong server fails.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import threading
from pathlib import Path

import pytest

from tests.mu.controller import Connection, start
from tests.real.checks import http_transfers
from tests.real.destinations import SIZE, Site
from tests.support.certs import Certs
from tests.support.processes import Processes, command, free_port, listening
from tests.support.programs import require_program


def start_shadowsocks(
    processes: Processes, program: str, directory: Path, port: int, local_port: int, *argv: str
) -> None:
    """Start ss-server on `port`, or ss-local on `local_port` for a server on `port`."""
    directory.mkdir(exist_ok=True)
    config = {
        "server": "127.0.0.1",
        "server_port": port,
        "local_address": "127.0.0.1",
        "local_port": local_port,
        "password": f"the password of {directory.name}",
        "method": "aes-128-gcm",
        "mode": "tcp_only",
        "timeout": 60,
    }
    path = directory / f"{program}.json"
    path.write_text(json.dumps(config))
    process = processes.start(require_program(program), "-c", path, *argv, cwd=directory)
    process.expect(r"listening at 127\.0\.0\.1:|tcp server listening")
    if argv:
        listening(process)  # its plugin, which starts more slowly


@pytest.mark.deadline(90)
@pytest.mark.parametrize("mode", ["wss", "wss;mux"])
def test_two_users_at_once(
    mode: str, certs: Certs, tmp_path: Path, processes: Processes
) -> None:
    require_program("curl")
    server = start(processes, tmp_path, "-cert", certs.cert, "-key", certs.key)
    _, port = listening(server)
    control = tmp_path / "control.sock"
    plugin = tmp_path / "mtt-client"
    plugin.write_text(f'#!/bin/sh\nexec {shlex.join(command("mtt-client"))} "$@"\n')
    plugin.chmod(0o755)
    socks = {}
    for name in ("one", "two"):
        destination, socks[name] = free_port(), free_port()
        start_shadowsocks(processes, "ss-server", tmp_path / name, destination, 0)
        user = {"path": f"/{name}", "dst": f"127.0.0.1:{destination}", "max_conns": 100}
        with contextlib.closing(Connection(control)) as controller:
            assert controller.command(1, [user]) == {"res": 1}
        options = f"{mode};wss-path=/{name};n={certs.name};ca={certs.ca}"
        start_shadowsocks(
            processes, "ss-local", tmp_path / name, port, socks[name],
            "--plugin", str(plugin), "--plugin-opts", options,
        )  # fmt: skip
    failures: list[BaseException] = []

    def use(name: str, site: Site) -> None:
        try:
            http_transfers(
                f"http://{site.address}", tmp_path / name,
                "--socks5-hostname", f"127.0.0.1:{socks[name]}",
            )  # fmt: skip
        except BaseException as error:
            failures.append(error)

    with Site() as site:
        users = [threading.Thread(target=use, args=[name, site]) for name in socks]
        for thread in users:
            thread.start()
        for thread in users:
            thread.join()
    assert failures == []
    with contextlib.closing(Connection(control)) as controller:
        for used in controller.command(5, [])["users"]:
            assert used["bytes_up"] > SIZE
            assert used["bytes_down"] > SIZE
    assert "WARNING" not in server.output
