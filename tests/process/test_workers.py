"""-workers: tunnels in all of them, and their end. Real processes, real signals."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
from pathlib import Path

import pytest

from tests.process.two_workers import Server, children
from tests.support.certs import Certs
from tests.support.contexts import trusting_context
from tests.support.processes import MODES, Processes, eventually, is_free, listening
from tests.support.workers import (
    LONG,
    SOON,
    Echo,
    check_echo,
    connect,
    in_both,
    needs_proc,
    open_in,
    standing_still,
    workers_with_tunnels,
)

pytestmark = needs_proc


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
            rf"ERROR mtt-server: worker {number} \(pid {killed}\) was killed by SIGKILL; starting"
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
    process.expect("starting a new one")
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


def test_workers_share_identity_and_tls_sessions(
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


def test_all_workers_reload_certificates(
    processes: Processes, echo: Echo, certs: Certs
) -> None:
    server = Server(processes, echo, "-cert", certs.cert, "-key", certs.key)
    server.process.send(signal.SIGHUP)
    for number in (1, 2):
        server.process.expect(rf"\[{number}\]: reloaded:")


# The end.


def test_tunnels_have_a_grace_period(processes: Processes, echo: Echo, loop: str) -> None:
    server = Server(processes, echo, "-grace", LONG, "-loop", loop)
    _, port = server.client()
    with connect(port) as application:
        check_echo(application)
        server.process.send(signal.SIGTERM)
        server.process.expect(r"INFO mtt-server\[\d\]: stopping: waiting up to 60 s for 1 tunnel")
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
        server.process.expect("not reloaded: certificates: no option" if number == signal.SIGHUP
                              else "stopping: waiting up to")  # fmt: skip
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
        server.process.expect("stopping: .*1 tunnel")
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


def test_hanging_worker_is_killed(processes: Processes, echo: Echo) -> None:
    server = Server(processes, echo)
    os.kill(server.worker(1), signal.SIGSTOP)
    server.process.send(signal.SIGTERM)
    server.process.expect("INFO mtt-server: stopping")
    assert server.process.stop() == 0
    server.process.expect(r"worker 1 \(pid \d+\) did not end in time and was killed")
    server.process.expect_silence(SOON)
