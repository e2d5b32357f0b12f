"""The UDP row: datagrams through our modes, through length-prefixed TCP, and relayed by socat."""

from __future__ import annotations

import contextlib
import socket
import statistics
import sys
import time

from bench.loads import SETTLE_TIME, Sample, Scene
from bench.processes import LOOPBACK, BenchError, address, find_tool, free_port
from bench.subjects import Command, Place, Subject, our_subjects, running
from bench.udp_programs import BUFFER, COUNT, ECHO

# Bytes of a datagram: the maximum of QUIC and WireGuard on any path.
SIZE = 1200
# Datagrams per second that our tunnels should carry without loss, sent every TICK seconds.
RATE = 20_000
TICK = 0.001
ECHOES = 200
SOCAT = "socat"
FRAMES = "length-prefixed TCP"

# Seconds until a tunnel carries the first datagram, and per attempt.
START_TIME = 15.0
ATTEMPT_TIME = 0.05


def udp_subjects() -> list[Subject]:
    """Our modes with -udp on the default loop, and programs that carry UDP without encryption."""
    ours = [each for each in our_subjects("-udp") if "uvloop" not in each.name]
    socat = find_tool("socat")
    return [
        *ours,
        Subject(FRAMES, client=_frames("client"), server=_frames("server")),
        Subject(SOCAT, client=_socat, missing="" if socat else "not installed: socat"),
    ]


def measure_udp(scene: Scene, subject: Subject) -> Sample:
    """Datagrams that arrive at full speed and at RATE, CPU of each, round trip of an echo."""
    sink = free_port()
    scene.programs.start([sys.executable, "-m", "bench.udp_programs", "sink", str(sink)])
    with (
        running(
            subject, sink, scene.programs, scene.certs, scene.directory,
            is_udp=subject.name in (FRAMES, SOCAT),
        ) as tunnel,
        _connected(sink) as counter,
        _connected(tunnel.port) as application,
    ):  # fmt: skip
        _wait_answering(counter)
        _wait_answering(application)
        echo = statistics.median(_echo_time(application) for _ in range(ECHOES))
        first = _count(counter)
        before = tunnel.cpu()
        sent = _send(application, scene.effort.udp, RATE)
        time.sleep(SETTLE_TIME)
        used = tunnel.cpu() - before
        second = _count(counter)
        arrived = second - first
        if not arrived:
            raise BenchError("no datagram arrived")
        _send(application, scene.effort.udp, 0)
        time.sleep(SETTLE_TIME)
        full = (_count(counter) - second) / scene.effort.udp
        tunnel.check()
    return {
        "full": full,
        "loss": 100 * (1 - arrived / sent),
        "client_us": used.client / arrived * 1e6,
        "server_us": used.server / arrived * 1e6,
        "echo_ms": echo * 1e3,
    }


def _frames(role: str) -> Command:
    def command(place: Place) -> list[str]:
        ports = str(place.listen), str(place.connect)
        return [sys.executable, "-m", "bench.udp_programs", role, *ports]

    return command


def _socat(place: Place) -> list[str]:
    listen = f"udp4-listen:{place.listen},bind={LOOPBACK},rcvbuf={BUFFER}"
    return [find_tool("socat"), "-b", "65536", listen, f"udp4:{address(place.connect)}"]


def _connected(port: int) -> contextlib.closing[socket.socket]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((LOOPBACK, port))
    return contextlib.closing(sock)


def _wait_answering(sock: socket.socket) -> None:
    """Send until there is an echo. Raises BenchError."""
    sock.settimeout(ATTEMPT_TIME)
    until = time.monotonic() + START_TIME
    while time.monotonic() < until:
        try:
            sock.send(ECHO)
            sock.recv(1)
        except TimeoutError:
            continue
        except OSError:  # refused: it does not listen yet
            time.sleep(ATTEMPT_TIME)
            continue
        with contextlib.suppress(TimeoutError):
            while sock.recv(1):  # answers to earlier attempts
                pass
        sock.settimeout(START_TIME)
        return
    raise BenchError("no datagram came back")


def _echo_time(sock: socket.socket) -> float:
    start = time.perf_counter()
    sock.send(ECHO)
    try:
        sock.recv(1)
    except TimeoutError:
        raise BenchError("an echo was lost") from None
    return time.perf_counter() - start


def _count(sock: socket.socket) -> int:
    """How many datagrams have arrived so far. Raises BenchError."""
    sock.settimeout(ATTEMPT_TIME)
    for attempt in range(100):  # the sink's buffer may be full
        question = b"%s%d %f" % (COUNT, attempt, time.monotonic())
        sock.send(question)
        with contextlib.suppress(TimeoutError):
            while not (answer := sock.recv(100)).startswith(question):
                pass
            return int(answer.rpartition(b" ")[2])
    raise BenchError("the destination does not answer")


def _send(sock: socket.socket, seconds: float, rate: int) -> int:
    """Send for `seconds`, `rate` per second or (0) as many as possible. Returns the number."""
    datagram = bytes(SIZE)
    sent = 0
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        due = int(passed * rate) if rate else sent + 32
        while sent < due:
            sock.send(datagram)
            sent += 1
        if rate:
            time.sleep(TICK)
    return sent
