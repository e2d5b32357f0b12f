"""Telling the workers of a process apart: real tunnels, and who has them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.processes import Process, eventually

# Far longer than any test: a process that ends earlier did not wait for it.
LONG = "60s"
# Seconds in which something happens at once on a busy machine.
SOON = 10.0

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


class Echo:
    """A destination that answers with what it gets."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    def close(self) -> None:
        """End all connections and threads: tests count this process's descriptors."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._threads[0].join()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


def workers_of_tunnels(process: Process) -> list[str]:
    """The number of the worker of each tunnel that was ever open, as far as it has been told."""
    return re.findall(r"\[(\d)\]: (?:\w+: )?(?:local socket|\S+): open", process.output)


def workers_with_tunnels(process: Process) -> set[str]:
    return set(workers_of_tunnels(process))


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), SOON)


@contextlib.contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """Have a worker wait, so that whatever comes now goes to another one."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def check_echo(application: socket.socket) -> None:
    application.sendall(b"still here")
    found = b""
    while len(found) < 10:
        data = application.recv(10 - len(found))
        assert data, "the tunnel has ended"
        found += data
    assert found == b"still here"


def worker(process: Process, number: int) -> int:
    """The pid of a worker, the latest with this number."""
    process.expect(rf"worker {number} \(pid \d+\) started")
    found = re.findall(rf"worker {number} \(pid (\d+)\) started", process.output)
    return int(found[-1])


def open_in(stack: contextlib.ExitStack, process: Process, number: int, port: int) -> socket.socket:
    """Open a tunnel of which that one of the two workers of `process` has a part.

    Clients must begin a session for it, or it might be one of the other worker's.
    """
    told = len(workers_of_tunnels(process))
    with standing_still(worker(process, 3 - number)):
        tunnel = stack.enter_context(connect(port))
        check_echo(tunnel)
    # It works before we have read whose it is.
    eventually(partial(_has_told, process, told + 1), "it says which worker has the tunnel")
    assert workers_of_tunnels(process)[-1] == str(number)
    return tunnel


def in_both(stack: contextlib.ExitStack, process: Process, port: int) -> list[socket.socket]:
    """Open a tunnel in each of the two workers of `process` that has none yet."""
    missing = {"1", "2"} - workers_with_tunnels(process)
    return [open_in(stack, process, int(number), port) for number in sorted(missing)]


def _has_told(process: Process, count: int) -> bool:
    return len(workers_of_tunnels(process)) >= count
