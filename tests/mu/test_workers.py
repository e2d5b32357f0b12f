"""mtt-mu-server with several workers: one table of users. Real processes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.mu.two_workers import Server, ended, in_both_modes, is_open, start_client
from tests.support.processes import ROOT, Processes, eventually
from tests.support.workers import (
    LONG,
    SOON,
    Echo,
    check_echo,
    connect,
    in_both,
    needs_proc,
    standing_still,
)

pytestmark = needs_proc


# Statistics.


@in_both_modes
def test_statistics_are_exact(
    processes: Processes, echo: Echo, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    server = Server(processes, tmp_path)
    server.add("/a", echo)
    port = start_client(processes, server, "/a", *mode)
    with contextlib.ExitStack() as stack:
        tunnels = in_both(stack, server.process, port)
        for rounds in range(1, 6):
            found = server.statistics("/a")
            assert found["bytes_up"] == found["bytes_down"] == 10 * len(tunnels) * rounds
            assert found["open_conns"] == found["total_conns"] == len(tunnels)
            for tunnel in tunnels:
                check_echo(tunnel)
        metrics = server.metrics()
        assert metrics["tunnels"] == metrics["mu_tunnels"] == len(tunnels)
        assert metrics['mu_transferred_bytes_total{direction="up"}'] == 60 * len(tunnels)
        assert metrics['transferred_bytes_total{direction="up"}'] == 60 * len(tunnels)
    eventually(lambda: server.statistics("/a")["open_conns"] == 0, "all are over")
    assert server.upgrade("/unknown") == 404
    assert server.metrics()['mu_refused_total{reason="unknown"}'] == 1
    assert server.process.stop() == 0
    assert "ERROR" not in server.process.expect_silence()


def test_nothing_is_lost_at_the_end(processes: Processes, echo: Echo, tmp_path: Path) -> None:
    options = ("-db", str(tmp_path / "db"), "-grace", "0")
    server = Server(processes, tmp_path, *options)
    server.add("/a", echo, max_conns=1000)
    port = start_client(processes, server, "/a")
    with contextlib.ExitStack() as stack:
        tunnels = in_both(stack, server.process, port)
        assert server.process.stop() == 0
    server.process.expect_silence()
    again = Server(processes, tmp_path, *options)
    found = again.statistics("/a")
    assert found["bytes_up"] == found["bytes_down"] == 10 * len(tunnels)
    assert (found["total_conns"], found["open_conns"]) == (len(tunnels), 0)
    assert again.upgrade("/a") == 101
    assert again.process.stop() == 0


def test_a_worker_that_is_killed(processes: Processes, echo: Echo, tmp_path: Path) -> None:
    server = Server(processes, tmp_path)
    for number in range(3000):
        assert number % 1000 or server.command(
            1, *({"path": f"/{number + each}", "dst": echo.address} for each in range(1000))
        ) == {"res": 1}
    server.add("/a", echo)
    port = start_client(processes, server, "/a")
    with contextlib.ExitStack() as stack:
        tunnels = in_both(stack, server.process, port)
        before = server.statistics("/a")
        killed = server.worker(1)
        os.kill(killed, signal.SIGKILL)
        eventually(lambda: server.worker(1) != killed, "a new worker")
        left = len(re.findall(r"\[2\]: \S+: open", server.process.output))
        eventually(lambda: server.statistics("/a")["open_conns"] == left, "the others are off")
        after = server.statistics("/a")
        assert after["bytes_up"] == before["bytes_up"] == 10 * len(tunnels)
        assert sum(map(is_open, tunnels)) == left
        # The new one knows all users, also the latest.
        server.add("/b", echo)
        with standing_still(server.worker(2)):
            assert server.upgrade("/b") == server.upgrade("/2999") == 101
    assert server.process.stop() == 0


# Commands.


def test_a_command_holds_in_all_workers_when_it_is_answered(
    processes: Processes, echo: Echo, tmp_path: Path
) -> None:
    server = Server(processes, tmp_path)
    for number in range(20):
        path = {"path": f"/{number}"}
        assert server.command(1, path | {"dst": echo.address}) == {"res": 1}
        assert [server.upgrade(path["path"]) for _ in range(4)] == [101] * 4
        assert server.command(2, path) == {"res": 1}
        assert [server.upgrade(path["path"]) for _ in range(4)] == [404] * 4
    server.add("/a", echo)
    assert server.command(9) == {"res": 1, "current_users": 1}
    assert server.command(3) == {"res": 1}
    assert [server.upgrade("/a") for _ in range(4)] == [404] * 4


@in_both_modes
def test_users_are_cut_in_all_workers(
    processes: Processes, echo: Echo, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    server = Server(processes, tmp_path)
    server.add("/a", echo)
    server.add("/b", echo)
    port = start_client(processes, server, "/a", *mode)
    other = start_client(processes, server, "/b", *mode)
    with contextlib.ExitStack() as stack:
        tunnels = in_both(stack, server.process, port)
        neighbour = stack.enter_context(connect(other))
        check_echo(neighbour)
        assert server.command(2, {"path": "/a"}, disconnect=True) == {"res": 1}
        for tunnel in tunnels:
            ended(tunnel)
        check_echo(neighbour)
        server.add("/b", echo, expires=int(time.time()))
        ended(neighbour)


# Start and end.


def test_service_ends_with_the_hub(
    processes: Processes, echo: Echo, tmp_path: Path
) -> None:
    server = Server(processes, tmp_path, "-grace", LONG)
    pid = int(server.process.expect(r"the hub \(pid (\d+)\) started")[1])
    os.kill(pid, signal.SIGKILL)
    assert server.process.wait() == 1
    output = server.process.expect_silence(SOON)
    assert output.endswith(f"the hub (pid {pid}) was killed by SIGKILL; the service cannot "
                           "run without it\n")  # fmt: skip


def test_hanging_worker_does_not_block_commands(
    processes: Processes, echo: Echo, tmp_path: Path
) -> None:
    server = Server(processes, tmp_path, constants={"mtt_mu_server.hub.ANSWER_TIME": 1.0})
    worker = server.worker(2)
    os.kill(worker, signal.SIGSTOP)
    server.add("/a", echo)
    server.process.expect("a worker does not answer; it was dropped")
    server.add("/b", echo)
    assert server.command(9) == {"res": 1, "current_users": 2}
    os.kill(worker, signal.SIGCONT)
    server.process.expect(r"\[2\]: the hub is gone, or has dropped this worker")
    server.process.expect(r"worker 2 \(pid \d+\) ended with exit code 1; starting a new one")
    eventually(lambda: server.worker(2) != worker, "a new worker")
    assert [server.upgrade("/a") for _ in range(10)] == [101] * 10
    assert server.process.stop() == 0


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("-c", "cannot listen on 127.0.0.1:{}: address already in use: another program listens "
         "there; stop it or choose another port"),
        ("-db", "-db: cannot open /nonexistent/db: the directory does not exist; create it"),
    ],
)  # fmt: skip
def test_a_start_that_fails_is_one_line(
    processes: Processes, echo: Echo, option: str, text: str
) -> None:
    port = echo.address.rpartition(":")[2]
    given = {"-c": "127.0.0.1:0"} | {option: echo.address if option == "-c" else "/nonexistent/db"}
    process = processes.start(
        sys.executable, "-m", "mtt_mu_server", "-b", "127.0.0.1:0", "-workers", "2",
        *(word for pair in given.items() for word in pair), cwd=ROOT,
    )  # fmt: skip
    assert process.wait() == 1
    (line,) = process.expect_silence().splitlines()
    assert line == f"mtt-mu-server: {text.format(port)}"


def test_a_second_signal_ends_all_at_once(
    processes: Processes, echo: Echo, tmp_path: Path
) -> None:
    server = Server(processes, tmp_path, "-grace", LONG)
    server.add("/a", echo)
    with connect(start_client(processes, server, "/a")) as application:
        check_echo(application)
        server.process.send(signal.SIGTERM)
        server.process.expect("stopping: .*1 tunnel")
        assert server.process.stop() == 0
        server.process.expect_silence(SOON)
