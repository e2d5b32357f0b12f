"""Our own four modes, on each event loop, and what a running tunnel of any subject is."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.certs import SERVER_NAME, Certs
from bench.measure import cpu_seconds, rss_bytes
from bench.processes import (
    TOP,
    Program,
    Programs,
    address,
    clean_environment,
    free_port,
)
from mtt import modes

MODES = {name: mode.command_line("bench") for name, mode in modes.MODES.items()}
# The event loops. On the second one only modes of the original are measured.
LOOPS = ("asyncio", "uvloop")

# Streams per mux session, of us and of peers, unless a row wants another number: our default.
STREAMS = 4


@dataclass(frozen=True)
class Place:
    """What a command line is made from: two ports, certificates, and a directory for files."""

    listen: int
    connect: int
    certs: Certs
    directory: Path
    streams: int = STREAMS


Command = Callable[[Place], list[str]]


@dataclass(frozen=True)
class Subject:
    """A way from one port to another.

    Attributes:
        client, server: make the command lines; without them the way is direct.
        missing: why it cannot be measured here, "" if it can.
        ours: whether it is one of this project.
        env: added to the environment of both ends.
    """

    name: str
    client: Command | None = None
    server: Command | None = None
    missing: str = ""
    ours: bool = False
    mux: bool = False
    env: Callable[[Certs], Mapping[str, str]] = field(default=lambda certs: {})


class Usage(NamedTuple):
    """A figure of each end."""

    client: float
    server: float

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.client - other.client, self.server - other.server)


@dataclass(frozen=True)
class Tunnel:
    """A running subject. `port` is where applications connect."""

    port: int
    client: Program | None
    server: Program | None

    def cpu(self) -> Usage:
        """CPU seconds used so far."""
        return self._both(cpu_seconds)

    def rss(self) -> Usage:
        """Resident bytes."""
        return self._both(lambda pid: float(rss_bytes(pid)))

    def check(self) -> None:
        """Raise BenchError if an end has died."""
        for program in (self.client, self.server):
            if program is not None:
                program.check()

    def _both(self, figure: Callable[[int], float]) -> Usage:
        client, server = (
            0.0 if program is None else figure(program.pid)
            for program in (self.client, self.server)
        )
        return Usage(client, server)


@contextlib.contextmanager
def running(
    subject: Subject,
    destination: int,
    programs: Programs,
    certs: Certs,
    directory: Path,
    *,
    streams: int = STREAMS,
    between: Callable[[int], int] | None = None,
    is_udp: bool = False,
) -> Iterator[Tunnel]:
    """Start both ends in front of the port `destination`; `programs` ends them.

    Args:
        between: puts something between the ends: takes a port, gives the one to connect to.
        is_udp: the client listens only for UDP, so this function does not wait for its port.

    Raises BenchError.
    """
    env = subject.env(certs)

    def start(role: str, command: Command, connect: int) -> tuple[Program, int]:
        where = directory / role
        where.mkdir(exist_ok=True)
        place = Place(free_port(), connect, certs, where, streams)
        program = programs.start(command(place), env)
        if role == "server" or not is_udp:
            program.wait_listening(place.listen)
        return program, place.listen

    server = client = None
    port = destination
    if subject.server is not None:
        server, port = start("server", subject.server, port)
    if between is not None:
        port = between(port)
    if subject.client is not None:
        client, port = start("client", subject.client, port)
    yield Tunnel(port, client, server)


def our_subjects(*options: str) -> list[Subject]:
    """The modes on asyncio, the original four again on uvloop as far as that is possible.

    `options` are for both ends.
    """
    can_choose = _has_option("mtt_server.py", "-loop")
    subjects = []
    for loop in LOOPS:
        flags = (*options, *(("-loop", loop) if can_choose else ()))
        missing = ""
        if loop == "uvloop":
            if not can_choose:
                missing = "the commands have no option -loop"
            elif importlib.util.find_spec("uvloop") is None:
                missing = "uvloop is not installed: pip install uvloop"
        for mode, mode_flags in MODES.items():
            if loop != "asyncio" and not modes.MODES[mode].is_original:
                continue
            if mode == "v2ray":
                continue  # after the request it is wss
            subjects.append(
                Subject(
                    name=mode if loop == "asyncio" else f"{mode} {loop}",
                    client=_client((*mode_flags, *flags), mux="mux" in mode),
                    server=_server((*mode_flags, *flags)),
                    missing=missing,
                    ours=True,
                    mux="mux" in mode,
                )
            )
    return subjects


def _server(flags: tuple[str, ...]) -> Command:
    def command(place: Place) -> list[str]:
        return [
            *_script("mtt_server.py"),
            *("-b", address(place.listen), "-d", address(place.connect)),
            *("-cert", place.certs.cert, "-key", place.certs.key, *flags),
        ]

    return command


def _client(flags: tuple[str, ...], *, mux: bool) -> Command:
    def command(place: Place) -> list[str]:
        streams = ("-mux-max-stream", str(place.streams)) if mux else ()
        return [
            *_script("mtt_client.py"),
            *("-b", address(place.listen), "-s", address(place.connect)),
            *("-n", SERVER_NAME, "-ca", place.certs.ca, *flags, *streams),
        ]

    return command


def _script(name: str) -> tuple[str, str]:
    return sys.executable, str(TOP / name)


def _has_option(script: str, option: str) -> bool:
    help_text = subprocess.run(
        [*_script(script), "-help"],
        capture_output=True,
        text=True,
        env=clean_environment({}),
        check=False,
    )
    return f"\n  {option} " in help_text.stdout + help_text.stderr


def empty(directory: Path) -> Path:
    """Make `directory` anew."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory
