"""mtt-server with two workers."""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.support.metrics import parse, short
from tests.support.processes import Process, Processes, listening
from tests.support.workers import SOON, Echo, worker


class Server:
    """mtt-server with two workers, and clients of it."""

    def __init__(
        self,
        processes: Processes,
        echo: Echo,
        *options: str,
        constants: Mapping[str, object] | None = None,
    ) -> None:
        self._processes = processes
        self._stack = contextlib.ExitStack()
        self.process = processes.command(
            "mtt-server", "-b", "127.0.0.1:0", "-d", echo.address, "-workers", "2",
            "-verbose", *options, constants=constants,
        )  # fmt: skip
        self.port = listening(self.process)[1]

    def client(self, *options: str) -> tuple[Process, int]:
        """A client and its port."""
        process = self._processes.command(
            "mtt-client", "-b", "127.0.0.1:0", "-s", f"127.0.0.1:{self.port}", "-sv", *options
        )
        return process, listening(process)[1]

    def worker(self, number: int) -> int:
        """The pid of a worker, the latest with this number."""
        return worker(self.process, number)


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def get(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=SOON) as response:
        return short(parse(response.read().decode()))
