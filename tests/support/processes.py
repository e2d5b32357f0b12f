"""Real programs as child processes: what they print can be waited for, and all of them end."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from mtt import modes

ROOT = Path(__file__).parents[2]

# The options of each mode, for both ends. v2ray has the same processes as wss, and its own tests.
MODES = {
    name: mode.command_line("a-password")
    for name, mode in modes.MODES.items()
    if "v2ray" not in name
}

# Seconds. Every program here starts and stops in a fraction of one; busy CI machines do not.
PATIENCE = 15.0

# Pause between two looks at something that reports no change.
LOOK_INTERVAL = 0.01

# Below the range that Linux takes the ports of outgoing connections from (32768 and up), so
# that no program is given one of these between the look and the program's binding.
_PORTS = range(20000, 32000)

_INTERFERING = re.compile(r"SS_.*|SSL_CERT_.*|(http|https|ftp|all|no)_proxy", re.IGNORECASE)


class Process:
    """A running program, with all that it and its children write to stdout and stderr."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.pid = popen.pid
        self._popen = popen
        self._output = ""
        self._silent = False  # no process is left that could write
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._output

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def expect(self, pattern: str, seconds: float = PATIENCE) -> re.Match[str]:
        """Wait until the output matches `pattern` somewhere; fail if it never will."""
        self._wait(lambda: bool(re.search(pattern, self._output)), seconds, f"print {pattern!r}")
        found = re.search(pattern, self._output)
        if found is None:
            pytest.fail(f"{self.name} ended without printing {pattern!r}:\n{self._output}")
        return found

    def expect_silence(self, seconds: float = PATIENCE) -> str:
        """Wait until the program and all it has started are gone; returns what they printed.

        Each of them holds the other end of our pipe, so its end is theirs.
        """
        self._wait(lambda: self._silent, seconds, "end, or something it started did not")
        return self._output

    def send(self, number: int) -> None:
        """Send a signal to the program alone, not to what it has started."""
        self._popen.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code, negative for a signal."""
        self.send(number)
        return self.wait()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the program's own end; returns its exit code."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end within {seconds:g} s:\n{self._output}")

    def kill(self) -> None:
        """End the program and all it has started, whatever state they are in."""
        # As long as one of the group lives, its number is not given away.
        if self._popen.poll() is None or not self._silent:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()
        self._reader.join(PATIENCE)
        assert self._popen.stdout is not None
        self._popen.stdout.close()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        descriptor = self._popen.stdout.fileno()
        while data := os.read(descriptor, 65536):
            with self._changed:
                self._output += data.decode("utf-8", "backslashreplace")
                self._changed.notify_all()
        with self._changed:
            self._silent = True
            self._changed.notify_all()

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: condition() or self._silent, seconds):
                pytest.fail(f"{self.name} did not {what} within {seconds:g} s:\n{self._output}")


class Processes:
    """All processes of one test. Leaving the context kills them and shows what they printed."""

    def __init__(self) -> None:
        self._running: list[Process] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in reversed(self._running):
            process.kill()
        for process in self._running:  # pytest shows this if the test has failed
            print(f"--- output of {process.name}\n{process.output}")

    def start(
        self, *argv: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Process:
        """Start a program in a process group of its own; `env` adds to `clean_environment()`."""
        popen = subprocess.Popen(
            [str(argument) for argument in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=clean_environment(**(env or {})),
            cwd=cwd,
            start_new_session=True,
        )
        process = Process(Path(argv[0]).name, popen)
        self._running.append(process)
        return process

    def command(
        self, name: str, *argv: str | Path, constants: Mapping[str, object] | None = None
    ) -> Process:
        """Start one of our own commands, such as `mtt-client`.

        `constants`: other values for constants of our modules, such as
        {"mtt.observe.hub.INTERVAL": 0.1}.
        """
        program = changed_command(name, constants) if constants else command(name)
        process = self.start(*program, *argv, cwd=ROOT)
        process.name = name
        return process


def command(name: str) -> tuple[str, ...]:
    """How to run one of our commands from the working tree, and in it."""
    module = _module_of(name)
    if "." in module:
        return sys.executable, "-m", module.removesuffix(".__main__")
    return sys.executable, str(ROOT / f"{module}.py")


def _module_of(name: str) -> str:
    """The module whose `main()` one of our commands is."""
    package, _, end = name.partition("-")
    if package in ("anytls", "anyproxy"):
        return f"{package}.{end}_command"
    if name == "mtt-mu-server":
        return "mtt_mu_server.__main__"
    return name.replace("-", "_")


def changed_command(name: str, constants: Mapping[str, object]) -> tuple[str, ...]:
    """How to run, in the working tree, one of our commands with other `constants`.

    They hold in the workers as well, which are forked.
    """
    command_module = _module_of(name)
    modules = {constant.rpartition(".")[0] for constant in constants} | {command_module}
    lines = [f"import sys, {', '.join(sorted(modules))}"]
    lines += [f"{constant} = {value!r}" for constant, value in constants.items()]
    lines += [f"sys.exit({command_module}.main())"]
    return sys.executable, "-c", "\n".join(lines)


def listening(process: Process) -> tuple[str, int]:
    """Host and port on which one of our commands says it listens, first of several."""
    found = process.expect(r"listening on \[?([^\s,]+?)\]?:(\d+)[ ,]")
    return found[1], int(found[2])


def clean_environment(**extra: str) -> dict[str, str]:
    """This process's environment without what redirects the programs, and with `extra`."""
    inherited = {name: os.environ[name] for name in os.environ if not _INTERFERING.fullmatch(name)}
    return inherited | extra


def run(*argv: str | Path, seconds: float = 60.0, stdin: bytes = b"") -> bytes:
    """Run a program to its end and return its stdout; fail the test unless it exits with 0."""
    done = subprocess.run(
        [str(argument) for argument in argv],
        input=stdin, capture_output=True, timeout=seconds, env=clean_environment(), check=False,
    )  # fmt: skip
    if done.returncode != 0:
        text = (done.stdout[-4000:] + done.stderr).decode("utf-8", "backslashreplace")
        pytest.fail(f"{Path(argv[0]).name} failed with exit code {done.returncode}: {text}")
    return done.stdout


def eventually(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Wait until `condition` holds; fail the test with `what` when it never does."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            pytest.fail(f"not within {seconds:g} s: {what}")
        time.sleep(LOOK_INTERVAL)


def free_port() -> int:
    """A TCP port on which nothing listens, for programs that cannot be told to take any."""
    for port in random.SystemRandom().sample(_PORTS, 100):
        if is_free(port):
            return port
    raise AssertionError("no free port found")


def accepts(port: int) -> bool:
    """Whether a program listens on `port` of 127.0.0.1, which gets a connection without a byte."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True


def is_free(port: int) -> bool:
    """Whether a program could listen on `port` of both loopback addresses now.

    Not for a program that is about to listen: it may find the port taken by this very check.
    """
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            # As servers do; connections that are merely not forgotten yet are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
                probe.listen()
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False
    return True
