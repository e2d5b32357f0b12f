from __future__ import annotations

import asyncio
import os
import re
import secrets
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from mtt.errors import StartError, UsageError
from mtt.layers.base import StreamProtocol
from mtt.net.listen import bind
from mtt.net.resolve import Resolver
from mtt.process.systemd import MAX_SOCKETS, ServiceManager, inherited_sockets
from tests.support.processes import ROOT, Processes, command, free_port
from tests.support.programs import missing, require_package, require_program
from tests.support.systemd import Manager
from tests.support.tunnels import logged

UNITS = ROOT / "contrib"
PID = str(os.getpid())
# Seconds; uvloop counts milliseconds.
CLOCK_STEP = 0.002

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd is for Linux")


# Variables about sockets.


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ()),
        ({"LISTEN_FDS": "2"}, ()),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "2"}, ()),
        ({"LISTEN_PID": PID, "LISTEN_FDS": "0"}, ()),
        ({"LISTEN_PID": PID, "LISTEN_FDS": "2"}, ((3, "unknown"), (4, "unknown"))),
        (
            {"LISTEN_PID": PID, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "tunnel:control"},
            ((3, "tunnel"), (4, "control")),
        ),
        ({"LISTEN_PID": PID, "LISTEN_FDS": "1", "LISTEN_FDNAMES": ""}, ((3, "unknown"),)),
    ],
)
def test_inherited_sockets(environ: dict[str, str], expected: object) -> None:
    assert inherited_sockets(environ) == expected


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({}, "LISTEN_FDS: ''"),
        ({"LISTEN_FDS": "-1"}, "LISTEN_FDS: '-1' is not a number of sockets"),
        ({"LISTEN_FDS": "\u0662"}, "LISTEN_FDS"),
        ({"LISTEN_FDS": str(MAX_SOCKETS + 1)}, "LISTEN_FDS"),
        ({"LISTEN_FDS": "9" * 5000}, "LISTEN_FDS"),
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, "LISTEN_FDNAMES: 1 names for 2 sockets"),
    ],
)
def test_invalid_variables(environ: dict[str, str], text: str) -> None:
    with pytest.raises(UsageError) as raised:
        inherited_sockets({"LISTEN_PID": PID, **environ})
    assert str(raised.value).startswith(text)
    assert len(str(raised.value)) < 300


# Sockets.


async def check_listens(sock: socket.socket) -> list[str]:
    """Listen on a copy of `sock`, check that it works and ends; returns the addresses."""
    connected = asyncio.get_running_loop().create_future()

    class Protocol(StreamProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            connected.set_result(None)
            transport.close()

    descriptor = os.dup(sock.fileno())
    os.set_inheritable(descriptor, True)  # as systemd hands it over
    listener = await bind(None, "", resolver=Resolver(), descriptors=[descriptor])
    listener.serve(Protocol)
    assert not os.get_inheritable(descriptor)
    with socket.socket(sock.family) as client:
        client.connect(sock.getsockname())
        await connected
    listener.close()
    await asyncio.sleep(0)
    return listener.addresses


async def test_a_tcp_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        assert await check_listens(sock) == [f"127.0.0.1:{sock.getsockname()[1]}"]


async def test_a_unix_socket_keeps_its_file(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        assert await check_listens(sock) == [path]
        assert os.path.exists(path)  # it is systemd's, for the next start


async def test_an_abstract_socket() -> None:
    name = f"mtt-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("\0" + name)
        sock.listen()
        assert await check_listens(sock) == ["@" + name]


async def check_refused(descriptor: int, *words: str) -> None:
    with pytest.raises(StartError) as raised:
        await bind(None, "", resolver=Resolver(), descriptors=[descriptor])
    text = str(raised.value)
    assert text.startswith(f"cannot listen on inherited descriptor {descriptor}")
    assert all(word in text for word in words), text


async def test_unsuitable_descriptors() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        await check_refused(os.dup(datagrams.fileno()), "ListenStream=")
    one, other = socket.socketpair()
    with one, other:
        await check_refused(os.dup(one.fileno()), "Accept=no")
    reading, writing = os.pipe()
    await check_refused(reading, "socket operation on non-socket")
    os.close(reading)
    os.close(writing)
    await check_refused(reading, "bad file descriptor")


# Messages.


@pytest.mark.parametrize("kind", ["path", "abstract"])
async def test_messages(tmp_path: Path, kind: str) -> None:
    where: dict[str, object]
    where = {"directory": tmp_path} if kind == "path" else {"name": secrets.token_hex(8)}
    with Manager(**where) as heard:  # type: ignore[arg-type]
        manager = ServiceManager({"NOTIFY_SOCKET": heard.address})
        manager.ready(["/tmp/a\nWATCHDOG=trigger"])
        assert heard.hear() == "READY=1\nSTATUS=listening on /tmp/a\\nWATCHDOG=trigger"
        manager.stopping("bye", 1.5)
        assert heard.hear() == "STOPPING=1\nSTATUS=bye\nEXTEND_TIMEOUT_USEC=1500000"
        manager.close()
        manager.ready([])
        assert list(heard.rest()) == []


async def test_watchdog_messages_come_at_half_the_interval(tmp_path: Path) -> None:
    with Manager(tmp_path) as heard:
        manager = ServiceManager(
            {"NOTIFY_SOCKET": heard.address, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": PID}
        )
        assert list(heard.rest()) == []  # nothing before we are ready
        manager.ready([])
        manager.keep_beating()
        loop = asyncio.get_running_loop()
        beats = 0
        due: list[float] = []  # what the loop makes of it on a busy machine is not ours
        while beats < 4:
            assert manager._timer is not None
            if manager._timer.when() not in due:
                due.append(manager._timer.when())
            assert due[-1] <= loop.time() + 0.05 + CLOCK_STEP
            beats += list(heard.rest()).count("WATCHDOG=1")
            await asyncio.sleep(0.001)
        manager.close()
    assert all(after - before >= 0.05 - CLOCK_STEP for before, after in pairwise(due))
    assert len(due) >= 3


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}],
)
async def test_no_watchdog(tmp_path: Path, watchdog: dict[str, str]) -> None:
    with Manager(tmp_path) as heard:
        manager = ServiceManager({"NOTIFY_SOCKET": heard.address, **watchdog})
        manager.ready([])
        manager.keep_beating()
        await asyncio.sleep(0.01)
        manager.close()
        assert list(heard.rest()) == ["READY=1\nSTATUS=listening on "]


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({}, ""),
        ({"NOTIFY_SOCKET": ""}, ""),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, "WARNING NOTIFY_SOCKET: 'vsock:2:1' is not a unix socket"),
        (
            {"NOTIFY_SOCKET": "/nonexistent/x"},
            "WARNING cannot notify the service manager of READY=1: no such file or directory",
        ),
    ],
)
async def test_unreachable_service_manager(environ: dict[str, str], line: str) -> None:
    with logged() as lines:
        manager = ServiceManager(environ)
        manager.ready("x")
        manager.close()
    assert lines == ([line] if line else [])


async def test_invalid_watchdog_variables(tmp_path: Path) -> None:
    with Manager(tmp_path) as heard, logged() as lines:
        ServiceManager({"NOTIFY_SOCKET": heard.address, "WATCHDOG_USEC": "soon"}).close()
    assert lines == ["WARNING WATCHDOG_USEC is not a number: no watchdog"]


async def test_manager_that_never_reads_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtt.process.systemd.SEND_TIME", 0.01)
    with Manager(tmp_path) as heard, logged() as lines:
        manager = ServiceManager({"NOTIFY_SOCKET": heard.address})
        while not lines:
            manager.ready("x" * 1000)
        manager.close()
    assert lines == ["WARNING cannot notify the service manager of READY=1: timed out"]


# The real systemd.


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("name", ["mtt-client", "mtt-server"])
def test_socket_activation(name: str, loop: str, processes: Processes, tmp_path: Path) -> None:
    if loop == "uvloop":
        require_package("uvloop")
    activate = require_program("systemd-socket-activate")
    port, path = free_port(), tmp_path / "socket"
    target = ("-d", "127.0.0.1:9") if name == "mtt-server" else ("-s", "127.0.0.1:9")
    with Manager(tmp_path) as heard:
        process = processes.start(
            activate, "-l", f"127.0.0.1:{port}", "-l", path, "-E", "NOTIFY_SOCKET",
            *command(name), *target, "-loop", loop,
            env={"NOTIFY_SOCKET": heard.address},
        )  # fmt: skip
        process.expect("Listening on")
        for kind, address in (
            (socket.AF_INET, ("127.0.0.1", port)), (socket.AF_UNIX, str(path)),
        ):  # fmt: skip
            with socket.socket(kind) as client:
                client.connect(address)
                process.expect(rf"{name}: listening on 127.0.0.1:{port}, {path},")
        assert heard.hear() == f"READY=1\nSTATUS=listening on 127.0.0.1:{port}, {path}"
        assert process.stop() == 0
    assert path.exists()


def _units() -> list[str]:
    return sorted(path.name for path in UNITS.iterdir() if path.suffix in (".service", ".socket"))


@pytest.mark.parametrize("unit", _units())
def test_units_are_valid(unit: str, tmp_path: Path) -> None:
    """As far as systemd itself can tell without running them."""
    analyze = require_program("systemd-analyze")
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for path in UNITS.glob(Path(unit).stem + ".*"):  # a socket needs its service
        text = path.read_text()
        started = re.sub(r"(?m)^(ExecStart=)/usr/local/bin/[a-z]+-\S+", rf"\1{program}", text)
        assert (started != text) == (path.suffix == ".service")
        (tmp_path / path.name).write_text(started)
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", tmp_path / unit],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# What `systemd-analyze security` calls OK goes up to 4.9, and nothing at all is 9.6.
MOST_EXPOSURE = 20  # tenths


@pytest.mark.parametrize("unit", [name for name in _units() if name.endswith(".service")])
def test_units_are_hardened(unit: str) -> None:
    done = subprocess.run(
        [require_program("systemd-analyze"), "security", "--no-pager", "--offline=true",
         f"--threshold={MOST_EXPOSURE}", UNITS / unit],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "unrecognized option" in done.stderr:
        missing("this systemd-analyze cannot look at files (before version 250)")
    assert done.returncode == 0, done.stdout + done.stderr
