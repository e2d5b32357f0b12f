"""-workers below something that watches the program: metrics, systemd, plugins."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from mtt.version import __version__
from tests.process.two_workers import Server, children, get
from tests.support.processes import ROOT, Processes, command, eventually, free_port, listening
from tests.support.programs import require_program
from tests.support.systemd import Manager
from tests.support.workers import LONG, SOON, Echo, check_echo, connect, in_both, needs_proc

pytestmark = needs_proc


# Metrics.


def test_metrics_are_summed_and_never_decrease(
    processes: Processes, echo: Echo, loop: str
) -> None:
    often = {"mtt.observe.hub.REPORT_INTERVAL": 0.1}
    server = Server(processes, echo, "-metrics", "0", "-loop", loop, constants=often)
    address = server.process.expect(r"metrics on (\S+)")[1]
    url = f"http://{address}/metrics"
    _, port = server.client()
    with contextlib.ExitStack() as stack:
        tunnels = in_both(stack, server.process, port)
        count = len(tunnels)
        eventually(lambda: get(url)["tunnels"] == count, "all tunnels are counted")
        found = get(url)
        assert found["tunnels_opened_total"] == found["connections_total"] == count
        assert found['transferred_bytes_total{direction="up"}'] == 10 * count
        assert found[f'info{{version="{__version__}"}}'] == 1
        os.kill(server.worker(1), signal.SIGKILL)
        eventually(lambda: get(url)["tunnels"] < count, "a tunnel is gone")
        server.process.expect("starting a new one")
        with connect(port) as application:
            check_echo(application)
            eventually(
                lambda: get(url)["tunnels_opened_total"] == count + 1, "the next one is counted"
            )
        assert get(url)["start_time_seconds"] == found["start_time_seconds"]
    assert server.process.stop() == 0


def test_service_ends_with_the_hub(processes: Processes, echo: Echo) -> None:
    server = Server(processes, echo, "-metrics", "0")
    pid = int(server.process.expect(r"the hub \(pid (\d+)\) started")[1])
    os.kill(pid, signal.SIGKILL)
    assert server.process.wait() == 1
    assert server.process.expect_silence().endswith(
        f"mtt-server: the hub (pid {pid}) was killed by SIGKILL; the service cannot run without "
        "it\n"
    )


# Service managers.


def test_sockets_of_systemd(processes: Processes, echo: Echo, tmp_path: Path, loop: str) -> None:
    activate = require_program("systemd-socket-activate")
    port = free_port()
    with Manager(tmp_path) as heard:
        process = processes.start(
            activate, "-l", f"127.0.0.1:{port}", "-E", "NOTIFY_SOCKET",
            *command("mtt-server"), "-d", echo.address, "-workers", "2", "-disable-tls",
            "-loop", loop, "-verbose", env={"NOTIFY_SOCKET": heard.address},
        )  # fmt: skip
        process.expect("Listening on")
        with connect(port) as application:
            check_echo(application)
            assert heard.hear() == f"READY=1\nSTATUS=listening on 127.0.0.1:{port}"
            with contextlib.ExitStack() as stack:
                in_both(stack, process, port)
        assert process.stop() == 0
        assert heard.hear().startswith("STOPPING=1\nSTATUS=stopping\nEXTEND_TIMEOUT_USEC=")
        assert list(heard.rest()) == []


def test_watchdog_messages_need_all_workers(
    processes: Processes, echo: Echo, tmp_path: Path
) -> None:
    with Manager(tmp_path) as heard:
        process = processes.start(
            *command("mtt-server"), "-b", "127.0.0.1:0", "-d", echo.address, "-workers", "2",
            "-disable-tls", "-grace", LONG,
            env={"NOTIFY_SOCKET": heard.address, "WATCHDOG_USEC": "500000"},
        )  # fmt: skip
        assert heard.hear().startswith("READY=1")
        for _ in range(3):
            assert heard.hear() == "WATCHDOG=1"
        worker = children(process.pid)[1]
        os.kill(worker, signal.SIGSTOP)
        beats = 0
        with contextlib.suppress(TimeoutError):
            while heard.hear(seconds=0.8) == "WATCHDOG=1":
                beats += 1
                assert beats < 10, "it goes on with a worker that hangs"
        os.kill(worker, signal.SIGCONT)
        assert heard.hear() == "WATCHDOG=1"
        with connect(listening(process)[1]) as application:
            check_echo(application)
            process.send(signal.SIGTERM)
            while heard.hear() == "WATCHDOG=1":  # up to STOPPING=1
                pass
            assert [heard.hear() for _ in range(2)] == ["WATCHDOG=1"] * 2
        assert process.wait() == 0


# As a plugin.


def shadowsocks(echo: Echo) -> dict[str, str]:
    host, _, port = echo.address.rpartition(":")
    return {
        "SS_REMOTE_HOST": "127.0.0.1", "SS_REMOTE_PORT": "0", "SS_LOCAL_HOST": host,
        "SS_LOCAL_PORT": port, "SS_PLUGIN_OPTIONS": "workers=2;verbose",
    }  # fmt: skip


def test_a_plugin_never_waits(processes: Processes, echo: Echo) -> None:
    process = processes.start(*command("mtt-server"), env=shadowsocks(echo))
    _, port = listening(process)
    client = processes.command("mtt-client", "-b", "127.0.0.1:0", "-s", f"127.0.0.1:{port}", "-sv")
    with connect(listening(client)[1]) as application:
        check_echo(application)
        assert process.stop() == 0
        process.expect_silence(SOON)


def test_a_plugin_ends_with_its_parent(processes: Processes, echo: Echo) -> None:
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    parent = processes.start(sys.executable, "-c", code, *command("mtt-server"),
                             env=shadowsocks(echo))  # fmt: skip
    listening(parent)
    parent.send(signal.SIGKILL)
    parent.expect_silence(SOON)


def test_single_worker_imports_no_supervisor() -> None:
    """What a plugin imports is in the way of its start."""
    code = (
        "import sys, mtt_server, mtt.server, mtt.process.runtime\n"
        "print([name for name in sys.modules if name.startswith('mtt.process.')"
        " or name == 'mtt.observe.hub'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=SOON,
        check=True,
    )  # fmt: skip
    loaded = set(re.findall(r"mtt\.[\w.]+", done.stdout))
    needed = ("command", "early", "runtime", "systemd")
    assert loaded == {f"mtt.process.{name}" for name in needed}
