from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtt import log

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) prog: (.*)\n")
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    """The loggers as they were: other tests look at them too."""
    loggers = [logging.getLogger(name) for name in ("mtt", "asyncio")]
    before = [(each, each.handlers[:], each.propagate, each.level) for each in loggers]
    yield
    for each, handlers, propagate, level in before:
        each.handlers[:] = handlers
        each.propagate = propagate
        each.setLevel(level)


def test_a_line_has_time_level_and_program(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup(False, "prog")
    log.logger.info("listening on %s", "[::1]:443")
    match = LINE.fullmatch(capfd.readouterr().err)
    assert match is not None
    assert match.groups() == ("INFO", "listening on [::1]:443")


@pytest.mark.parametrize(
    ("verbose", "shown"),
    [
        (False, ["INFO", "WARNING", "ERROR"]),
        (True, ["DEBUG", "INFO", "WARNING", "ERROR"]),
    ],
)
def test_verbose_adds_debug(
    verbose: bool, shown: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    log.setup(verbose, "prog")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.logger.log(level, "x")
    assert [match[0] for match in LINE.findall(capfd.readouterr().err)] == shown


def test_setup_twice_does_not_log_twice(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup(True, "prog")
    log.setup(False, "prog")
    log.logger.debug("hidden")
    log.logger.info("once")
    assert len(LINE.findall(capfd.readouterr().err)) == 1


def test_strangers_cannot_forge_lines(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup(False, "prog")
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


def test_a_message_that_cannot_be_formatted_is_no_accident(
    capfd: pytest.CaptureFixture[str],
) -> None:
    log.setup(False, "prog")
    log.logger.info("%d bytes", "many")
    assert capfd.readouterr().err == "a log line could not be formatted: '%d bytes'\n"


def test_asyncio_speaks_only_when_verbose(capfd: pytest.CaptureFixture[str]) -> None:
    log.setup(False, "prog")
    logging.getLogger("asyncio").error("a traceback for programmers")
    assert capfd.readouterr().err == ""
    log.setup(True, "prog")
    logging.getLogger("asyncio").warning("slow")
    assert "WARNING prog: slow" in capfd.readouterr().err


def test_a_broken_stderr_does_no_harm() -> None:
    receiver, sender = os.pipe()
    os.close(receiver)
    code = (
        "from mtt import log; log.setup(True); log.logger.error('x'); log.write_line('y'); "
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


def test_without_a_stderr_nothing_is_written_to_whatever_became_descriptor_2(
    tmp_path: Path,
) -> None:
    code = (
        "import os, sys; from mtt import log\n"
        "assert os.open(sys.argv[1], os.O_RDWR | os.O_CREAT) == 2\n"
        "log.setup(True, 'x'); log.logger.error('x'); log.write_line('y')\n"
        "print(os.fstat(2).st_size)\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" 2>&-', sys.executable, "-c", code, str(tmp_path / "file")],
        cwd=ROOT, stdout=subprocess.PIPE, timeout=20, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, b"0\n")
