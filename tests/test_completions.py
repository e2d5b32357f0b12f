"""The completions, in the shells themselves."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import subprocess
import time
from pathlib import Path

import pytest

from mtt.options.flags import Flag
from mtt.process.command import Command
from tests.support.programs import require_program
from tools.commands import COMMANDS
from tools.completions import about_of, fish, write_completions, zsh

EVERY = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
SOON = 20.0  # seconds

# A line up to the cursor, and what may come there: the last word with the "=" that bash and fish
# see as a part of it.
LINES = [
    ("mtt-client -log ", {"text", "json"}),
    ("mtt-client -b :1 -log-level i", {"info"}),
    ("mtt-client -mux-m", {"-mux-max-stream"}),
    ("mtt-client -wss -wss-m", {"-wss-mask"}),
    ("mtt-client -b ", set()),
    ("mtt-server -cert ce", {"cert 1.pem", "certs/"}),
    ("mtt-server -cert-dir ", {"certs/"}),
    ("anytls-client -c ce", {"cert 1.pem", "certs/"}),
    ("anyproxy-gateway -check -log-", {"-log-level"}),
    ("mtt-mu-server -tls-min ", {"1.2", "1.3"}),
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The completions, and beside them a current directory with some files."""
    here = tmp_path / "here"
    (here / "certs").mkdir(parents=True)
    (here / "cert 1.pem").touch()
    (here / "other").touch()
    monkeypatch.chdir(here)
    write_completions(tmp_path)
    return tmp_path


def run(*argv: str | Path) -> str:
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": os.getcwd()}
    done = subprocess.run(
        argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=SOON, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


def in_bash(files: Path, line: str) -> set[str]:
    """What bash offers; it passes "=" as a word of its own."""
    words = [word for word in re.split(r" |(=)", line) if word is not None]
    name = words[0]
    script = (
        f"compopt() {{ :; }}; source {files}/bash/{name}; "
        f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; "
        f"_{name.replace('-', '_')}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    return set(run("bash", "-euc", script).splitlines()) - {""}


@pytest.mark.parametrize(("line", "words"), LINES)
def test_bash(files: Path, line: str, words: set[str]) -> None:
    # bash itself adds the slash.
    assert in_bash(files, line) == {word.removesuffix("/") for word in words}


def test_bash_with_two_dashes_and_equals_signs(files: Path) -> None:
    assert in_bash(files, "mtt-client --log-level i") == {"info"}
    assert in_bash(files, "mtt-client -log=") == {"text", "json"}
    assert in_bash(files, "mtt-client --log=j") == {"json"}
    assert in_bash(files, "mtt-client -wss=") == {"true", "false"}
    assert in_bash(files, "mtt-server -cert=o") == {"other"}


@EVERY
def test_bash_offers_every_option(files: Path, command: Command) -> None:
    assert in_bash(files, f"{command.name} -") == {f"-{flag.name}" for flag in command.flags}


@pytest.mark.parametrize(("line", "words"), LINES)
def test_fish(files: Path, line: str, words: set[str]) -> None:
    program = require_program("fish")
    script = f"source {files}/fish/{line.split()[0]}.fish; complete -C {shlex.quote(line)}"
    found = run(program, "--no-config", "-c", script).splitlines()
    offered = {each.partition("\t")[0].replace("\\", "") for each in found}
    assert offered == words


@EVERY
def test_fish_and_zsh_have_every_option(command: Command) -> None:
    of_fish = re.findall(r" -o ([\w-]+)", fish(command))
    of_zsh = re.findall(r"^    '[^\[]*?-([\w-]+)=?\[", zsh(command), re.M)
    for found in (of_fish, of_zsh):
        assert sorted(found) == sorted(
            name for flag in command.flags for name in (flag.name, *flag.aliases)
        )


def test_zsh(files: Path) -> None:
    """Types lines into an interactive zsh, with Tab at the end, and reads what it made of them."""
    program = require_program("zsh")
    lines = [
        ("mtt-client -log j", "mtt-client -log json "),
        ("mtt-client -b x:1 -log-level=w", "mtt-client -b x:1 -log-level=warning "),
        ("mtt-client -mux-m", "mtt-client -mux-max-stream"),
        ("mtt-server -cert o", "mtt-server -cert other "),
        ("mtt-server -cert-dir c", "mtt-server -cert-dir certs/"),
        ("anytls-client -insec", "anytls-client -insecure "),
    ]
    master, terminal = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HOME": os.getcwd(), "TERM": "dumb"}
    shell = subprocess.Popen(
        [program, "-f", "-i"], stdin=terminal, stdout=terminal, stderr=terminal,
        env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    try:
        set_up = (
            f"PS1=; fpath=({files}/zsh $fpath); autoload -U compinit; compinit -D -u; "
            'show() { print -r -- "<$BUFFER>"; BUFFER= }; zle -N show; '
            "bindkey '^G' show; bindkey '^I' expand-or-complete; print ready''now\n"
        )
        os.write(master, set_up.encode())
        read_until(master, r"readynow")
        for line, completed in lines:
            os.write(master, f"{line}\t\x07".encode())
            found = read_until(master, r"<([^<>]*)>")
            assert found.rstrip("= ") == completed.rstrip("= ")
    finally:
        shell.kill()
        shell.wait()
        os.close(master)


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("Print it and exit.", "Print it and exit"),
        ("Skip verification: accept any. Beware.", "Skip verification"),
        ("Event loop; auto is best.", "Event loop"),
        ("With -udp: forget an address. Soon.", "With -udp: forget an address"),
        ("Some words " * 9, ("Some words " * 6).strip() + "..."),
    ],
)
def test_short_descriptions(text: str, about: str) -> None:
    assert about_of(Flag("x", "bool", text)) == about


def read_until(terminal: int, pattern: str) -> str:
    """The group of `pattern`, or all of it, in what comes from the terminal."""
    text, deadline = "", time.monotonic() + SOON
    while (found := re.search(pattern, text)) is None:
        ready, _, _ = select.select([terminal], [], [], deadline - time.monotonic())
        assert ready, text
        text += os.read(terminal, 4096).decode()
    return found[found.re.groups]
