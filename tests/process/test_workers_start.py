"""-workers: starts that fail or take long. Real processes, real signals."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from pathlib import Path

import pytest

from tests.process.two_workers import children
from tests.support.processes import ROOT, Process, Processes, eventually
from tests.support.workers import SOON, Echo, needs_proc

pytestmark = needs_proc


@pytest.mark.parametrize("option", ["-b", "-metrics"])
def test_an_address_in_use_is_one_line(processes: Processes, echo: Echo, option: str) -> None:
    port = echo.address.rpartition(":")[2]
    addresses = {"-b": "127.0.0.1:0", "-metrics": "127.0.0.1:0"} | {option: f"127.0.0.1:{port}"}
    process = processes.command(
        "mtt-server", "-d", "127.0.0.1:9", "-workers", "2",
        *(word for pair in addresses.items() for word in pair),
    )  # fmt: skip
    assert process.wait() == 1
    (line,) = process.expect_silence().splitlines()
    assert line == (
        f"mtt-server: cannot listen on 127.0.0.1:{port}: address already in use: another program "
        "listens there; stop it or choose another port"
    )


def test_invalid_numbers(processes: Processes) -> None:
    process = processes.command("mtt-server", "-b", ":0", "-d", "127.0.0.1:9", "-workers", "-1")
    assert process.wait() == 2
    assert process.expect_silence() == "mtt-server: -workers: -1 is not from 0 to 1024\n"


PROGRAM = """
import asyncio, os, sys
from mtt import log
from mtt.errors import StartError, UsageError
from mtt.options.process import ProcessOptions
from mtt.process import runtime, workers

class Service(runtime.Service):
    async def start(self):
        START

    def announce(self):
        print("all are ready", flush=True)

workers.FIRST_DELAY, workers.MAX_DELAY = 0.01, 0.1
log.setup("debug", "prog")
try:
    sys.exit(workers.Supervisor(Service(), options=ProcessOptions(workers=2), name="prog").run())
except UsageError as error:
    sys.exit(f"usage: {error}")
except StartError as error:
    sys.exit(f"start: {error}")
"""


def program(processes: Processes, start: str, *argv: str | Path) -> Process:
    return processes.start(sys.executable, "-c", PROGRAM.replace("START", start), *argv, cwd=ROOT)


@pytest.mark.parametrize(("kind", "shown"), [("StartError", "start"), ("UsageError", "usage")])
def test_failed_start_is_reported_once(processes: Processes, kind: str, shown: str) -> None:
    process = program(processes, f"raise {kind}('no way')")
    assert process.wait() == 1
    lines = [line for line in process.expect_silence().splitlines() if "DEBUG" not in line]
    assert lines == [f"{shown}: no way"]


def test_supervisor_gives_up_without_ready_workers(processes: Processes, tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    process = program(processes, "if os.path.exists(sys.argv[1]): os._exit(3)", flag)
    process.expect("all are ready")
    flag.touch()
    for child in children(process.pid):
        os.kill(child, signal.SIGKILL)
    assert process.wait() == 1
    output = process.expect_silence()
    assert output.endswith(
        "start: 5 workers in a row ended before they were ready, the last one: "
        "ended with exit code 3\n"
    )
    assert output.count("starting a new one") == 6


def test_supervisor_continues_while_a_worker_serves(processes: Processes, tmp_path: Path) -> None:
    flag = tmp_path / "broken"
    process = program(processes, "if os.path.exists(sys.argv[1]): os._exit(3)", flag)
    process.expect("all are ready")
    flag.touch()
    lost, kept = children(process.pid)
    os.kill(lost, signal.SIGKILL)
    eventually(lambda: process.output.count("ended with exit code 3") > 6, "more tries")
    assert kept in children(process.pid)
    flag.unlink()
    eventually(lambda: len(children(process.pid)) == 2, "a new worker")
    assert process.stop() == 0


def test_supervisor_survives_failing_forks(processes: Processes) -> None:
    process = program(processes, "pass")
    process.expect("all are ready")
    lost, kept = children(process.pid)
    before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    os.kill(lost, signal.SIGKILL)
    process.expect("ERROR prog: cannot start another process: too many open files; next try in")
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
    eventually(lambda: len(children(process.pid)) == 2, "a new worker")
    assert kept in children(process.pid)
    assert process.stop() == 0


def test_a_signal_while_the_address_is_looked_up(processes: Processes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:  # a name server
        silent.bind(("127.0.0.1", 0))
        silent.settimeout(SOON)
        process = processes.command(
            "mtt-client", "-b", "name.test:1080", "-s", "127.0.0.1:9", "-sv", "-workers", "2",
            "-fallback-dns", f"127.0.0.1:{silent.getsockname()[1]}",
            # Longer than any test: it cannot be that it has given up by itself.
            constants={"mtt.net.resolve.LOOKUP_TIMEOUT": 600, "mtt.net.resolve.UDP_WAITS": (600,)},
        )  # fmt: skip
        silent.recv(512)
        assert process.stop() == 0
    process.expect_silence()


def test_signals_during_the_start(processes: Processes) -> None:
    process = program(processes, "print('here', flush=True); await asyncio.sleep(60)")
    process.expect("(?s)here.*here")
    assert process.stop() == 0
    process.expect_silence(SOON)
