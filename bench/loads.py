"""The loads: what is done to a running subject, and which figures come of it."""

from __future__ import annotations

import socket
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench import tools
from bench.certs import Certs
from bench.destination import start_echo, start_iperf, start_site
from bench.processes import LOOPBACK, BenchError, Programs, find_tool, free_port
from bench.subjects import STREAMS, Subject, Tunnel, Usage, running

Sample = dict[str, float]

DELAY = 0.05  # seconds, one way: a neighbouring continent

# The most that one session of ours carries, so that its own share is small.
MEMORY_STREAMS = 16
# Before the count begins: what the first connections cost is not what the next ones do.
MEMORY_WARM_UP = 32
# Opened at a time; all programs take so many without a queue running over.
MEMORY_BATCH = 16

# Connections are closed and records written after the load generator has finished.
SETTLE_TIME = 0.2
SOCKET_TIME = 20.0  # seconds; only a broken subject uses them up


@dataclass(frozen=True)
class Effort:
    """How long each measurement takes.

    Attributes:
        bulk: iperf3's amount of one direction.
        requests: seconds of wrk with 1 and with 32 connections; 0 is not at all.
        conns: seconds of new connections.
        ab: seconds and number of new connections, whichever ends first; 0 is none.
        idle: connections of the memory row.
        handshakes: in memory.
        agents: of a gateway, at rest for `rest` seconds.
        layer_seconds: CPU seconds per stack of layers.
        udp: seconds of datagrams.
    """

    rounds: int
    bulk: tuple[str, str]
    requests: tuple[int, int]
    conns: int
    ab: tuple[int, int]
    idle: int
    handshakes: int
    agents: int
    rest: int
    layer_seconds: float
    udp: float


FULL = Effort(
    rounds=3,
    bulk=("-t", "1"),
    # wrk counts the handshakes of its first moment as latency: with 32 connections some 50 ms.
    requests=(1, 3),
    conns=1,
    ab=(1, 2000),
    idle=600,
    handshakes=300,
    agents=5000,
    rest=15,
    layer_seconds=0.2,
    udp=1.0,
)
QUICK = Effort(
    rounds=1,
    bulk=("-n", "128M"),
    requests=(0, 1),
    conns=1,
    ab=(0, 0),
    idle=100,
    handshakes=100,
    agents=100,
    rest=2,
    layer_seconds=0.05,
    udp=0.5,
)


@dataclass(frozen=True)
class Scene:
    """Where a measurement happens."""

    programs: Programs
    certs: Certs
    directory: Path
    effort: Effort


def bulk(scene: Scene, subject: Subject) -> Sample:
    """Throughput of one connection in Gbit/s and CPU seconds per GB, up and down."""
    sample: Sample = {}
    destination = start_iperf(scene.programs)
    with _running(scene, subject, destination) as tunnel:
        for direction in ("up", "down"):
            before = tunnel.cpu()
            transfer = tools.iperf(
                tunnel.port, amount=scene.effort.bulk, down=direction == "down"
            )
            tunnel.check()
            used = tunnel.cpu() - before
            sample[direction] = transfer.gbit
            if tunnel.client is not None:
                sample[f"{direction}_client"] = used.client / (transfer.size / 1e9)
                sample[f"{direction}_server"] = used.server / (transfer.size / 1e9)
    sample["worst"] = min(sample["up"], sample["down"])
    return sample


def requests(scene: Scene, subject: Subject) -> Sample:
    """Keep-alive requests on 1 and on 32 connections: rate, median and 99th percentile in ms, and
    CPU us of both ends for one."""
    sample: Sample = {}
    destination = start_site(scene.programs, scene.directory)
    with _running(scene, subject, destination) as tunnel:
        for connections, seconds in zip((1, 32), scene.effort.requests, strict=True):
            if not seconds:
                continue
            before = tunnel.cpu()
            result = tools.wrk(tunnel.port, connections=connections, seconds=seconds)
            used = tunnel.cpu() - before
            sample[f"rate{connections}"] = result.rate
            sample[f"p50_{connections}"] = result.p50
            sample[f"p99_{connections}"] = result.p99
            if tunnel.client is not None:
                # Says more than the rate when other programs are busy, too.
                sample[f"us_{connections}"] = (used.client + used.server) / result.answers * 1e6
        tunnel.check()
    return sample


def conns(scene: Scene, subject: Subject) -> Sample:
    """New connections per second, and CPU us of each end for one.

    `ab` are those per second when the destination is the one to close: a tunnel that is slow to
    pass that on makes the application wait.
    """
    destination = start_site(scene.programs, scene.directory)
    with _running(scene, subject, destination) as tunnel:
        before = tunnel.cpu()
        result = tools.new_connections(tunnel.port, seconds=scene.effort.conns)
        time.sleep(SETTLE_TIME)
        tunnel.check()
        used = tunnel.cpu() - before
        sample = {"rate": result.rate}
        if tunnel.client is not None:
            sample["client_us"] = used.client / result.made * 1e6
            sample["server_us"] = used.server / result.made * 1e6
        seconds, limit = scene.effort.ab
        if seconds and find_tool("ab"):
            sample["ab"] = tools.ab(tunnel.port, seconds=seconds, limit=limit).rate
            tunnel.check()
    return sample


def first_byte(scene: Scene, subject: Subject) -> Sample:
    """Milliseconds and round trips from connect() until a byte has come back, cold and warm."""

    def delayed(port: int) -> int:
        listen = free_port()
        argv = [sys.executable, "-m", "bench.delay", str(listen), str(port), str(DELAY)]
        scene.programs.start(argv).wait_listening(listen)
        return listen

    destination = start_echo(scene.programs)
    with running(
        subject,
        destination,
        scene.programs,
        scene.certs,
        scene.directory,
        between=delayed,
    ) as tunnel:
        cold = _echo_time(tunnel)
        # Time for session tickets to arrive, and for the end of the first connection to be known.
        time.sleep(4 * DELAY)
        warm = _echo_time(tunnel)
    return {
        "cold": cold * 1e3,
        "cold_trips": cold / (2 * DELAY),
        "warm": warm * 1e3,
        "warm_trips": warm / (2 * DELAY),
    }


def memory(scene: Scene, subject: Subject) -> Sample:
    """KB of resident memory per open connection that has carried a byte and is idle now."""
    count = scene.effort.idle
    destination = start_echo(scene.programs)
    streams = MEMORY_STREAMS if subject.mux else STREAMS
    opened: list[socket.socket] = []
    with _running(scene, subject, destination, streams) as tunnel:
        try:
            _open_idle(tunnel, MEMORY_WARM_UP, opened)
            before = _settled_rss(tunnel)
            _open_idle(tunnel, count, opened)
            added = _settled_rss(tunnel) - before
        finally:
            for connection in opened:
                connection.close()
    return {
        "client_kb": added.client / count / 1024,
        "server_kb": added.server / count / 1024,
        "client_mb": before.client / 1e6,
        "server_mb": before.server / 1e6,
    }


def _running(
    scene: Scene, subject: Subject, destination: int, streams: int = STREAMS
) -> AbstractContextManager[Tunnel]:
    return running(
        subject, destination, scene.programs, scene.certs, scene.directory, streams=streams
    )


def _echo_time(tunnel: Tunnel) -> float:
    """Seconds until the first byte has come back on a new connection."""
    start = time.perf_counter()
    with _connect(tunnel) as connection:
        _expect_echo(tunnel, connection)
        return time.perf_counter() - start


def _open_idle(tunnel: Tunnel, count: int, opened: list[socket.socket]) -> None:
    while count:
        batch = [_connect(tunnel) for _ in range(min(count, MEMORY_BATCH))]
        opened += batch
        for connection in batch:
            _expect_echo(tunnel, connection)
        count -= len(batch)


def _connect(tunnel: Tunnel) -> socket.socket:
    try:
        connection = socket.create_connection((LOOPBACK, tunnel.port), SOCKET_TIME)
        connection.sendall(b"?")
    except OSError as error:
        tunnel.check()
        raise BenchError(f"no connection: {error}") from None
    return connection


def _expect_echo(tunnel: Tunnel, connection: socket.socket) -> None:
    try:
        answer = connection.recv(1)
    except OSError as error:
        tunnel.check()
        raise BenchError(f"no answer: {error}") from None
    if answer != b"?":
        tunnel.check()
        raise BenchError("a connection was closed without an answer")


def _settled_rss(tunnel: Tunnel) -> Usage:
    time.sleep(SETTLE_TIME)
    return tunnel.rss()
