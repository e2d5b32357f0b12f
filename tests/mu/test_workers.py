"""mtt-mu-server with several workers: one table of users. Real processes."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.contexts import bare_context
from tests.support.metrics import parse, short
from tests.support.processes import ROOT, Processes, eventually, listening
from tests.support.workers import (
    LONG,
    SOON,
    Echo,
    check_echo,
    connect,
    in_both,
    standing_still,
    worker,
    workers_with_tunnels,
)

in_both_modes = pytest.mark.parametrize("mode", [(), ("-mux",)], ids=["wss", "wss+mux"])

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=2 * SOON)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Server:
    """mtt-mu-server with two workers, its operator, and clients of it."""

    def __init__(self, processes: Processes, directory: Path, *options: str) -> None:
        self._processes = processes
        self._control = directory / "control"
        self.process = processes.start(
            sys.executable, "-m", "mtt_mu_server", "-b", "127.0.0.1:0",
            "-c", f"unix:{self._control}", "-workers", "2", "-verbose", *options, cwd=ROOT,
        )  # fmt: skip
        self.port = listening(self.process)[1]

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        connection = UnixConnection(self._control)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            return connection.getresponse().read()

    def command(self, opt: int, *args: dict[str, Any], **fields: Any) -> Any:
        body = json.dumps({"opt": opt, "args_bunch": args} | fields).encode()
        return json.loads(self.ask("POST", "/", body))

    def add(self, path: str, echo: Echo, **limits: int) -> None:
        assert self.command(1, {"path": path, "dst": echo.address} | limits) == {"res": 1}

    def statistics(self, path: str) -> dict[str, Any]:
        (found,) = self.command(5, {"path": path})["users"]
        assert isinstance(found, dict)
        return found

    def metrics(self) -> dict[str, float]:
        return short(parse(self.ask("GET", "/metrics").decode()))

    def worker(self, number: int) -> int:
        """The pid of a worker, the latest with this number."""
        return worker(self.process, number)

    def upgrade(self, path: str) -> int:
        """The status that a WebSocket request for `path` gets."""
        # Not create_default_context(), which reads all authorities of the system each time.
        context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with connect(self.port) as raw, context.wrap_socket(raw) as client:
            client.sendall(
                f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            head = client.recv(100)
        return int(head.split(b" ")[1])


def start_client(processes: Processes, server: Server, path: str, *mode: str) -> int:
    """A client of the user of `path`; the port for applications."""
    if mode:  # a session for each, so that any worker may get it
        mode = ("-mux-max-stream", "1", *mode)
    process = processes.command(
        "mtt-client", "-b", "127.0.0.1:0", "-s", f"127.0.0.1:{server.port}", "-sv", "-wss",
        "-wss-path", path, *mode,
    )  # fmt: skip
    return listening(process)[1]


def opened(stack: contextlib.ExitStack, port: int) -> socket.socket | None:
    """A connection to a client, None if that resets it in the first moment."""
    try:
        return stack.enter_context(connect(port))
    except ConnectionResetError:
        return None


def is_open(application: socket.socket | None) -> bool:
    """Whether a tunnel works; False when it was refused or cut."""
    if application is None:
        return False
    try:
        check_echo(application)
    except (AssertionError, ConnectionError):
        application.close()  # or it would keep half a stream
        return False
    return True


def ended(application: socket.socket) -> None:
    """Wait until a tunnel is cut or closed."""
    with contextlib.suppress(ConnectionResetError):
        while application.recv(1000):
            pass


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


# Limits.


def carry(tunnels: list[socket.socket], size: int) -> list[float]:
    """Send `size` bytes through each of the tunnels to an echo at once.

    Returns the seconds until each had everything back, the first to end first.
    """
    began = time.monotonic()
    ends: list[float] = []

    def carry_one(tunnel: socket.socket) -> None:
        threading.Thread(target=tunnel.sendall, args=(bytes(size),), daemon=True).start()
        left = size
        while left:
            data = tunnel.recv(left)
            assert data, "the tunnel has ended"
            left -= len(data)
        ends.append(time.monotonic() - began)

    threads = [threading.Thread(target=carry_one, args=(tunnel,)) for tunnel in tunnels]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


@in_both_modes
def test_a_limit_on_connections_holds_over_all_workers(
    processes: Processes, echo: Echo, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    limit = 5
    server = Server(processes, tmp_path)
    server.add("/a", echo, max_conns=limit)
    if mode:  # several sessions, so that both workers have some
        mode = (*mode, "-mux-max-stream", "2", "-mux-warm", "0", "-mux-idle", "100ms")
    ports = [start_client(processes, server, "/a", *mode) for _ in range(2)]
    for _ in range(5):
        with contextlib.ExitStack() as stack:
            tunnels: list[socket.socket | None] = []
            for number, port in enumerate(ports, 1):  # one in each worker
                with standing_still(server.worker(number)):
                    tunnels.append(stack.enter_context(connect(port)))
                    check_echo(tunnels[-1])
            # All at once, so that workers have to decide at the same moment.
            tunnels += [opened(stack, ports[n % 2]) for n in range(4 * limit)]
            # Those of a session that was let in and cut again come to nothing in one worker
            # while the other still has room, so fewer may be in at first, and never more.
            works = [tunnel for tunnel in tunnels if is_open(tunnel)]
            assert 1 <= len(works) <= limit
            assert server.statistics("/a")["open_conns"] == len(works)

            def fill(stack: contextlib.ExitStack = stack, works: list[Any] = works) -> bool:
                for port in ports if len(works) < limit else ():
                    tunnel = opened(stack, port)
                    if is_open(tunnel):
                        works.append(tunnel)
                return len(works) == limit

            eventually(fill, "as many as may be")
            assert not any(is_open(opened(stack, port)) for port in ports * 3)
        eventually(lambda: server.statistics("/a")["open_conns"] == 0, "all are over")
        eventually(lambda: server.metrics()["sessions"] == 0, "all sessions are over")
    assert workers_with_tunnels(server.process) == {"1", "2"}


@in_both_modes
def test_a_rate_holds_over_all_workers(
    processes: Processes, tmp_path: Path, echo: Echo, mode: tuple[str, ...]
) -> None:
    rate, size = 400_000, 150_000
    server = Server(processes, tmp_path)
    server.add("/a", echo)
    port = start_client(processes, server, "/a", *mode)
    with contextlib.ExitStack() as stack:
        in_both(stack, server.process, port)
        server.add("/a", echo, rate=rate)
        tunnels = [stack.enter_context(connect(port)) for _ in range(6)]
        for tunnel in tunnels:
            check_echo(tunnel)
        # An echo goes up and down, each at that rate, so the whole takes as long as one of them.
        ideal = (len(tunnels) * size - rate * 0.25) / rate
        for tries in range(1, 4):
            ends = carry(tunnels, size)
            assert max(ends) >= ideal * 0.98
            # Nobody runs away: at best somebody alone in a worker gets the whole burst, and then
            # half of the rate.
            assert min(ends) >= 0.9 * (size - rate * 0.25) / (rate / 2)
            # Nor is the rate wasted, which would take twice as long, and that each time; a busy
            # machine does it now and then.
            if max(ends) <= ideal * 1.5 + 0.5:
                break
            assert tries < 3


# Start and end.


def test_nothing_goes_on_without_the_hub(
    processes: Processes, echo: Echo, tmp_path: Path
) -> None:
    server = Server(processes, tmp_path, "-grace", LONG)
    pid = int(server.process.expect(r"the hub \(pid (\d+)\) started")[1])
    os.kill(pid, signal.SIGKILL)
    assert server.process.wait() == 1
    output = server.process.expect_silence(SOON)
    assert output.endswith(f"the hub (pid {pid}) was killed by SIGKILL; without it nothing can "
                           "go on\n")  # fmt: skip


def test_a_worker_that_hangs_does_not_hold_up_commands(
    processes: Processes, echo: Echo, tmp_path: Path
) -> None:
    server = Server(processes, tmp_path)
    worker = server.worker(2)
    os.kill(worker, signal.SIGSTOP)
    server.add("/a", echo)
    server.process.expect("a worker does not answer and is given up")
    server.add("/b", echo)
    assert server.command(9) == {"res": 1, "current_users": 2}
    os.kill(worker, signal.SIGCONT)
    server.process.expect(r"\[2\]: the hub is gone, or has given this worker up")
    server.process.expect(r"worker 2 \(pid \d+\) ended with exit code 1; a new one")
    eventually(lambda: server.worker(2) != worker, "a new worker")
    assert [server.upgrade("/a") for _ in range(10)] == [101] * 10
    assert server.process.stop() == 0


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("-c", "cannot listen on 127.0.0.1:{}: address already in use: another program listens "
         "there; stop it or choose another port"),
        ("-db", "-db: cannot open /nonexistent/db: no such file or directory"),
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
        server.process.expect("stopping: 1 tunnel")
        assert server.process.stop() == 0
        server.process.expect_silence(SOON)
