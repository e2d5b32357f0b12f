"""-workers: real processes, real signals."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

from mtt import modes
from tests.support.certs import Certs
from tests.support.contexts import trusting_context
from tests.support.metrics import parse, short
from tests.support.processes import (
    ROOT,
    Process,
    Processes,
    command,
    eventually,
    free_port,
    is_free,
    listening,
)
from tests.support.programs import require_program
from tests.support.systemd import Manager
from tests.support.workers import (
    LONG,
    SOON,
    Echo,
    check_echo,
    connect,
    in_both,
    open_in,
    standing_still,
    worker,
    workers_with_tunnels,
)

MODES = {name: mode.command_line("a-password") for name, mode in modes.MODES.items()}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


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


# Tunnels.


@pytest.mark.parametrize("mode", MODES)
def test_both_workers_of_both_ends_carry_tunnels(
    processes: Processes, echo: Echo, mode: str, loop: str
) -> None:
    options = (*MODES[mode], "-loop", loop)
    server = Server(processes, echo, *options)
    # Each tunnel has a session of its own, made when it is wanted, so that any worker may get it.
    if "-mux" in options:
        options = ("-mux-max-stream", "1", *options)
    elif mode == "anytls":
        options = ("-m", "0", *options)
    client, port = server.client("-workers", "2", "-verbose", *options)
    with contextlib.ExitStack() as stack:
        tunnels = in_both(stack, client, port) + in_both(stack, server.process, port)
        for tunnel in tunnels:
            check_echo(tunnel)
    assert client.stop() == server.process.stop() == 0
    for process in (client, server.process):
        process.expect_silence()
        assert process.output.count("listening on") == 1
        assert "ERROR" not in process.output


def test_a_worker_that_is_killed_is_replaced(
    processes: Processes, echo: Echo, loop: str
) -> None:
    server = Server(processes, echo, "-loop", loop)
    _, port = server.client()
    with contextlib.ExitStack() as stack:
        tunnels = in_both(stack, server.process, port)
        # The last one was the first in its worker.
        lost, kept = tunnels.pop(), tunnels
        number = re.findall(r"\[(\d)\]: \S+: open", server.process.output)[-1]
        killed = server.worker(int(number))
        os.kill(killed, signal.SIGKILL)
        server.process.expect(
            rf"ERROR mtt-server: worker {number} \(pid {killed}\) was killed by SIGKILL; a new one"
        )
        for tunnel in kept:
            check_echo(tunnel)
        with contextlib.suppress(ConnectionResetError):
            assert lost.recv(1) == b""
        eventually(lambda: server.worker(int(number)) != killed, "a new worker")
        open_in(stack, server.process, int(number), port)
    assert len(children(server.process.pid)) == 2
    assert server.process.stop() == 0


def test_a_server_on_a_unix_socket(processes: Processes, echo: Echo, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    process = processes.command(
        "mtt-server", "-bind-unix", str(path), "-d", echo.address, "-workers", "2", "-verbose",
        "-disable-tls",
    )  # fmt: skip
    process.expect(rf"listening on {path},")

    def talk() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(SOON)
            client.connect(str(path))
            check_echo(client)

    for pid in children(process.pid):
        with standing_still(pid):
            talk()
    eventually(lambda: workers_with_tunnels(process) == {"1", "2"}, "each had its turn")
    os.kill(children(process.pid)[0], signal.SIGKILL)
    process.expect("a new one takes its place")
    assert path.exists()
    talk()
    assert process.stop() == 0
    assert not path.exists()


def test_workers_0_means_one_per_core(processes: Processes, echo: Echo) -> None:
    cores = len(os.sched_getaffinity(0))
    process = processes.command(
        "mtt-server", "-b", "127.0.0.1:0", "-d", echo.address, "-workers", "0"
    )
    listening(process)
    assert len(children(process.pid)) == (cores if cores > 1 else 0)
    assert process.stop() == 0


def test_all_workers_have_one_identity_and_resume_sessions_of_each_other(
    processes: Processes, echo: Echo
) -> None:
    server = Server(processes, echo)
    context = trusting_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # has its ticket when the handshake is over
    certificates = set()
    session: ssl.SSLSession | None = None
    for number in (1, 2, 1):
        with (
            standing_still(server.worker(number)),
            connect(server.port) as raw,
            context.wrap_socket(raw, session=session) as client,
        ):
            assert client.session_reused == (session is not None)
            session = session or client.session
            check_echo(client)
    for number in (1, 2):
        with (
            standing_still(server.worker(number)),
            connect(server.port) as raw,
            context.wrap_socket(raw) as client,
        ):
            certificates.add(client.getpeercert(binary_form=True))
    assert len(certificates) == 1
    eventually(lambda: workers_with_tunnels(server.process) == {"1", "2"}, "each had its turn")


def test_certificates_are_read_again_by_all(
    processes: Processes, echo: Echo, certs: Certs
) -> None:
    server = Server(processes, echo, "-cert", certs.cert, "-key", certs.key)
    server.process.send(signal.SIGHUP)
    for number in (1, 2):
        server.process.expect(rf"\[{number}\]: reloaded:")


# The end.


def test_tunnels_have_their_grace(processes: Processes, echo: Echo, loop: str) -> None:
    server = Server(processes, echo, "-grace", LONG, "-loop", loop)
    _, port = server.client()
    with connect(port) as application:
        check_echo(application)
        server.process.send(signal.SIGTERM)
        server.process.expect(r"INFO mtt-server\[\d\]: stopping: 1 tunnel may go on for 60 s")
        eventually(lambda: is_free(server.port), "the port is free")
        check_echo(application)
        assert server.process.running
    assert server.process.wait() == 0
    assert server.process.expect_silence().count("INFO mtt-server: stopping") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_for_all_of_them_counts_once(
    processes: Processes, echo: Echo, number: int
) -> None:
    """A terminal sends SIGINT to the whole group, systemd SIGTERM to all it has started."""
    server = Server(processes, echo, "-grace", LONG)
    _, port = server.client()
    with connect(port) as application:
        check_echo(application)
        os.killpg(server.process.pid, number)
        server.process.expect("there are no certificate files" if number == signal.SIGHUP
                              else "stopping: 1 tunnel may go on")  # fmt: skip
        check_echo(application)
    if number == signal.SIGHUP:
        server.process.send(signal.SIGTERM)
    assert server.process.wait() == 0


def test_a_second_signal_ends_all_at_once(processes: Processes, echo: Echo) -> None:
    server = Server(processes, echo, "-grace", LONG)
    _, port = server.client()
    with connect(port) as application:
        check_echo(application)
        server.process.send(signal.SIGTERM)
        server.process.expect("stopping: 1 tunnel")
        assert server.process.stop(signal.SIGINT) == 0
        server.process.expect_silence(SOON)


def test_without_the_supervisor_all_end(processes: Processes, echo: Echo, loop: str) -> None:
    server = Server(processes, echo, "-grace", LONG, "-metrics", "0", "-loop", loop)
    _, port = server.client()
    with connect(port) as application:
        check_echo(application)
        assert server.process.stop(signal.SIGKILL) == -signal.SIGKILL
        output = server.process.expect_silence(SOON)
    assert output.count("the supervisor is gone") == 3


def test_a_worker_that_hangs_is_killed_in_the_end(processes: Processes, echo: Echo) -> None:
    server = Server(processes, echo)
    os.kill(server.worker(1), signal.SIGSTOP)
    server.process.send(signal.SIGTERM)
    server.process.expect("INFO mtt-server: stopping")
    assert server.process.stop() == 0
    server.process.expect(r"worker 1 \(pid \d+\) does not end by itself and is killed")
    server.process.expect_silence(SOON)


# The start.


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


def test_wrong_numbers(processes: Processes) -> None:
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
    sys.exit(workers.run(Service(), options=ProcessOptions(workers=2), name="prog"))
except UsageError as error:
    sys.exit(f"usage: {error}")
except StartError as error:
    sys.exit(f"start: {error}")
"""


def program(processes: Processes, start: str, *argv: str | Path) -> Process:
    return processes.start(sys.executable, "-c", PROGRAM.replace("START", start), *argv, cwd=ROOT)


@pytest.mark.parametrize(("kind", "shown"), [("StartError", "start"), ("UsageError", "usage")])
def test_a_failed_start_is_told_once(processes: Processes, kind: str, shown: str) -> None:
    process = program(processes, f"raise {kind}('no way')")
    assert process.wait() == 1
    lines = [line for line in process.expect_silence().splitlines() if "DEBUG" not in line]
    assert lines == [f"{shown}: no way"]


def test_it_gives_up_when_no_worker_gets_ready(processes: Processes, tmp_path: Path) -> None:
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
    assert output.count("a new one takes its place") == 6


def test_it_does_not_give_up_while_a_worker_serves(processes: Processes, tmp_path: Path) -> None:
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


def test_it_does_not_end_when_no_process_can_be_made(processes: Processes) -> None:
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


# Metrics.


def test_metrics_are_those_of_all_and_never_fall(
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
        assert found['info{version="0.1.0"}'] == 1
        os.kill(server.worker(1), signal.SIGKILL)
        eventually(lambda: get(url)["tunnels"] < count, "a tunnel is gone")
        server.process.expect("a new one takes its place")
        with connect(port) as application:
            check_echo(application)
            eventually(
                lambda: get(url)["tunnels_opened_total"] == count + 1, "the next one is counted"
            )
        assert get(url)["start_time_seconds"] == found["start_time_seconds"]
    assert server.process.stop() == 0


def test_nothing_goes_on_without_the_hub(processes: Processes, echo: Echo) -> None:
    server = Server(processes, echo, "-metrics", "0")
    pid = int(server.process.expect(r"the hub \(pid (\d+)\) started")[1])
    os.kill(pid, signal.SIGKILL)
    assert server.process.wait() == 1
    assert server.process.expect_silence().endswith(
        f"mtt-server: the hub (pid {pid}) was killed by SIGKILL; without it nothing can go on\n"
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


def test_signs_of_life_end_with_those_of_one_worker(
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


def test_one_worker_is_no_reason_to_look_for_more() -> None:
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
    needed = ("command", "early", "eventloop", "runtime", "systemd")
    assert loaded == {f"mtt.process.{name}" for name in needed}
