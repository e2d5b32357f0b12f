from __future__ import annotations

import pytest

from mtt.errors import UsageError
from mtt.options import process
from mtt.options.flags import parse_args
from mtt.options.process import (
    PROCESS_FLAGS,
    ProcessOptions,
    part_of,
    process_options,
    workers,
)
from mtt.options.usage import usage


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ProcessOptions(10.0, "auto", "text", "info")),
        ("-grace 0", ProcessOptions(grace=0.0)),
        ("-grace=1m30s", ProcessOptions(grace=90.0)),
        ("-loop uvloop", ProcessOptions(loop="uvloop")),
        ("-log json", ProcessOptions(log_format="json")),
        ("-log-level warning", ProcessOptions(log_level="warning")),
        ("-verbose", ProcessOptions(log_level="debug")),
        ("-verbose -log-level debug", ProcessOptions(log_level="debug")),
        ("-workers 3", ProcessOptions(workers=3)),
        ("-verbose=false -log-level error", ProcessOptions(log_level="error")),
    ],
)
def test_options(line: str, expected: ProcessOptions) -> None:
    assert process_options(parse_args(PROCESS_FLAGS, line.split())) == expected


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("-grace 10", "-grace: '10' is not a duration; write it with a unit"),
        ("-grace -1s", "-grace: -1s is negative"),
        ("-log xml", "-log: 'xml' is not one of text, json"),
        ("-log-level INFO", "-log-level: 'INFO' is not one of error, warning, info, debug"),
        ("-loop trio", "-loop: 'trio' is not one of auto, asyncio, uvloop"),
        ("-workers -1", "-workers: -1 is not from 0 to 1024"),
        ("-workers 1025", "-workers: 1025 is not from 0 to 1024"),
        ("-log-level info -verbose", "-verbose is -log-level debug, not info; drop one"),
    ],
)
def test_errors(line: str, text: str) -> None:
    with pytest.raises(UsageError) as raised:
        process_options(parse_args(PROCESS_FLAGS, line.split()))
    assert str(raised.value).startswith(text)


def test_usage_names_the_choices() -> None:
    assert "  -log text|json\n" in usage(PROCESS_FLAGS, "prog", "")


def test_workers_0_is_one_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.os, "sched_getaffinity", lambda _: {0, 2, 5}, raising=False)
    assert workers({"workers": 0}) == 3
    monkeypatch.delattr(process.os, "sched_getaffinity")
    monkeypatch.setattr(process.os, "cpu_count", lambda: None)
    assert workers({"workers": 0}) == 1


def test_without_fork_there_is_one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(process.os, "fork")
    assert workers({"workers": 1}) == 1
    with pytest.raises(UsageError, match="-workers: this system cannot fork"):
        workers({"workers": 2})


@pytest.mark.parametrize(
    ("total", "count", "part"), [(0, 3, 0), (1, 3, 1), (9, 3, 3), (10, 3, 4), (10, 1, 10)]
)
def test_limits_are_divided(total: int, count: int, part: int) -> None:
    assert part_of(total, {"workers": count}) == part
