"""An mtt-mu-server of its own process, and its controller on a unix socket."""

from __future__ import annotations

import http.client
import json
import socket
import sys
from pathlib import Path
from typing import Any

from tests.support.processes import ROOT, Process, Processes


class Connection(http.client.HTTPConnection):
    """HTTP through a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))

    def command(self, opt: int, args: list[dict[str, Any]], **fields: Any) -> Any:
        self.request("POST", "/", json.dumps({"opt": opt, "args_bunch": args} | fields))
        return json.loads(self.getresponse().read())


def start(processes: Processes, directory: Path, *argv: str) -> Process:
    """Start a server with its files in `directory`."""
    server = processes.start(
        sys.executable, "-m", "mtt_mu_server", "-b", "127.0.0.1:0", *argv,
        "-c", f"unix:{directory / 'control.sock'}", "-db", directory / "users.sqlite", cwd=ROOT,
    )  # fmt: skip
    server.expect("listening on")
    return server
