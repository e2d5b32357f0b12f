from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtt import runtime
from mtt.errors import StartError
from mtt.log import logger

ROOT = Path(__file__).parents[1]

# A service that tells what is done with it.
PROGRAM = """
import asyncio, sys, time
from mtt import log, runtime
log.setup(True, "prog")

class Service:
    async def start(self):
        print("start", flush=True)
        %(start)s
        # Not printed here: the first signal is for close() only when start() has returned.
        asyncio.get_running_loop().call_soon(lambda: print("started", flush=True))
    async def close(self):
        print("close", flush=True)
        %(close)s
        print("closed", flush=True)
    def cleanup(self):
        print("cleanup", flush=True)
        %(cleanup)s

runtime.CLOSE_LIMIT = %(limit)s
code = runtime.run(Service(), plugin=%(plugin)s)
"""

SIGNALS = [signal.SIGTERM, signal.SIGINT]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")


@contextlib.contextmanager
def program(**parts: Any) -> Iterator[subprocess.Popen[str]]:
    code = PROGRAM % {
        "start": "", "close": "", "cleanup": "", "limit": 60, "plugin": False, **parts,
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def expect(process: subprocess.Popen[str], *lines: str) -> None:
    assert process.stdout is not None
    for line in lines:
        assert process.stdout.readline() == line + "\n"


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_closes_the_service(number: int) -> None:
    with program() as process:
        expect(process, "start", "started")
        process.send_signal(number)
        code, out, err = finish(process)
    assert (code, out) == (0, "close\nclosed\ncleanup\n")
    assert err.count("\n") == 1
    assert "stopping" in err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_a_close_that_hangs(number: int) -> None:
    with program(close="await asyncio.sleep(60)") as process:
        expect(process, "start", "started")
        process.send_signal(number)
        expect(process, "close")
        process.send_signal(number)
        code, out, _ = finish(process)
    assert (code, out) == (0, "cleanup\n")


def test_a_close_that_hangs_is_not_waited_for_without_limit() -> None:
    with program(close="await asyncio.sleep(60)", limit=0.01) as process:
        expect(process, "start", "started")
        process.send_signal(signal.SIGTERM)
        code, out, err = finish(process)
    assert (code, out) == (0, "close\ncleanup\n")
    assert "gave up" in err


def test_threads_that_hang_do_not_keep_the_process() -> None:
    # As getaddrinfo() does for half a minute when no DNS server answers.
    hang = "asyncio.get_running_loop().run_in_executor(None, time.sleep, 60)"
    with program(start=hang) as process:
        expect(process, "start", "started")
        process.send_signal(signal.SIGTERM)
        code, out, _ = finish(process)
    assert (code, out) == (0, "close\nclosed\ncleanup\n")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("plugin", [False, True])
def test_a_signal_during_the_start_ends_it(number: int, plugin: bool) -> None:
    with program(start="await asyncio.sleep(60)", plugin=plugin) as process:
        expect(process, "start")
        process.send_signal(number)
        assert finish(process) == (0, "cleanup\n", "")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_plugin_is_gone_at_once(number: int) -> None:
    with program(plugin=True) as process:
        expect(process, "start", "started")
        process.send_signal(number)
        assert finish(process) == (0, "cleanup\n", "")


def test_a_plugin_is_gone_even_when_its_loop_is_busy() -> None:
    busy = (
        "asyncio.get_running_loop().call_later("
        "0.01, lambda: [print('busy', flush=True), time.sleep(60)])"
    )
    with program(plugin=True, start=busy) as process:
        expect(process, "start", "started", "busy")
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert finish(process) == (0, "cleanup\n", "")
        assert time.monotonic() - sent < 10


def test_a_failing_cleanup_does_not_keep_a_plugin_alive() -> None:
    with program(plugin=True, cleanup="raise OSError('read-only')") as process:
        expect(process, "start", "started")
        process.send_signal(signal.SIGTERM)
        code, out, _ = finish(process)
    assert (code, out) == (0, "cleanup\n")


def test_a_failed_start_raises_and_restores_the_handlers() -> None:
    class Service:
        async def start(self) -> None:
            raise StartError("-b: 127.0.0.1:1 is in use")

        async def close(self) -> None:
            raise AssertionError("it never started")

    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(StartError, match="in use"):
        runtime.run(Service())
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_the_watch_begins_before_the_service() -> None:
    events: list[str] = []

    class Service:
        async def start(self) -> None:
            events.append("start")
            raise StartError("enough")

        async def close(self) -> None: ...

    def watch(end: object) -> None:
        asyncio.get_running_loop()
        assert callable(end)
        events.append("watch")

    with pytest.raises(StartError):
        runtime.run(Service(), plugin=True, watch=watch)
    assert events == ["watch", "start"]


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logger, "propagate", True)
    return caplog


@pytest.mark.parametrize(
    ("context", "level", "text"),
    [
        ({"message": "alone"}, "ERROR", "alone"),
        ({"message": "callback", "exception": KeyError("k")}, "ERROR", "callback: KeyError: 'k'"),
        (
            {"message": "accept", "exception": OSError(errno.EMFILE, "x"), "socket": 1},
            "ERROR",
            "accept: too many open files",
        ),
        (
            {"message": "read", "exception": OSError(errno.EHOSTUNREACH, "x"), "transport": 1},
            "DEBUG",
            "read: no route to host",
        ),
    ],
)
def test_errors_in_callbacks(
    context: dict[str, Any], level: str, text: str, records: pytest.LogCaptureFixture
) -> None:
    records.set_level(logging.DEBUG, "mtt")
    loop = asyncio.SelectorEventLoop()
    runtime.report(loop, context)
    loop.close()
    (record,) = records.records
    assert (record.levelname, record.getMessage()) == (level, text)


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_only_those_who_debug_see_a_traceback(
    level: int, records: pytest.LogCaptureFixture
) -> None:
    records.set_level(level, "mtt")
    loop = asyncio.SelectorEventLoop()
    runtime.report(loop, {"message": "x", "exception": ValueError("y")})
    loop.close()
    assert bool(records.records[0].exc_info) == (level == logging.DEBUG)
