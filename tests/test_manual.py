"""The manual pages: complete, and accepted by man and groff."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtt.process.command import Command
from tests.support.programs import require_program
from tools.commands import COMMANDS
from tools.manual import manual_page, write_pages

ROOT = Path(__file__).parents[1]
EVERY = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


def shown(page: str) -> str:
    """The text of a page, without the escapes of roff."""
    return re.sub(r"\\f[BIR]|\\&", "", page).replace(r"\-", "-").replace(r"\e", "\\")


@EVERY
def test_every_option_is_in_the_page(command: Command) -> None:
    text = shown(manual_page(command))
    for flag in command.flags:
        names = ", ".join(f"-{name}" for name in (flag.name, *flag.aliases))
        assert f"\n.TP\n{f'{names} {flag.placeholder}'.rstrip()}\n{flag.help}" in text, flag.name
    for about, _ in command.examples:
        assert f"\n{about}:\n" in text
    assert f"\n{command.name} - {command.summary}\n" in text


@EVERY
def test_requests_begin_with_a_dot(command: Command) -> None:
    requests = {line.split()[0] for line in manual_page(command).splitlines() if line[0] in ".'"}
    assert requests <= {".TH", ".SH", ".SS", ".TP", ".PP", ".nf", ".fi", ".RS", ".RE"}


def test_groff_and_man_accept_the_pages(tmp_path: Path) -> None:
    groff, man = require_program("groff"), require_program("man")
    write_pages(tmp_path)
    pages = sorted((tmp_path / "man1").iterdir())
    assert [page.name for page in pages] == sorted(f"{name}.1" for name in COMMANDS)
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANWIDTH": "80"}
    for page in pages:
        argv = [groff, "-man", "-Tutf8", "-rLL=78n", "-ww", "-z", page]
        done = subprocess.run(argv, capture_output=True, timeout=20, check=True)
        assert done.stderr == b""
    done = subprocess.run(
        [man, "--warnings", "-l", *pages], env=environment, stdin=subprocess.DEVNULL,
        capture_output=True, timeout=20, check=True,
    )  # fmt: skip
    assert done.stderr == b""
    assert b"NAME\n       mtt-client - " in done.stdout


def test_the_module_needs_a_directory(tmp_path: Path) -> None:
    for argv, code in (([], 2), (["-h"], 2), ([str(tmp_path / "new")], 0)):
        done = subprocess.run(
            [sys.executable, "-m", "tools.manual", *argv], cwd=ROOT, capture_output=True,
            timeout=20, check=False,
        )  # fmt: skip
        assert done.returncode == code
        assert (b"OUTDIR" in done.stderr) == (code == 2)
    assert (tmp_path / "new" / "man1" / "mtt-server.1").is_file()
