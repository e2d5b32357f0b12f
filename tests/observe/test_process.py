"""Metrics about the process."""

from __future__ import annotations

import mmap
import os
import resource
import ssl
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from mtt.observe import process
from mtt.observe.process import build_lines, process_lines
from mtt.version import __version__
from tests.support.metrics import check_with_promtool, parse

needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc here")


def test_build() -> None:
    ((name, value),) = parse(build_lines()).items()
    assert value == 1
    python = "{}.{}.{}".format(*sys.version_info)
    assert name == (
        f'mtt_build_info{{version="{__version__}",python="{python}",'
        f'openssl="{ssl.OPENSSL_VERSION.split()[1]}"}}'
    )


@needs_proc
def test_process() -> None:
    before = parse(process_lines())
    # A new mapping: what malloc returns may be memory that the process has already.
    with open(os.devnull), open(os.devnull), mmap.mmap(-1, 2**24) as block:
        block[:] = bytes(2**24)
        after = parse(process_lines())
    assert after["process_open_fds"] == before["process_open_fds"] + 2
    assert after["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert 0 < before["process_cpu_seconds_total"] <= after["process_cpu_seconds_total"]
    grown = after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]
    assert 2**23 < grown < 2**26
    assert after["process_virtual_memory_bytes"] > after["process_resident_memory_bytes"]


@needs_proc
def test_descriptors_of_older_kernels_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many of them only now and then."""
    expected = parse(process_lines())["process_open_fds"]
    nothing = os.stat_result((0,) * 10)
    monkeypatch.setattr(process.os, "stat", lambda _: nothing)
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(
        process, "time",
        SimpleNamespace(monotonic=lambda: clock.now, process_time=time.process_time),
    )  # fmt: skip
    count = process._Count()
    assert count.descriptors() == expected
    with open(os.devnull):
        assert count.descriptors() == expected + 1
        monkeypatch.setattr(process, "_MANY", 1)
        assert count.descriptors() == expected + 1
        with open(os.devnull):
            assert count.descriptors() == expected + 1
            clock.now += process._VALID_TIME
            assert count.descriptors() == expected + 2


@needs_proc
def test_no_limit_of_descriptors_no_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (unlimited, unlimited))
    assert "process_max_fds" not in parse(process_lines())


def test_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str, **_: Any) -> Any:
        raise FileNotFoundError(path)

    monkeypatch.setattr(process, "open", missing, raising=False)
    assert list(parse(process_lines())) == ["process_cpu_seconds_total"]


def test_promtool_accepts_the_page() -> None:
    check_with_promtool((build_lines() + process_lines()).encode())
