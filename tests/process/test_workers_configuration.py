"""Workers whose tunnels are in a configuration file, which changes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.two_workers import get
from tests.support.processes import Process, Processes, eventually, free_port
from tests.support.workers import (
    LONG,
    Echo,
    check_echo,
    connect,
    in_both,
    needs_proc,
    open_in,
    worker,
    workers_with_tunnels,
)

pytestmark = needs_proc


class Client:
    """mtt-client with two workers and tunnels `names`, to a server in front of `echo`."""

    def __init__(
        self,
        processes: Processes,
        echo: Echo,
        folder: Path,
        *names: str,
        interval: float = 5.0,
        **top: Any,
    ) -> None:
        self._file = folder / "t.json"
        self._top = {"sv": True, "workers": 2, "verbose": True, "grace": LONG} | top
        server = processes.command("mtt-server", "-b", "127.0.0.1:0", "-d", echo.address)
        self._server = f"127.0.0.1:{port_of(server)}"
        self.write(*(self.tunnel(name) for name in names))
        self.process = processes.command(
            "mtt-client", "-config", self._file,
            constants={
                "mtt.followed.CHECK_INTERVAL": interval, "mtt.observe.hub.REPORT_INTERVAL": 0.05,
            },
        )  # fmt: skip
        self.process.expect("listening on")

    def level(self, name: str) -> None:
        """The level of the log in the next file."""
        self._top["log-level"] = name

    def tunnel(self, name: str, port: int = 0, **options: Any) -> dict[str, Any]:
        return {"name": name, "b": f"127.0.0.1:{port}", "s": self._server, **options}

    def write(self, *tunnels: dict[str, Any]) -> None:
        new = self._file.with_name("new")  # replaced as a whole: it may be read at any time
        new.touch(0o600)
        new.write_text(json.dumps(self._top | {"tunnel": tunnels}))
        new.replace(self._file)

    def change(self, line: str, *tunnels: dict[str, Any]) -> None:
        """Write the file, and wait for a line of the log."""
        before = self.process.output.count(line)
        self.write(*tunnels)
        self.process.send(signal.SIGHUP)
        eventually(lambda: self.process.output.count(line) > before, line)

    def port(self, name: str) -> int:
        return port_of(self.process, f"{name}: ")


def port_of(process: Process, name: str = "") -> int:
    """The port of which the latest line about a tunnel tells."""
    pattern = rf" {name}listening on 127\.0\.0\.1:(\d+)"
    process.expect(pattern)
    return int(re.findall(pattern, process.output)[-1])


def is_refused(port: int) -> bool:
    try:
        with connect(port):
            return False
    except ConnectionRefusedError:
        return True


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as found:
        yield found


def in_each(stack: contextlib.ExitStack, process: Process, port: int) -> list[socket.socket]:
    return [open_in(stack, process, number, port) for number in (1, 2)]


def test_a_change_reaches_all_workers(
    processes: Processes, echo: Echo, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    client = Client(processes, echo, tmp_path, "kept", "removed")
    kept, removed = client.port("kept"), client.port("removed")
    untouched = in_each(stack, client.process, kept)
    draining = in_each(stack, client.process, removed)
    client.change(
        "reloaded: 1 tunnel added, 1 tunnel removed",
        client.tunnel("kept"), client.tunnel("new", free_port()),
    )  # fmt: skip
    added = in_each(stack, client.process, client.port("new"))
    eventually(lambda: is_refused(removed), "the port is closed")
    for application in (*untouched, *draining, *added):
        check_echo(application)
    in_each(stack, client.process, kept)
    stack.close()
    assert client.process.stop() == 0


def test_a_changed_tunnel_keeps_its_port(
    processes: Processes, echo: Echo, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    client = Client(processes, echo, tmp_path, "one")
    port = port_of(client.process)
    before = in_both(stack, client.process, port)
    client.change("reloaded: 1 tunnel changed", client.tunnel("one", timeout="1m"))
    for number in (1, 2):
        client.process.expect(rf"\[{number}\]: changed: waiting up to 60 s for 1 tunnel")
    assert port_of(client.process) == port
    for application in (*before, *in_each(stack, client.process, port)):
        check_echo(application)


def test_a_new_worker_has_the_new_tunnels(
    processes: Processes, echo: Echo, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    client = Client(processes, echo, tmp_path, "one")
    one = port_of(client.process)
    client.change("reloaded: 1 tunnel added", client.tunnel("one"), client.tunnel("new"))
    port = client.port("new")
    os.kill(worker(client.process, 1), signal.SIGKILL)
    client.process.expect(r"worker 1 \(pid \d+\) was killed by SIGKILL; starting a new one")
    eventually(lambda: client.process.output.count("worker 1 (pid ") >= 3, "a new worker")
    in_each(stack, client.process, port)
    client.change("reloaded: 1 tunnel removed", client.tunnel("one"))
    eventually(lambda: is_refused(port), "the port is closed")
    in_each(stack, client.process, one)
    assert workers_with_tunnels(client.process) == {"1", "2"}


def test_the_file_is_followed(processes: Processes, echo: Echo, tmp_path: Path) -> None:
    client = Client(processes, echo, tmp_path, "one", metrics="127.0.0.1:0", interval=0.05)
    address = client.process.expect(r"metrics on (\S+)")[1]
    client.write(client.tunnel("one"), client.tunnel("new"))
    client.process.expect("reloaded: 1 tunnel added")
    with connect(client.port("new")) as application:
        check_echo(application)
        url = f"http://{address}/metrics"
        eventually(lambda: get(url).get('tunnels{tunnel="new"}') == 1, "it is in the metrics")


def test_a_broken_file_changes_nothing(processes: Processes, echo: Echo, tmp_path: Path) -> None:
    client = Client(processes, echo, tmp_path, "one", interval=0.05)
    line = 'the old configuration stays in use: -config: .*tunnel\\[0\\] "one": unknown key "x"'
    client.write(client.tunnel("one", x=1))
    client.process.expect(line)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = taken.getsockname()[1]
        client.write(client.tunnel("one", timeout="1m"), client.tunnel("new", used))
        client.process.expect(rf'stays in use: tunnel\[1\] "new": cannot listen on \S+:{used}: ')
    with connect(port_of(client.process)) as application:
        check_echo(application)


def test_the_level_of_the_log_reaches_all_workers(
    processes: Processes, echo: Echo, tmp_path: Path, stack: contextlib.ExitStack
) -> None:
    client = Client(processes, echo, tmp_path, "one", **{"verbose": False, "log-level": "info"})
    port = port_of(client.process)
    with connect(port) as application:
        check_echo(application)
    assert ": open" not in client.process.output
    client.level("debug")
    client.change("reloaded: log level", client.tunnel("one"))
    pattern = r"mtt-client\[\d\]: \S+: open"
    eventually(lambda: _is_logged(client.process, port, pattern), "workers log at another level")


def _is_logged(process: Process, port: int, pattern: str) -> bool:
    with connect(port) as application:
        check_echo(application)
    return bool(re.search(pattern, process.output))
