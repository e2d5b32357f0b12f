from __future__ import annotations

import asyncio
import errno
import logging
import sys
from typing import Any

import pytest

from mtt.errors import UsageError
from mtt.layers.poller import new_event_loop
from mtt.log import logger
from mtt.process.runtime import loop_factory, report_error
from tests.support.programs import require_package


@pytest.fixture
def records(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logger, "propagate", True)
    return caplog


def report(context: dict[str, Any]) -> None:
    loop = asyncio.SelectorEventLoop()
    report_error(loop, context)
    loop.close()


@pytest.mark.parametrize(
    ("context", "level", "text"),
    [
        ({"message": "alone"}, "ERROR", "alone"),
        ({"message": "callback", "exception": KeyError("k")}, "ERROR", "callback: KeyError: 'k'"),
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
    report(context)
    (record,) = records.records
    assert (record.levelname, record.getMessage()) == (level, text)


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
def test_traceback_only_at_level_debug(
    level: int, records: pytest.LogCaptureFixture
) -> None:
    records.set_level(level, "mtt")
    report({"message": "x", "exception": ValueError("y")})
    assert bool(records.records[0].exc_info) == (level == logging.DEBUG)


def test_which_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loop_factory("asyncio") is new_event_loop
    monkeypatch.setitem(sys.modules, "uvloop", None)  # as if it were not installed
    assert loop_factory("auto") is new_event_loop
    with pytest.raises(UsageError, match="-loop uvloop"):
        loop_factory("uvloop")


@pytest.mark.parametrize("name", ["auto", "uvloop"])
def test_uvloop_where_it_is_installed(name: str) -> None:
    uvloop = require_package("uvloop")
    loop = loop_factory(name)()
    loop.close()
    assert isinstance(loop, uvloop.Loop)
