"""Programs as child processes: started, waited for, and always ended and reaped.

Each runs in its own session, so that only the bench receives a Ctrl-C, and ends its programs in
order. Their output goes to files, not pipes, so a program never blocks because its output is not
read.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

TOP = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"

# Seconds. Every program here starts and stops in a fraction of one, on an idle machine.
START_TIME = 15.0
STOP_TIME = 3.0
LOOK_INTERVAL = 0.005

# Below Linux's range for outgoing connections (32768 and up), so that no other program gets such a
# port between the check and the program's bind.
_PORTS = range(20000, 32000)

# nginx and HAProxy live where the PATH of ordinary users may not lead.
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")

# The end of a program's log that goes into a note about its failure.
_LOG_TAIL = 300

LISTEN_STATE = "0A"  # TCP_LISTEN in /proc/net/tcp, include/net/tcp_states.h


class BenchError(Exception):
    """Something could not be measured; `str()` says why, in one line."""


def find_tool(*names: str) -> str:
    """The path of the first of these programs that is installed, "" if none is."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN))
    return next((found for name in names if (found := shutil.which(name, path=path))), "")


def address(port: int) -> str:
    return f"{LOOPBACK}:{port}"


def free_port() -> int:
    """A TCP port on which nothing listens, for programs that cannot be told to take any."""
    for port in random.sample(_PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            # As servers do; connections that are merely not forgotten yet are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((LOOPBACK, port))
            probe.listen()
            return port
    raise BenchError("no free TCP port found")


def listening_ports(table: str) -> set[int]:
    """The ports in use for listening, from the text of /proc/net/tcp or /proc/net/tcp6."""
    ports = set()
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 3 and fields[3] == LISTEN_STATE:
            ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def is_listening(port: int) -> bool:
    """Whether a program listens on `port`, without connecting to it.

    A connection would already be work for the programs to be measured, and iperf3 takes one
    that says nothing for a failed test.
    """
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            if port in listening_ports(Path(name).read_text()):
                return True
    return False


class Program:
    """A running program. Raises BenchError if it cannot be started."""

    def __init__(self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None) -> None:
        self.name = Path(argv[0]).name
        self._log = log
        try:
            with log.open("wb") as output:
                self._popen = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=clean_environment(env or {}),
                    cwd=TOP,  # for `python -m bench...`
                    start_new_session=True,
                )
        except OSError as error:
            raise BenchError(f"{self.name}: {error.strerror or error}") from None
        self.pid = self._popen.pid

    def check(self) -> None:
        """Raise BenchError if the program has ended."""
        if self._popen.poll() is not None:
            raise BenchError(
                f"{self.name} ended with exit code {self._popen.returncode}: {self._tail()}"
            )

    def wait_listening(self, port: int) -> None:
        """Wait until a program listens on `port`. Raises BenchError if that does not happen."""
        until = time.monotonic() + START_TIME
        while not is_listening(port):
            self.check()
            if time.monotonic() > until:
                raise BenchError(f"{self.name} did not listen on {address(port)}: {self._tail()}")
            time.sleep(LOOK_INTERVAL)

    def wait_connectable(self, port: int) -> None:
        """As `wait_listening`, to a millisecond, by connecting."""
        until = time.monotonic() + START_TIME
        while True:
            with socket.socket() as probe:
                if not probe.connect_ex((LOOPBACK, port)):
                    return
            self.check()
            if time.monotonic() > until:
                raise BenchError(f"{self.name} did not listen on {address(port)}: {self._tail()}")
            time.sleep(0.0005)

    def wait(self) -> None:
        """Wait for the program's own end. Raises BenchError unless that is a good one."""
        try:
            code = self._popen.wait(START_TIME)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{self.name} did not end") from None
        if code:
            self.check()

    def stop(self) -> None:
        """End the program and all it has started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            # The group lives as long as one of its processes, and keeps its number meanwhile.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(STOP_TIME)
                break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # children that outlived their parent

    def _tail(self) -> str:
        text = self._log.read_bytes()[-_LOG_TAIL:].decode("utf-8", "replace")
        return " / ".join(line.strip() for line in text.splitlines() if line.strip()) or "no log"


class Programs:
    """Programs that run as long as the context. `directory` is for their logs."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[Program] = []
        self._count = 0

    def __enter__(self) -> Programs:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._running:
            self._running[-1].stop()
            self._running.pop()

    def start(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> Program:
        """Start a program; `env` adds to the environment. Raises BenchError."""
        self._count += 1
        log = self._directory / f"{self._count}-{Path(argv[0]).name}.log"
        program = Program(argv, log, env)
        self._running.append(program)
        return program


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without what would make plugins of the programs (SIP003)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SS_")}
    return kept | dict(extra)


def run_tool(argv: Sequence[str], seconds: float) -> str:
    """Run a program to its end, at most `seconds`; returns its stdout.

    Raises BenchError when it takes longer or fails.
    """
    name = Path(argv[0]).name
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"{name} took longer than {seconds:g} s") from None
    except OSError as error:
        raise BenchError(f"{name}: {error.strerror or error}") from None
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        said = " / ".join((done.stderr.decode("utf-8", "replace") or text).split("\n"))
        raise BenchError(f"{name} failed: {said.strip()[-_LOG_TAIL:]}")
    return text
