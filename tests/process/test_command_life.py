"""How the commands end, run out of descriptors, and log: real processes, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtt.net import accept
from tests.support.processes import (
    MODES,
    Process,
    Processes,
    command,
    eventually,
    is_free,
    listening,
)

in_every_mode = pytest.mark.parametrize("mode", MODES)
at_either_end = pytest.mark.parametrize("end", ["client", "server"])

# Far longer than any test: a process that ends earlier did not wait for it.
LONG = "60s"
# Seconds in which a process that has nothing to wait for is gone, on a busy machine.
SOON = 10.0

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


class Destination:
    """Accepts connections for the test to hold."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(SOON)
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"

    def accept(self) -> socket.socket:
        connection, _ = self._socket.accept()
        connection.settimeout(SOON)
        return connection

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def destination() -> Iterator[Destination]:
    there = Destination()
    yield there
    there.close()


class Pair:
    """mtt-client and mtt-server in front of a destination."""

    def __init__(
        self,
        processes: Processes,
        destination: Destination,
        *options: str,
        grace: str = LONG,
        client: tuple[str, ...] = (),
    ) -> None:
        options = (*options, "-grace", grace)
        self.destination = destination
        self.server = processes.command(
            "mtt-server", "-b", "127.0.0.1:0", "-d", destination.address, *options
        )
        self.server_port = listening(self.server)[1]
        self.client = processes.command(
            "mtt-client", "-b", "127.0.0.1:0", "-s", f"127.0.0.1:{self.server_port}", "-sv",
            *options, *client,
        )  # fmt: skip
        self.port = listening(self.client)[1]

    def of(self, end: str) -> tuple[Process, int]:
        """The process at this end, and its port."""
        if end == "client":
            return self.client, self.port
        return self.server, self.server_port

    @contextlib.contextmanager
    def tunnel(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """An open tunnel: the application's connection and the destination's."""
        with socket.create_connection(("127.0.0.1", self.port), SOON) as application:
            application.sendall(b"hello")
            with self.destination.accept() as served:
                assert exactly(served, 5) == b"hello"
                yield application, served


def exactly(sock: socket.socket, size: int) -> bytes:
    found = bytearray()
    while len(found) < size and (data := sock.recv(size - len(found))):
        found += data
    return bytes(found)


def check_echo(one: socket.socket, other: socket.socket) -> None:
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"still here")
        assert exactly(receiver, 10) == b"still here"


@in_every_mode
@at_either_end
def test_tunnels_finish_while_a_new_process_takes_over(
    processes: Processes, destination: Destination, mode: str, end: str
) -> None:
    pair = Pair(processes, destination, *MODES[mode])
    process, port = pair.of(end)
    with pair.tunnel() as (application, served):
        process.send(signal.SIGTERM)
        process.expect(r"INFO mtt-\w+: stopping: waiting up to 60 s for 1 tunnel")
        assert is_free(port)
        address = ("-b", f"127.0.0.1:{port}", "-d", destination.address)
        if end == "server":
            successor = processes.command("mtt-server", *address, *MODES[mode])
            assert listening(successor)[1] == port
        check_echo(application, served)
        assert process.running
    ended = time.monotonic()
    assert process.wait() == 0
    assert time.monotonic() - ended < SOON
    if end == "server":
        # The client goes to the new process, also where it had a mux session with the old one.
        with pair.tunnel() as (application, served):
            check_echo(application, served)


@at_either_end
def test_a_tunnel_that_does_not_finish_is_cut(
    processes: Processes, destination: Destination, end: str
) -> None:
    pair = Pair(processes, destination, grace="300ms")
    process, _ = pair.of(end)
    with pair.tunnel() as (application, served):
        assert process.stop() == 0
        for sock in (application, served):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    assert "stopping: waiting up to 0.3 s for 1 tunnel" in process.output
    assert "1 tunnel cut after 0.3 s" in process.output


@at_either_end
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(
    processes: Processes, destination: Destination, end: str, number: int
) -> None:
    pair = Pair(processes, destination)
    process, _ = pair.of(end)
    with pair.tunnel():
        process.send(number)
        process.expect("stopping: .*1 tunnel")
        assert process.stop(number) == 0


@pytest.mark.parametrize("mode", ["mux", "wss+mux"])
@at_either_end
def test_idle_sessions_do_not_delay_shutdown(
    processes: Processes, destination: Destination, mode: str, end: str
) -> None:
    pair = Pair(processes, destination, *MODES[mode], "-verbose")
    process, _ = pair.of(end)
    with pair.tunnel():
        pass
    process.expect("closed after")
    process.send(signal.SIGTERM)
    assert process.wait(SOON) == 0
    assert "WARNING" not in pair.client.output + pair.server.output


def test_idle_sessions_end_first(processes: Processes, destination: Destination) -> None:
    """While one session still carries something, the client takes the other streams elsewhere."""
    options = ("-wss", "-mux", "-mux-max-stream", "1")
    pair = Pair(processes, destination, *options[:2], client=options[2:])
    with pair.tunnel() as (application, served):
        with pair.tunnel():
            pass
        pair.server.send(signal.SIGTERM)
        pair.server.expect("stopping: ")
        successor = processes.command(
            "mtt-server", "-b", f"127.0.0.1:{pair.server_port}", "-d", destination.address,
            "-wss", "-verbose",
        )  # fmt: skip
        successor.expect("listening on")
        with pair.tunnel() as another:
            check_echo(*another)
            successor.expect(": open")
            assert pair.server.running
        check_echo(application, served)
    assert pair.server.wait() == 0


@in_every_mode
def test_the_last_reply_is_whole(
    processes: Processes, destination: Destination, mode: str
) -> None:
    """When the server ends, the last bytes wait in its buffers for a client that is slow.

    The application has said all it had to say, so the tunnel is over for the server as soon as the
    destination closes.
    """
    pair = Pair(processes, destination, *MODES[mode])
    reply = bytes(range(256)) * 64 * 1024  # 16 MiB, more than all buffers together
    with pair.tunnel() as (application, served):
        sender = threading.Thread(target=_send_and_close, args=(served, reply))
        sender.start()
        application.shutdown(socket.SHUT_WR)
        assert exactly(application, 1024) == reply[:1024]
        pair.server.send(signal.SIGTERM)
        pair.server.expect("stopping: .*1 tunnel")
        rest = bytearray()
        while data := application.recv(256 * 1024):
            rest += data
            time.sleep(0.002)  # not a wait for anything: this reader is slow
        sender.join()
        assert rest == reply[1024:]
    assert pair.server.wait() == 0


def _send_and_close(served: socket.socket, data: bytes) -> None:
    served.sendall(data)
    served.close()


def test_a_plugin_does_not_wait_for_tunnels(
    processes: Processes, destination: Destination
) -> None:
    host, port = destination.address.split(":")
    server = processes.start(
        *command("mtt-server"),
        env={
            "SS_REMOTE_HOST": "127.0.0.1", "SS_REMOTE_PORT": "0", "SS_LOCAL_HOST": host,
            "SS_LOCAL_PORT": port, "SS_PLUGIN_OPTIONS": f"disable-tls;grace={LONG}",
        },
    )  # fmt: skip
    with socket.create_connection(listening(server), SOON) as application:
        application.sendall(b"hello")
        with destination.accept() as served:
            assert exactly(served, 5) == b"hello"
            assert server.stop() == 0
    assert "stopping" not in server.output


def limited_server(processes: Processes, descriptors: int, *options: str) -> Process:
    """mtt-server with so many descriptors at most."""
    program = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors},) * 2); "
        "sys.path.insert(0, '.'); from mtt_server import main; sys.exit(main())"
    )
    return processes.start(
        sys.executable, "-c", program, "-b", "127.0.0.1:0", *options, cwd=Path(__file__).parents[2]
    )


NO_DESCRIPTORS = "accepting paused until connections end: almost all descriptors are in use"


def test_running_out_of_descriptors_and_back(
    processes: Processes, destination: Destination, loop: str
) -> None:
    server = limited_server(processes, 40, "-d", destination.address, "-loop", loop, "-wss")
    address = listening(server)
    crowd = [socket.create_connection(address, SOON) for _ in range(120)]
    server.expect(f"ERROR mtt-server: {NO_DESCRIPTORS}; raise their limit, 40 ")
    crowd[-1].settimeout(0.5)
    with pytest.raises(TimeoutError):  # it waits, and is not closed
        crowd[-1].recv(1)
    for connection in crowd[:-1]:
        connection.close()
    server.expect("INFO mtt-server: accepting resumed")
    crowd[-1].settimeout(SOON)
    crowd[-1].sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert crowd[-1].recv(12).startswith(b"HTTP/1.1 400")  # this is a port for TLS
    crowd[-1].close()
    assert server.stop() == 0
    assert server.output.count(NO_DESCRIPTORS) == 1
    for bad in ("internal error", "Traceback", "too many open files"):
        assert bad not in server.output


def test_tunnels_work_while_connections_wait_for_descriptors(
    processes: Processes, destination: Destination, loop: str
) -> None:
    """Accepted connections reach the destination: descriptors are reserved for that."""
    options = ("-d", destination.address, "-loop", loop, "-disable-tls")
    server = limited_server(processes, 64, *options)
    address = listening(server)
    tunnels: list[tuple[socket.socket, socket.socket]] = []
    reserved = 64 - 64 // accept.RESERVED_PART
    while max(map(int, os.listdir(f"/proc/{server.pid}/fd"))) <= reserved:
        application = socket.create_connection(address, SOON)
        application.sendall(b"hello")
        served = destination.accept()
        assert exactly(served, 5) == b"hello"
        tunnels.append((application, served))
    server.expect(NO_DESCRIPTORS)
    with socket.create_connection(address, SOON) as late:
        late.sendall(b"late!")
        check_echo(*tunnels[0])
        for sock in tunnels.pop(0):
            sock.close()
        with destination.accept() as served:
            assert exactly(served, 5) == b"late!"
            check_echo(late, served)
    for pair in tunnels:
        check_echo(*pair)
        for sock in pair:
            sock.close()
    assert server.stop() == 0
    assert "too many open files" not in server.output


@pytest.mark.parametrize("mode", ["tls", "wss+mux"])
def test_json_from_the_first_line_to_the_last(
    processes: Processes, destination: Destination, mode: str
) -> None:
    pair = Pair(processes, destination, *MODES[mode], "-log", "json", "-log-level", "debug")
    with pair.tunnel():
        pass
    pair.server.expect("closed after")
    for process in (pair.client, pair.server):
        assert process.stop() == 0
        process.expect_silence()
        lines = [json.loads(line) for line in process.output.splitlines()]
        assert {line["program"] for line in lines} == {process.name}
        assert {"info", "debug"} <= {line["level"] for line in lines}


def test_quiet(processes: Processes, destination: Destination) -> None:
    server = processes.command(
        "mtt-server", "-b", "127.0.0.1:0", "-d", destination.address, "-log-level", "error"
    )
    # It says nothing when it listens, so ask the kernel when SIGTERM is handled.
    eventually(lambda: _handles(server.pid, signal.SIGTERM), "it starts")
    assert server.stop() == 0
    assert server.expect_silence() == ""


def _handles(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_the_limit_of_descriptors_is_raised(
    processes: Processes, destination: Destination
) -> None:
    server = processes.command("mtt-server", "-b", "127.0.0.1:0", "-d", destination.address)
    listening(server)
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    assert soft == hard
    assert server.stop() == 0
