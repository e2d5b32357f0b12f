from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtt.errors import StartError
from mtt.options.process import ProcessOptions
from mtt.process import runtime
from tests.support.processes import clean_environment, run
from tests.support.programs import require_package
from tests.support.systemd import Manager

ROOT = Path(__file__).parents[2]

# A service that tells what is done with it.
PROGRAM = r"""
import asyncio, os, sys, time
from mtt import log
from mtt.options import process
from mtt.process import runtime
from mtt.process import systemd
log.setup("debug", "prog")

def tell(text):
    # Not print(): a signal handler may run inside another print(), and BufferedWriter refuses
    # calls from within itself.
    os.write(1, text.encode() + b"\n")

class Service(runtime.Service):
    tunnels = %(tunnels)d
    addresses = ["127.0.0.1:1"]
    async def start(self):
        tell("start")
        %(start)s
        # Not printed here: the first signal is for close() only when start() has returned.
        asyncio.get_running_loop().call_soon(lambda: tell("started"))
    async def drain(self):
        tell("drain")
        %(drain)s
    async def close(self):
        tell("close")
        %(close)s
        tell("closed")
    def cleanup(self):
        tell("cleanup")
        %(cleanup)s

runtime.CLOSE_LIMIT = %(limit)s
runtime.run(
    Service(),
    plugin=%(plugin)s,
    options=process.ProcessOptions(grace=%(grace)s, loop=%(loop)r),
    manager=systemd.ServiceManager(os.environ),
)
"""

SIGNALS = [signal.SIGTERM, signal.SIGINT]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@pytest.fixture(params=["asyncio", "uvloop"], autouse=True)
def loop(request: pytest.FixtureRequest) -> str:
    """The event loop of the programs."""
    name: str = request.param
    if name == "uvloop":
        require_package("uvloop")
    return name


class Programs:
    """Starts programs that run on a certain event loop."""

    def __init__(self, loop: str) -> None:
        self._loop = loop

    @contextlib.contextmanager
    def __call__(
        self, environ: dict[str, str] | None = None, **parts: Any
    ) -> Iterator[subprocess.Popen[str]]:
        code = PROGRAM % {
            "start": "", "drain": "", "close": "", "cleanup": "", "limit": 60, "plugin": False,
            "grace": 0, "tunnels": 0, "loop": self._loop, **parts,
        }  # fmt: skip
        with subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=clean_environment(**(environ or {})),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def program(loop: str) -> Programs:
    return Programs(loop)


def expect(process: subprocess.Popen[str], *lines: str) -> None:
    assert process.stdout is not None
    for line in lines:
        assert process.stdout.readline() == line + "\n"


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_closes_the_service(number: int, program: Programs) -> None:
    with program() as process:
        expect(process, "start", "started")
        process.send_signal(number)
        code, out, err = finish(process)
    assert (code, out) == (0, "cleanup\nclose\nclosed\ncleanup\n")
    assert err.count("\n") == 1
    assert "stopping" in err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_a_close_that_hangs(number: int, program: Programs) -> None:
    with program(close="await asyncio.sleep(60)") as process:
        expect(process, "start", "started")
        process.send_signal(number)
        expect(process, "cleanup", "close")
        process.send_signal(number)
        code, out, _ = finish(process)
    assert (code, out) == (0, "cleanup\n")


def test_hanging_close_has_a_time_limit(program: Programs) -> None:
    with program(close="await asyncio.sleep(60)", limit=0.01) as process:
        expect(process, "start", "started")
        process.send_signal(signal.SIGTERM)
        code, out, err = finish(process)
    assert (code, out) == (0, "cleanup\nclose\ncleanup\n")
    assert "tunnels did not close in time" in err


def test_hanging_threads_do_not_keep_the_process(program: Programs) -> None:
    # As getaddrinfo() does for half a minute when no DNS server answers.
    hang = "asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)"
    with program(start=hang) as process:
        expect(process, "start", "started")
        process.send_signal(signal.SIGTERM)
        code, out, _ = finish(process)
    assert (code, out) == (0, "cleanup\nclose\nclosed\ncleanup\n")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("plugin", [False, True])
def test_a_signal_during_the_start_ends_it(number: int, plugin: bool, program: Programs) -> None:
    with program(start="await asyncio.sleep(60)", plugin=plugin) as process:
        expect(process, "start")
        process.send_signal(number)
        assert finish(process) == (0, "cleanup\n", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_plugin_is_gone_at_once(number: int, program: Programs) -> None:
    with program(plugin=True) as process:
        expect(process, "start", "started")
        process.send_signal(number)
        assert finish(process) == (0, "cleanup\n", "")


def test_a_plugin_is_gone_even_when_its_loop_is_busy(program: Programs) -> None:
    busy = (
        "asyncio.get_running_loop().call_later("
        "0.01, lambda: [tell('busy'), time.sleep(60)])"
    )
    with program(plugin=True, start=busy) as process:
        expect(process, "start", "started", "busy")
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert finish(process) == (0, "cleanup\n", "")
        assert time.monotonic() - sent < 10


def test_a_failing_cleanup_does_not_keep_a_plugin_alive(program: Programs) -> None:
    with program(plugin=True, cleanup="raise OSError('read-only')") as process:
        expect(process, "start", "started")
        process.send_signal(signal.SIGTERM)
        code, out, _ = finish(process)
    assert (code, out) == (0, "cleanup\n")


def test_tunnels_have_a_grace_period(program: Programs) -> None:
    with program(grace=60, tunnels=2) as process:
        expect(process, "start", "started")
        process.send_signal(signal.SIGTERM)
        code, out, err = finish(process)
    # The program stops listening before it waits for tunnels.
    assert (code, out) == (0, "cleanup\ndrain\nclose\nclosed\ncleanup\n")
    assert re.fullmatch(
        r".* INFO prog: stopping: waiting up to 60 s for 2 tunnels; a second signal cuts at once\n",
        err,
    )


def test_remaining_tunnels_are_cut_after_grace(program: Programs) -> None:
    with program(grace=0.01, tunnels=1, drain="await asyncio.sleep(60)") as process:
        expect(process, "start", "started")
        process.send_signal(signal.SIGTERM)
        code, out, err = finish(process)
    assert (code, out) == (0, "cleanup\ndrain\nclose\nclosed\ncleanup\n")
    lines = [line.partition("prog: ")[2] for line in err.splitlines()]
    assert lines == [
        "stopping: waiting up to 0.01 s for 1 tunnel; a second signal cuts at once",
        "1 tunnel cut after 0.01 s",
    ]


def test_without_grace_tunnels_are_cut_at_once(program: Programs) -> None:
    with program(tunnels=3, drain="await asyncio.sleep(60)") as process:
        expect(process, "start", "started")
        process.send_signal(signal.SIGTERM)
        code, out, err = finish(process)
    assert (code, out) == (0, "cleanup\nclose\nclosed\ncleanup\n")
    assert "stopping: 3 tunnels cut" in err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_grace(number: int, program: Programs) -> None:
    with program(grace=60, tunnels=1, drain="await asyncio.sleep(60)") as process:
        expect(process, "start", "started")
        process.send_signal(number)
        expect(process, "cleanup", "drain")
        process.send_signal(number)
        code, out, _ = finish(process)
    assert (code, out) == (0, "cleanup\n")


def test_service_manager_receives_the_status(program: Programs, tmp_path: Path) -> None:
    with Manager(tmp_path) as manager:
        environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "20000"}
        with program(environ, grace=60, tunnels=1) as process:
            assert manager.hear() == "READY=1\nSTATUS=listening on 127.0.0.1:1"
            for _ in range(3):
                assert manager.hear() == "WATCHDOG=1"
            process.send_signal(signal.SIGTERM)
            assert finish(process)[0] == 0
        heard = [message for message in manager.rest() if message != "WATCHDOG=1"]
    status = "STATUS=stopping: waiting up to 60 s for 1 tunnel"
    assert heard == [f"STOPPING=1\n{status}\nEXTEND_TIMEOUT_USEC=120000000"]


def test_blocked_loop_sends_no_watchdog_message(program: Programs, tmp_path: Path) -> None:
    hang = "asyncio.get_running_loop().call_later(0.1, time.sleep, 60)"
    with Manager(tmp_path) as manager:
        environ = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "20000"}
        with program(environ, start=hang):
            assert manager.hear().startswith("READY=1")
            with pytest.raises(TimeoutError):
                while True:
                    assert manager.hear(seconds=0.5) == "WATCHDOG=1"  # due every 0.01 s


def test_sighup_reloads(program: Programs) -> None:
    again = "type(self).reload = lambda self: tell('reload')"
    with program(start=again) as process:
        expect(process, "start", "started")
        process.send_signal(signal.SIGHUP)
        expect(process, "reload")
        process.send_signal(signal.SIGTERM)
        assert finish(process)[0] == 0


def test_a_failed_start_raises_and_restores_the_handlers(loop: str) -> None:
    class Service(runtime.Service):
        async def start(self) -> None:
            raise StartError("-b: 127.0.0.1:1 is in use")

        async def close(self) -> None:
            raise AssertionError("it never started")

    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(StartError, match="in use"):
        runtime.run(Service(), options=ProcessOptions(loop=loop))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_the_watch_begins_before_the_service(loop: str) -> None:
    events: list[str] = []

    class Service(runtime.Service):
        async def start(self) -> None:
            events.append("start")
            raise StartError("enough")

    def watch(end: object) -> None:
        asyncio.get_running_loop()
        assert callable(end)
        events.append("watch")

    with pytest.raises(StartError):
        runtime.run(Service(), options=ProcessOptions(loop=loop), plugin=True, watch=watch)
    assert events == ["watch", "start"]


def test_descriptor_limit_is_raised() -> None:
    tell = "import resource; print(*resource.getrlimit(resource.RLIMIT_NOFILE), flush=True)"
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 128))\n{tell}\n"
    code = f"{limit}from mtt.process.runtime import raise_descriptor_limit as go\ngo()\n{tell}"
    assert run(sys.executable, "-c", code) == b"64 128\n128 128\n"
