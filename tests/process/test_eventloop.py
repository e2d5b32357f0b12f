from __future__ import annotations

import asyncio
import errno
import logging
import sys
from typing import Any

import pytest

from mtt.errors import UsageError
from mtt.log import logger
from mtt.process import eventloop
from mtt.process.eventloop import ErrorReporter, loop_factory


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logger, "propagate", True)
    return caplog


def report(reporter: ErrorReporter, context: dict[str, Any]) -> None:
    loop = asyncio.SelectorEventLoop()
    reporter(loop, context)
    loop.close()


@pytest.mark.parametrize(
    ("context", "level", "text"),
    [
        ({"message": "alone"}, "ERROR", "alone"),
        ({"message": "callback", "exception": KeyError("k")}, "ERROR", "callback: KeyError: 'k'"),
        (
            {"message": "accept", "exception": OSError(errno.ENOMEM, "x"), "socket": 1},
            "ERROR",
            "new connections have to wait until others end: cannot allocate memory",
        ),
        (
            {"message": "accept", "exception": OSError(errno.EMFILE, "x"), "socket": 1},
            "ERROR",
            "new connections have to wait until others end: too many open files; the limit can be "
            "raised (ulimit -n, or LimitNOFILE= of systemd)",
        ),
        (
            {"message": "accept", "exception": OSError(errno.EPERM, "x"), "socket": 1},
            "ERROR",
            "accept: operation not permitted",
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
    report(ErrorReporter(), context)
    (record,) = records.records
    assert (record.levelname, record.getMessage()) == (level, text)


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_only_those_who_debug_see_a_traceback(
    level: int, records: pytest.LogCaptureFixture
) -> None:
    records.set_level(level, "mtt")
    report(ErrorReporter(), {"message": "x", "exception": ValueError("y")})
    assert bool(records.records[0].exc_info) == (level == logging.DEBUG)


def test_exhaustion_is_not_said_without_end(
    records: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("mtt.process.eventloop.time.monotonic", lambda: now)
    reporter = ErrorReporter()
    context = {"message": "accept", "exception": OSError(errno.EMFILE, "x"), "socket": 1}
    for seconds in (0.0, 0.0, 1.0, eventloop.EXHAUSTED_INTERVAL - 1):
        now = seconds
        report(reporter, context)
    assert len(records.records) == 1
    now = eventloop.EXHAUSTED_INTERVAL
    report(reporter, context)
    assert len(records.records) == 2


async def test_nothing_is_said_of_a_listener_closed_while_accepting_rests(
    records: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.SelectorEventLoop):
        pytest.skip("uvloop does not rest")
    monkeypatch.setattr("asyncio.constants.ACCEPT_RETRY_DELAY", 0.01)
    loop.set_exception_handler(ErrorReporter())
    server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    (listening,) = server.sockets
    tired = Tired(listening._sock)  # type: ignore[attr-defined]
    loop._accept_connection(asyncio.Protocol, tired, server=server, backlog=1)  # type: ignore[attr-defined]
    server.close()
    await asyncio.sleep(0.05)
    assert [record.getMessage()[:15] for record in records.records] == ["new connections"]


class Tired:
    """A listening socket in a process without descriptors."""

    def __init__(self, sock: Any) -> None:
        self.fileno = sock.fileno

    def accept(self) -> None:
        raise OSError(errno.EMFILE, "x")


def test_which_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loop_factory("asyncio") is asyncio.SelectorEventLoop
    monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it were not installed
    assert loop_factory("auto") is asyncio.SelectorEventLoop
    with pytest.raises(UsageError, match="-loop uvloop"):
        loop_factory("uvloop")


@pytest.mark.parametrize("name", ["auto", "uvloop"])
def test_uvloop_where_it_is_installed(name: str) -> None:
    uvloop = pytest.importorskip("uvloop")
    loop = loop_factory(name)()
    loop.close()
    assert isinstance(loop, uvloop.Loop)
