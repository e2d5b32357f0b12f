"""Streams share a multiplexed connection fairly: small requests beside a bulk transfer.

One stream moves data as fast as it goes, in either direction, while another one of the same session
carries requests and their replies, one after the other. What counts is how much later the replies
come than without the bulk. That is queueing: of whatever has been accepted from the bulk (by the
session, by the kernels of both ends) and is on its way before the request.

On loopback the project promises 30 ms; the median is held to that, and nine out of ten requests to
twice as much. Client and server are programs there, so that each has what the machine gives it and
not turns in one loop. The machine may be busy with other things. So the time for which the kernel
let a program wait for a CPU that was ready to run does not count (of both, that of the one which
waited longer); on an idle machine it is next to nothing. And the best of some rounds counts: a
queue would be there in all of them.

Loopback is so fast that megabytes pass in that time. A line of known speed shows how long the queue
is.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
import socket
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.tunnels import start_client, start_server
from tests.support.certs import Certs
from tests.support.faults import FaultProxy, Line
from tests.support.processes import MODES, Process, Processes, eventually
from tests.support.tunnels import (
    Tcp,
    cancel,
    client_of,
    connect,
    in_mux_modes,
    port_of,
    server_at,
    serving,
)

# Seconds that the bulk may add to a request on loopback: what the project promises.
ADDED = 0.030
ROUNDS = 3
REQUESTS = 100
REQUEST = b"r" * 200
# By then buffers that can fill have filled: the kernel lets them grow while data flows.
WARM_UP = 20_000_000

ZEROS = bytes(1 << 20)


# In a process of its own. The first byte of a connection says what it is for.
DESTINATION = """
import socket, socketserver
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        kind, zeros = self.request.recv(1), bytes(1 << 20)
        try:
            while kind == b"d":
                self.request.sendall(zeros)
            while data := self.request.recv(1 << 20):
                if kind == b"e":
                    self.request.sendall(data)
        except OSError:
            pass
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
with Server(("127.0.0.1", 0), Handler) as server:
    print("on port", server.server_address[1], flush=True)
    server.serve_forever()
"""


class Bulk:
    """Moves zeros through a tunnel as fast as they go, in a thread."""

    def __init__(self, port: int, direction: str) -> None:
        self.moved = 0
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.sendall(b"u" if direction == "up" else b"d")
        self._thread = threading.Thread(target=self._run, args=(direction,))
        self._thread.start()

    def _run(self, direction: str) -> None:
        buffer = bytearray(1 << 16)
        move = self._sock.send if direction == "up" else self._sock.recv_into
        with contextlib.suppress(OSError):
            while count := move(buffer):
                self.moved += count

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()


@contextlib.contextmanager
def bulk(port: int, direction: str) -> Iterator[Bulk]:
    running = Bulk(port, direction)
    try:
        eventually(lambda: running.moved > WARM_UP, "the bulk flows")
        yield running
    finally:
        running.stop()


def latencies(sock: socket.socket, programs: list[Process]) -> list[float]:
    """Seconds that requests took, one after the other, but for those without a CPU."""
    found = []
    for _ in range(REQUESTS):
        before = [waited(program) for program in programs]
        begin = time.perf_counter()
        sock.sendall(REQUEST)
        missing = len(REQUEST)
        while missing:
            missing -= len(sock.recv(missing))
        elapsed = time.perf_counter() - begin
        found.append(elapsed - max(map(operator.sub, map(waited, programs), before)))
    return found


def waited(program: Process) -> float:
    """Seconds for which a program could have run and others had the CPU, so far.

    Linux counts that (Documentation/scheduler/sched-stats.rst); elsewhere it is 0.
    """
    try:
        counters = Path(f"/proc/{program.pid}/schedstat").read_text()
    except FileNotFoundError:
        return 0.0
    return int(counters.split()[1]) / 1e9


def p90(values: list[float]) -> float:
    return statistics.quantiles(values, n=10)[-1]


@pytest.mark.deadline(60)
@pytest.mark.parametrize("direction", ["up", "down"])
@in_mux_modes
def test_a_bulk_stream_hardly_delays_small_requests_beside_it(
    mode: str, direction: str, processes: Processes, certs: Certs
) -> None:
    destination = processes.start(sys.executable, "-c", DESTINATION)
    where = f"127.0.0.1:{destination.expect('on port ([0-9]+)')[1]}"
    server, server_port = start_server(processes, certs, where, *MODES[mode])
    client, port = start_client(processes, certs, server_port, *MODES[mode])
    programs = [server, client]
    rounds = []
    with socket.create_connection(("127.0.0.1", port)) as small:
        small.sendall(b"e")
        latencies(small, programs)
        alone = latencies(small, programs)
        for _ in range(ROUNDS):
            with bulk(port, direction) as running:
                before = running.moved
                beside = latencies(small, programs)
                assert running.moved - before > 1_000_000  # nor do the requests starve it
            added = [figure(beside) - figure(alone) for figure in (statistics.median, p90)]
            if added[0] < ADDED and added[1] < 2 * ADDED:
                return
            rounds.append("median {:.0f} ms, 9 of 10 {:.0f} ms".format(*(1e3 * x for x in added)))
    pytest.fail("a bulk stream adds " + "; ".join(rounds))


# Bytes per second of a line, and bytes of the bulk that may be in front of a request on it: 64 KiB
# at the line's head, 128 KiB unsent in the sender's kernel, and two rounds of reads of 64 KiB each
# in the sender, besides the small buffers of the line's sockets.
RATE = 8_000_000
IN_FRONT = 640 * 1024


@pytest.mark.parametrize("direction", ["up", "down"])
@in_mux_modes
async def test_little_of_a_bulk_stream_is_in_front_of_a_request(
    mode: str, direction: str, certs: Certs
) -> None:
    bulk = 0  # bytes of the bulk that arrived
    begin, found = 0, []  # bulk before a request (up) or a reply (down) left; what overtook each

    async def serve(connection: Tcp) -> None:
        nonlocal bulk, begin
        kind = await connection.exactly(1)
        while kind == b"d":
            await connection.send(ZEROS)
        while kind == b"u" and (data := await connection.read()):
            bulk += len(data)
        while data := await connection.exactly(len(REQUEST)):
            if direction == "up":
                found.append(bulk - begin)
            begin = bulk
            await connection.send(data)

    async def transfer(application: Tcp) -> None:
        nonlocal bulk
        await application.send(b"u" if direction == "up" else b"d")
        while True:
            if direction == "up":
                await application.send(ZEROS)
            else:
                bulk += len(await application.read())

    async with (
        serving(serve) as there,
        server_at(mode, there.port, certs) as server,
        FaultProxy(port_of(server), line=Line(rate=RATE)) as line,
        client_of(mode, line.port, certs) as client,
        await connect(port_of(client)) as small,
        await connect(port_of(client)) as large,
    ):
        await small.send(b"e")
        transferring = asyncio.create_task(transfer(large))
        try:
            for _ in range(30):
                begin = bulk
                await small.check_echo(REQUEST)
                if direction == "down":
                    found.append(bulk - begin)
        finally:
            await cancel(transferring)
        assert bulk > IN_FRONT  # it flowed
        assert statistics.median(found[10:]) < IN_FRONT
