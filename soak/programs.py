"""Our commands as processes, and what can be measured of them from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mtt import modes
from soak.anytls_parsers import PASSWORD
from soak.report import Broken
from tests.support.certs import Certs

TOP = Path(__file__).resolve().parent.parent
MODES = {name: mode.command_line(PASSWORD) for name, mode in modes.MODES.items()}
# Sessions beyond those that are kept warm are to go while we look.
IDLE = {
    "mux": ("-mux-idle", "1s"),
    "wss+mux": ("-mux-idle", "1s"),
    "anytls": ("-m", "0", "-idle-check", "6s", "-idle-timeout", "6s"),
}

# Seconds. Starting takes a fraction of one, on an idle machine.
START_TIME = 30.0
STOP_TIME = 5.0
LOOK_INTERVAL = 0.05
# Other values for constants of the commands' modules: {"anyproxy.forwarded.HOLD_TIME": 1.0}.
CONSTANTS: dict[str, float] = {}

_PAGE = os.sysconf("SC_PAGE_SIZE")
_RELOADED = re.compile(rb"reloaded: (?!/)")  # the configuration, not files that it names
_LISTENING = re.compile(rb"listening on 127\.0\.0\.1:(\d+)")
# What must never be in a log: bugs of ours.
_BUGS = (b"Traceback", b"internal error", b"exception was never retrieved", b" ERROR ")


def write_private(path: Path, configuration: Mapping[str, Any]) -> None:
    """Write a configuration file in JSON."""
    path.touch(mode=0o600)
    path.write_text(json.dumps(configuration))


class Usage(NamedTuple):
    """What a process holds."""

    descriptors: int
    memory: int  # bytes of RSS
    tasks: int
    objects: int


class Program:
    """One of our commands, running. Raises Broken if it does not come to listen."""

    def __init__(self, directory: Path, name: str, number: int, *arguments: str) -> None:
        self.name = name
        self.config = Path()  # of commands that have a configuration file
        self._log = directory / f"{number}-{name}.log"
        self._counts = directory / f"{number}-{name}.json"
        window = str(self._counts), json.dumps(CONSTANTS)
        with self._log.open("wb") as output:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "soak.watched", *window, name, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=TOP,
                start_new_session=True,  # only the soak receives Ctrl-C, and then ends the program
            )
        self._proc = Path(f"/proc/{self._popen.pid}")
        self.port = 0

    async def started(self) -> None:
        """Wait until it listens."""
        self.port = int((await self.logged(_LISTENING))[1])

    async def logged(self, pattern: re.Pattern[bytes], start: int = 0) -> re.Match[bytes]:
        """Wait until the log has this text, from the offset `start` on. Raises Broken."""
        until = time.monotonic() + START_TIME
        while not (found := pattern.search(self._log.read_bytes(), start)):
            self.check()
            if time.monotonic() > until:
                raise Broken(f"{self.name} has not logged {pattern.pattern!r}: {self.tail()}")
            await asyncio.sleep(LOOK_INTERVAL)
        return found

    async def reload(self, configuration: Mapping[str, Any]) -> None:
        """Change its configuration file, and wait until it has reloaded that. Raises Broken."""
        start = self._log.stat().st_size
        # A reader must not see half of it: the file is followed.
        new = self.config.with_suffix(".new")
        write_private(new, configuration)
        os.replace(new, self.config)
        self._popen.send_signal(signal.SIGHUP)
        await self.logged(_RELOADED, start)

    @property
    def descriptors(self) -> int:
        return len(os.listdir(self._proc / "fd"))

    @property
    def memory(self) -> int:
        """Bytes of RSS."""
        return int((self._proc / "statm").read_text().split()[1]) * _PAGE

    async def usage(self) -> Usage:
        """Everything, after a garbage collection."""
        self._counts.unlink(missing_ok=True)
        self._popen.send_signal(signal.SIGUSR1)
        until = time.monotonic() + START_TIME
        while not self._counts.exists():
            self.check()
            if time.monotonic() > until:
                raise Broken(f"{self.name} is stuck: it does not even answer a signal")
            await asyncio.sleep(LOOK_INTERVAL)
        counts = json.loads(self._counts.read_text())
        return Usage(self.descriptors, self.memory, counts["tasks"], counts["objects"])

    def check(self) -> None:
        """Raise Broken if it has ended or has logged a bug of ours."""
        if self._popen.poll() is not None:
            raise Broken(f"{self.name} ended with {self._popen.returncode}: {self.tail()}")
        text = self._log.read_bytes()
        for bug in _BUGS:
            if bug in text:
                at = text.index(bug)
                line = text[max(0, at - 200) : at + 1000].decode("utf-8", "replace")
                raise Broken(f"{self.name} has logged a bug: {line}")

    def tail(self) -> str:
        return self._log.read_bytes()[-1000:].decode("utf-8", "replace")

    def freeze(self) -> set[int]:
        """Stop it until it is killed; the ports of its TCP sockets on 127.0.0.1."""
        self._popen.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._popen.pid, os.WSTOPPED)
        sockets = set()
        for name in os.listdir(self._proc / "fd"):
            with contextlib.suppress(FileNotFoundError):
                sockets.add(os.readlink(self._proc / "fd" / name))
        ports = set()
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in sockets:
                ports.add(int(fields[1].partition(":")[2], 16))
        return ports

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    async def stop(self) -> None:
        """End it in order. Raises Broken if it does not."""
        self.check()
        self._popen.send_signal(signal.SIGTERM)
        until = time.monotonic() + STOP_TIME
        while self._popen.poll() is None and time.monotonic() < until:
            await asyncio.sleep(LOOK_INTERVAL)
        if self._popen.returncode != 0:
            raise Broken(f"{self.name} ended SIGTERM with {self._popen.returncode}: {self.tail()}")


class Set(Protocol):
    """Programs that work together."""

    @property
    def mode(self) -> str: ...
    @property
    def programs(self) -> tuple[Program, ...]: ...


@dataclass(frozen=True)
class Pair:
    """Both ends of a tunnel."""

    mode: str
    client: Program
    server: Program

    @property
    def programs(self) -> tuple[Program, ...]:
        return self.client, self.server

    def check(self) -> None:
        for program in self.programs:
            program.check()


class Programs:
    """All programs of a soak; none outlives the context. `directory` is for their logs."""

    def __init__(self, directory: Path, certs: Certs) -> None:
        self._directory = directory
        self.certs = certs
        self._running: list[Program] = []
        self._count = 0

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, *_: object) -> None:
        for program in self._running:
            program.kill()

    async def server(self, mode: str, destination: int, *options: str) -> Program:
        tls: tuple[str, ...] = ("-cert", self.certs.cert, "-key", self.certs.key)
        if "-disable-tls" in options:
            tls = ()
        return await self._start(
            "mtt-server", "-b", "127.0.0.1:0", "-d", f"127.0.0.1:{destination}", *tls,
            *MODES[mode], *options,
        )  # fmt: skip

    async def client(
        self, mode: str, server: int, *options: str, host: str = "127.0.0.1"
    ) -> Program:
        return await self._start(
            "mtt-client", "-b", "127.0.0.1:0", "-s", f"{host}:{server}",
            "-n", self.certs.name, "-ca", self.certs.ca, *MODES[mode], *IDLE.get(mode, ()),
            *options,
        )  # fmt: skip

    async def anytls_server(self, *destinations: int) -> Program:
        """One that lets clients go to these ports of this machine, and nowhere else."""
        rules = [word for port in destinations for word in ("-allow", f"127.0.0.1:{port}")]
        return await self._start(
            "anytls-server", "-b", "127.0.0.1:0", "-p", PASSWORD, "-cert", self.certs.cert,
            "-key", self.certs.key, "-deny", "0.0.0.0/0", "-deny", "::/0", *rules,
        )  # fmt: skip

    async def anytls_client(self, server: int) -> Program:
        return await self._start(
            "anytls-client", "-b", "127.0.0.1:0", "-s", f"127.0.0.1:{server}", "-p", PASSWORD,
            "-n", self.certs.name, "-ca", self.certs.ca, *IDLE["anytls"],
        )  # fmt: skip

    async def _start(self, name: str, *arguments: str) -> Program:
        program = self._begin(name, *arguments)
        await program.started()
        return program

    def configured(self, name: str, configuration: Mapping[str, Any]) -> Program:
        """Start a command that has a configuration file."""
        path = self._directory / f"{self._count}-{name}-config.json"
        write_private(path, configuration)
        program = self._begin(name, "-config", str(path))
        program.config = path
        return program

    def _begin(self, name: str, *arguments: str) -> Program:
        program = Program(self._directory, name, self._count, *arguments, "-grace", "0s")
        self._count += 1
        self._running.append(program)
        return program

    async def end(self, program: Program, *, kill: bool) -> None:
        """End one of them, by SIGKILL or in order. Raises Broken."""
        program.check()
        self._running.remove(program)
        try:
            if not kill:
                await program.stop()
        finally:
            program.kill()

    async def stop(self) -> None:
        """End all in order, as far as they run. Raises Broken if one does not."""
        for program in self._running:
            await program.stop()
        self._running.clear()
