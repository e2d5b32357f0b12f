from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mtt import log
from mtt.options.process import LOG_LEVELS
from tests.support.tunnels import logged

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) prog: (.*)\n")
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
ROOT = Path(__file__).parents[1]


def test_a_line_has_time_level_and_program(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "prog")
    log.logger.info("listening on %s", "[::1]:443")
    match = LINE.fullmatch(capfd.readouterr().err)
    assert match is not None
    assert match.groups() == ("INFO", "listening on [::1]:443")


@pytest.mark.parametrize("format", ["text", "json"])
@pytest.mark.parametrize("level", LOG_LEVELS)
def test_levels(level: str, format: str, capfd: pytest.CaptureFixture[str]) -> None:
    log.setup(level, "prog", format)
    for each in LOG_LEVELS:
        log.logger.log(logging.getLevelNamesMapping()[each.upper()], "x")
    err = capfd.readouterr().err
    if format == "json":
        shown = [json.loads(line)["level"] for line in err.splitlines()]
    else:
        shown = [match[0].lower() for match in LINE.findall(err)]
    assert tuple(shown) == LOG_LEVELS[: LOG_LEVELS.index(level) + 1]


def test_setup_twice_does_not_log_twice(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup("debug", "prog")
    log.setup("info", "prog")
    log.logger.debug("hidden")
    log.logger.info("once")
    assert len(LINE.findall(capfd.readouterr().err)) == 1


def test_peers_cannot_forge_lines(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "prog")
    name = "a\n2020-01-01 00:00:00 INFO prog: all is well\r\x1b[2J\x9b\u2028"
    log.logger.warning("name %s", name)
    match = LINE.fullmatch(capfd.readouterr().err)
    assert match is not None
    assert match[2] == (
        r"name a\n2020-01-01 00:00:00 INFO prog: all is well\r\x1b[2J\x9b\u2028"
    )


def test_write_line_takes_any_text(capfd: pytest.CaptureFixture[str]) -> None:
    log.write_line("caf\u00e9 \udcff\tend\n")
    assert capfd.readouterr().err == "caf\u00e9 \\udcff\\tend\\n\n"


def test_unformattable_message_is_logged(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log.setup("info", "prog")
    log.logger.info("%d bytes", "many")
    match = LINE.fullmatch(capfd.readouterr().err)
    assert match is not None
    assert match[2] == "cannot format a log line: '%d bytes'"


def test_asyncio_logs_only_with_verbose(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "prog")
    logging.getLogger("asyncio").error("a traceback for programmers")
    assert capfd.readouterr().err == ""
    log.setup("debug", "prog")
    logging.getLogger("asyncio").warning("slow")
    assert "WARNING prog: slow" in capfd.readouterr().err


def test_json_is_one_object_per_line(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup("info", "prog", "json")
    before = datetime.now(UTC)
    log.logger.info("listening on %s", "[::1]:443")
    log.logger.warning('name "a"\n{}\r\x1b[2J\x9b\u2028 caf\u00e9 \udcff')
    log.logger.info("%d bytes", "many")
    err = capfd.readouterr().err
    assert err.isascii()
    lines = [json.loads(line) for line in err.splitlines()]
    assert err.count("\n") == len(lines) == 3
    for line in lines:
        assert RFC3339.fullmatch(line["time"])
        age = datetime.fromisoformat(line["time"]) - before
        assert timedelta(milliseconds=-1) <= age < timedelta(seconds=20)
    assert [(each["level"], each["program"], each["msg"]) for each in lines] == [
        ("info", "prog", "listening on [::1]:443"),
        ("warning", "prog", 'name "a"\\n{}\\r\\x1b[2J\\x9b\\u2028 caf\u00e9 \\udcff'),
        ("info", "prog", "cannot format a log line: '%d bytes'"),
    ]
    assert all(set(line) == {"time", "level", "program", "msg"} for line in lines)


def test_json_has_tracebacks_on_the_same_line(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup("debug", "prog", "json")
    try:
        raise ValueError("here\nand there")
    except ValueError:
        log.logger.debug("where it happened:", exc_info=True)
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert json.loads(err)["traceback"].endswith("ValueError: here\nand there")


def test_broken_stderr_is_harmless() -> None:
    receiver, sender = os.pipe()
    os.close(receiver)
    code = (
        "from mtt import log; log.setup(); log.logger.error('x'); log.write_line('y'); "
        "print('alive')"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=sender,
            timeout=20, check=False,
        )  # fmt: skip
    finally:
        os.close(sender)
    assert (done.returncode, done.stdout) == (0, b"alive\n")


def test_closed_stderr_is_not_reused(
    tmp_path: Path,
) -> None:
    code = (
        "import os, sys; from mtt import log\n"
        "assert os.open(sys.argv[1], os.O_RDWR | os.O_CREAT) == 2\n"
        "log.setup('info', 'x'); log.logger.error('x'); log.write_line('y')\n"
        "print(os.fstat(2).st_size)\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" 2>&-', sys.executable, "-c", code, str(tmp_path / "file")],
        cwd=ROOT, stdout=subprocess.PIPE, timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"0\n")


def test_unraisable_errors_have_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    """As a client can cause it: `ssl` does not decode every server name."""

    class Broken:
        def __del__(self) -> None:
            raise ValueError("not\nall text")

    log.setup("info", "prog")
    Broken()
    assert capfd.readouterr().err == ""
    log.setup("debug", "prog")
    Broken()
    match = LINE.fullmatch(capfd.readouterr().err)
    assert match is not None
    assert match.groups() == ("DEBUG", r"ignored: ValueError('not\nall text')")


def test_throttled_lines_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(log.time, "monotonic", lambda: now)
    with logged() as lines:
        throttle = log.Throttle(burst=2)
        for number in range(5):
            throttle.warning("flood from %s", number)
        throttle.log(logging.DEBUG, "not shown, and not counted")
        now += log.THROTTLE_INTERVAL - 0.1
        throttle.info("flood")
        now += 0.1
        throttle.info("flood from %s", 6)
        throttle.info("flood from %s", 7)
        throttle.info("flood")
        now += log.THROTTLE_INTERVAL
        throttle.warning("100 %")
    assert lines == [
        "WARNING flood from 0",
        "WARNING flood from 1",
        "INFO flood from 6 (4 similar lines suppressed)",
        "INFO flood from 7",
        "WARNING 100 % (1 similar lines suppressed)",
    ]


@pytest.mark.parametrize("format", ["text", "json"])
def test_lines_about_a_tunnel(format: str, capfd: pytest.CaptureFixture[str]) -> None:
    class Tunnel:
        name = "home\n"

        def __str__(self) -> str:
            return self.name

    tunnel = Tunnel()
    log.setup("info", "prog", format)
    token = log.subject.set(tunnel)
    try:
        log.logger.info("up")
        tunnel.name = ""
        log.logger.info("alone")
    finally:
        log.subject.reset(token)
    named, alone = capfd.readouterr().err.splitlines()
    if format == "json":
        assert json.loads(named).items() >= {"tunnel": "home\\n", "msg": "up"}.items()
        assert "tunnel" not in json.loads(alone)
    else:
        assert named.endswith(" INFO prog: home\\n: up")
        assert alone.endswith(" INFO prog: alone")
