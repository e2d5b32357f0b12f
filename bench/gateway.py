"""Connections through a gateway and its agent: by CONNECT, by SOCKS5, and by a tunnel to compare.

Ours is anyproxy-gateway with anyproxy-client. Any other gateway can be measured by its two command
lines in the environment:

    PEER_GATEWAY='prog --config {gateway}'
    PEER_AGENT='prog --config {agent}'

`{gateway}` and `{agent}` are files in YAML as the Go program has them: TLS, HTTP and SOCKS5
proxies, one group, no login of the gateway.
"""

from __future__ import annotations

import os
import shlex
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.destination import start_echo
from bench.loads import MEMORY_WARM_UP, SETTLE_TIME, SOCKET_TIME, Effort, Sample, Scene
from bench.measure import cpu_seconds, rss_bytes
from bench.processes import LOOPBACK, BenchError, Program, address, free_port
from bench.subjects import MODES, our_subjects, running

GROUP, PASSWORD = "bench", "secret"
_LOGIN = "YmVuY2g6c2VjcmV0"  # both in Base64

# Bytes of one download; small enough for a gateway that breaks at 14 MB to carry one now and then.
BULK = 256 * 1024 * 1024
# Downloads beside which an echo is timed, and how often.
NEIGHBOURS, ECHOES = 4, 100
CONNECTION_THREADS = 8

_CONFIG = """
gateway:
  listen_addr: "{agents}"
  transport_type: websocket
  tls_cert: {certs.cert}
  tls_key: {certs.key}
  proxy:
    http: {{listen_addr: "{http}"}}
    socks5: {{listen_addr: "{socks5}"}}
"""
_AGENT_CONFIG = """
client:
  id: bench
  group_id: {group}
  group_password: {password}
  replicas: 1
  gateway:
    addr: "{agents}"
    transport_type: websocket
    tls_cert: {certs.ca}
"""


@dataclass(frozen=True)
class Pair:
    """A running gateway and its agent."""

    gateway: Program
    agent: Program
    http: int
    socks5: int
    agent_config: str

    def used(self) -> tuple[float, float]:
        """CPU seconds so far, of gateway and agent."""
        return cpu_seconds(self.gateway.pid), cpu_seconds(self.agent.pid)

    def resident(self) -> tuple[int, int]:
        time.sleep(SETTLE_TIME)
        return rss_bytes(self.gateway.pid), rss_bytes(self.agent.pid)


def our_command(file: Path, role: str) -> list[str]:
    return [sys.executable, "-m", f"anyproxy.{role}_command", "-config", str(file)]


def peer_command(file: Path, role: str) -> list[str]:
    name = "PEER_GATEWAY" if role == "gateway" else "PEER_AGENT"
    return shlex.split(os.environ[name].format(gateway=file, agent=file))


def peer_missing() -> str:
    """Why there is no other gateway to measure; "" if there is."""
    has_both = os.environ.get("PEER_GATEWAY") and os.environ.get("PEER_AGENT")
    return "" if has_both else "PEER_GATEWAY and PEER_AGENT are not set"


@contextmanager
def pair(scene: Scene, command: Callable[[Path, str], list[str]]) -> Iterator[Pair]:
    """A gateway and an agent that has joined. Raises BenchError."""
    agents, http, socks5 = free_port(), free_port(), free_port()
    values = {
        "agents": address(agents),
        "http": address(http),
        "socks5": address(socks5),
        "group": GROUP,
        "password": PASSWORD,
        "certs": scene.certs,
    }
    files = {}
    texts = {"gateway": _CONFIG.format(**values), "client": _AGENT_CONFIG.format(**values)}
    for role, text in texts.items():
        files[role] = scene.directory / f"{role}.yaml"
        files[role].touch(mode=0o600)
        files[role].write_text(text)
    gateway = scene.programs.start(command(files["gateway"], "gateway"))
    gateway.wait_listening(http)
    agent = scene.programs.start(command(files["client"], "client"))
    running_pair = Pair(gateway, agent, http, socks5, texts["client"])
    echo = start_echo(scene.programs)
    until = time.monotonic() + SOCKET_TIME
    while True:  # until the agent has joined
        try:
            by_connect(running_pair, echo).close()
            break
        except BenchError:
            gateway.check()
            agent.check()
            if time.monotonic() > until:
                raise
            time.sleep(SETTLE_TIME)
    yield running_pair


def by_connect(both: Pair, port: int) -> socket.socket:
    """A connection through the HTTP proxy. Raises BenchError."""
    sock = socket.create_connection((LOOPBACK, both.http), SOCKET_TIME)
    sock.sendall(
        f"CONNECT {address(port)} HTTP/1.1\r\nHost: {address(port)}\r\n"
        f"Proxy-Authorization: Basic {_LOGIN}\r\n\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        more = sock.recv(1)  # nothing of what follows
        if not more:
            break
        answer += more
    if b" 200 " not in answer.partition(b"\r\n")[0]:
        sock.close()
        raise BenchError(f"CONNECT: {answer.partition(b'%c' % 13)[0].decode(errors='replace')}")
    return sock


def by_socks5(both: Pair, port: int) -> socket.socket:
    """A connection through the SOCKS5 proxy. Raises BenchError."""
    sock = socket.create_connection((LOOPBACK, both.socks5), SOCKET_TIME)
    login = b"\1%c%b%c%b" % (len(GROUP), GROUP.encode(), len(PASSWORD), PASSWORD.encode())
    request = b"\5\1\0\1" + socket.inet_aton(LOOPBACK) + port.to_bytes(2, "big")
    for said, size in ((b"\5\1\2", 2), (login, 2), (request, 10)):
        sock.sendall(said)
        answer = _exactly(sock, size)
        if answer[1:2] not in (b"\0", b"\2") or (size == 10 and answer[1]):
            sock.close()
            raise BenchError(f"SOCKS5: {answer!r}")
    return sock


def _exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


class _Source:
    """Sends BULK bytes to each connection, or echoes what begins with a `?`."""

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    @staticmethod
    def _serve(connection: socket.socket) -> None:
        piece = bytes(256 * 1024)
        try:
            with connection:
                data = connection.recv(1)
                if data == b"?":
                    while data:
                        connection.sendall(data)
                        data = connection.recv(1024)
                elif data:
                    for _ in range(BULK // len(piece)):
                        connection.sendall(piece)
        except OSError:
            return  # the client has gone


def measure_gateway(
    scene: Scene,
    connect: Callable[[Pair, int], socket.socket],
    command: Callable[[Path, str], list[str]] = our_command,
) -> Sample:
    """Bulk, CPU, new connections, an echo beside downloads, and memory. Raises BenchError."""
    with pair(scene, command) as both, closing(_Source()) as source:

        def open_one() -> socket.socket:
            return connect(both, source.port)

        # Memory first: what the others have freed would be used again.
        sample = _memory(open_one, both.resident, scene.effort)
        sample |= _bulk(open_one, both.used)
        sample |= _connections(open_one, both.used, scene.effort)
        sample["echo_ms"] = _echo_beside_downloads(open_one)
        both.gateway.check()
        both.agent.check()
    return sample


def measure_tunnel(scene: Scene) -> Sample:
    """The same through the tunnel whose session is like that of an agent."""
    name = "wss+mux"
    (subject,) = (subject for subject in our_subjects() if subject.name == name)
    assert name in MODES
    with (
        closing(_Source()) as source,
        running(subject, source.port, scene.programs, scene.certs, scene.directory) as tunnel,
    ):

        def open_one() -> socket.socket:
            return socket.create_connection((LOOPBACK, tunnel.port), SOCKET_TIME)

        def used() -> tuple[float, float]:
            cpu = tunnel.cpu()
            return cpu.server, cpu.client

        sample = _bulk(open_one, used)
        sample |= _connections(open_one, used, scene.effort)
        sample["echo_ms"] = _echo_beside_downloads(open_one)
        tunnel.check()
    return sample


def _bulk(open_one: Callable[[], socket.socket], used: Callable[[], tuple[float, float]]) -> Sample:
    with open_one() as sock:
        before, start = used(), time.perf_counter()
        sock.sendall(b"!")
        size = _drain(sock)
        seconds, after = time.perf_counter() - start, used()
    if size != BULK:
        raise BenchError(f"the download broke after {size} of {BULK} bytes")
    gigabytes = BULK / 1e9
    return {
        "down": size / seconds / 1e6,
        "gateway_cpu": (after[0] - before[0]) / gigabytes,
        "agent_cpu": (after[1] - before[1]) / gigabytes,
    }


def _drain(sock: socket.socket) -> int:
    buffer, size = bytearray(1024 * 1024), 0
    while count := sock.recv_into(buffer):
        size += count
    return size


def _connections(
    open_one: Callable[[], socket.socket],
    used: Callable[[], tuple[float, float]],
    effort: Effort,
) -> Sample:
    counts: list[int] = []
    failures: list[Exception] = []
    end = time.monotonic() + effort.conns

    def work() -> None:
        count = 0
        try:
            while time.monotonic() < end:
                with open_one() as sock:
                    _check_echo(sock)
                count += 1
        except (OSError, BenchError) as error:
            failures.append(error)
        counts.append(count)

    before, start = used(), time.monotonic()
    threads = [threading.Thread(target=work) for _ in range(CONNECTION_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    time.sleep(SETTLE_TIME)
    after, total = used(), sum(counts)
    if failures or not total:
        raise BenchError(f"new connections: {failures[0] if failures else 'none'}")
    return {
        "conns": total / seconds,
        "gateway_us": (after[0] - before[0]) / total * 1e6,
        "agent_us": (after[1] - before[1]) / total * 1e6,
    }


def _check_echo(sock: socket.socket) -> None:
    sock.sendall(b"?")
    if sock.recv(1) != b"?":
        raise BenchError("a connection was closed without an answer")


def _echo_beside_downloads(open_one: Callable[[], socket.socket]) -> float:
    """The median time of an echo, in ms, beside downloads at full speed."""
    over = threading.Event()

    def download() -> None:
        while not over.is_set():
            with open_one() as sock:
                sock.sendall(b"!")
                while not over.is_set() and sock.recv(1024 * 1024):
                    pass

    threads = [threading.Thread(target=download) for _ in range(NEIGHBOURS)]
    try:
        for thread in threads:
            thread.start()
        time.sleep(SETTLE_TIME)
        times = []
        with open_one() as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _check_echo(sock)
            for _ in range(ECHOES):
                start = time.perf_counter()
                _check_echo(sock)
                times.append(time.perf_counter() - start)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    return statistics.median(times) * 1e3


def _memory(
    open_one: Callable[[], socket.socket],
    resident: Callable[[], tuple[int, int]],
    effort: Effort,
) -> Sample:
    """KB per idle connection that has carried a byte."""
    opened: list[socket.socket] = []
    try:
        for count in (MEMORY_WARM_UP, effort.idle):
            before = resident()
            for _ in range(count):
                opened.append(open_one())
                _check_echo(opened[-1])
        after = resident()
    finally:
        for sock in opened:
            sock.close()
    return {
        "gateway_kb": (after[0] - before[0]) / effort.idle / 1024,
        "agent_kb": (after[1] - before[1]) / effort.idle / 1024,
    }
