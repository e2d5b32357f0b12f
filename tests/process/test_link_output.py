"""-link: only its output is on stdout; passwords come from the environment or the terminal."""

from __future__ import annotations

import getpass
import os
import pty
import subprocess
import sys
import termios
import warnings
from pathlib import Path

import pytest

from mtt.errors import UsageError
from mtt.options.flags import Values
from mtt.options.links import Link, Login
from mtt.process.command import main
from mtt.process.link_output import draw_qr, printed, shown
from mtt_client import COMMAND
from tests.support.programs import require_package

GIVEN = ("-s", "example.com:443", "-wss")


def run(*argv: str, **environ: str) -> int:
    return main(COMMAND, [*GIVEN, *argv], environ)


def password(values: Values, **environ: str) -> str:
    found = []

    def links(_: Values, login: Login | None) -> list[Link]:
        assert login is not None
        found.append(login.password)
        return [Link("all", "", "text")]

    values = {"link": "all"} | values
    printed(links, values, values, environ)
    return found[0]


def test_stdout_has_the_link_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("-link", "plugin", "-verbose") == 0
    assert capfd.readouterr() == ("wss\n", "")


@pytest.mark.parametrize("kind", ["plugin", "all"])
def test_tunnels_of_a_file(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tunnels.toml"
    path.write_text(
        "wss = true\n[[tunnel]]\nname = 'home'\ns = 'a:443'\n[[tunnel]]\ns = 'b:443'\nmux = true\n"
    )
    assert main(COMMAND, ["-config", str(path), "-link", kind], {}) == 0
    out, err = capfd.readouterr()
    assert err == ""
    if kind == "plugin":
        assert out == "wss\nwss;mux\n"
    else:
        first, second = out.split("\ntunnel[1]\n")
        assert first.startswith('tunnel[0] "home"\n\nCommand line:\n    mtt-client ')
        assert " -s a:443 " in first and " -s b:443 " in second
    assert main(COMMAND, ["-config", str(path), "-link", "ss"], {}) == 2
    out, err = capfd.readouterr()
    assert out == "" and f'-config: {path}: tunnel[0] "home": -link ss: add -link-ss' in err


def test_link_is_no_key_of_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tunnel.toml"
    path.write_text("link = 'all'\n")
    assert main(COMMAND, ["-config", str(path), "-check"], {}) == 1
    assert 'unknown key "link"' in capfd.readouterr().err


def test_bytes_of_the_command_line_stay(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run("-link", "plugin", "-wss-path", "/\udcff") == 0
    assert capfdbinary.readouterr().out == b"wss;wss-path=/\xff\n"


@pytest.mark.parametrize(
    "argv, error",
    [
        (("-qr",), "-qr: only meaningful with -link; add -link all"),
        (("-link-ss", "aes-128-gcm:secret"), "-link-ss: only meaningful with -link; add"),
        (("-link", "ss"), "-link ss: add -link-ss with method and password"),
        (("-link", "ss", "-link-ss", "se cret"), "-link-ss: not like chacha20-ietf-poly1305:"),
        (("-link", "uri"), "-link: 'uri' is not one of all, command, plugin, ss"),
    ],
)
def test_errors(argv: tuple[str, ...], error: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2
    out, err = capfd.readouterr()
    assert (out, "secret" in err) == ("", False)
    assert err.startswith(f"mtt-client: {error}")


def test_not_for_plugins(capfd: pytest.CaptureFixture[str]) -> None:
    environ = {
        "SS_REMOTE_HOST": "a", "SS_REMOTE_PORT": "1", "SS_LOCAL_HOST": "b", "SS_LOCAL_PORT": "2",
        "SS_PLUGIN_OPTIONS": "link=all",
    }  # fmt: skip
    assert run(**environ) == 2
    assert "plugin option link is not an option" in capfd.readouterr().err


def test_password_of_the_command_line() -> None:
    assert password({"link-ss": "aes-128-gcm:secret"}, SS_PASSWORD="other") == "secret"


@pytest.mark.parametrize("text", ["aes-128-gcm", "aes-128-gcm:?"])
def test_password_of_environment_or_terminal(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert password({"link-ss": text}, SS_PASSWORD="secret") == "secret"
    monkeypatch.setattr(getpass, "getpass", lambda _: "typed")
    assert password({"link-ss": text}) == "typed"


def test_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(_: str) -> str:
        warnings.warn("echo", getpass.GetPassWarning, stacklevel=1)
        return "shown"

    monkeypatch.setattr(getpass, "getpass", warn)
    with pytest.raises(UsageError, match="no terminal to ask for the password; set SS_PASS"):
        password({"link-ss": "aes-128-gcm:?"})
    monkeypatch.setattr(getpass, "getpass", lambda _: "")
    with pytest.raises(UsageError, match="the password is empty"):
        password({"link-ss": "aes-128-gcm"})


def test_interrupt_at_the_question_restores_the_terminal() -> None:
    master, terminal = pty.openpty()
    code = (
        # A session of its own, whose terminal this becomes.
        "import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "import sys; sys.argv[0] = 'mtt-client'; import mtt_client; sys.exit(mtt_client.main())"
    )
    asking = [*GIVEN, "-link", "ss", "-link-ss", "aes-128-gcm"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *asking], stdin=terminal, stdout=terminal, stderr=terminal
    ) as process:
        shown = b""
        while b"password: " not in shown:  # the echo is off before the question
            shown += os.read(master, 4096)
        os.write(master, b"\x03")
        assert process.wait(20) == 2
    shown = os.read(master, 4096)
    assert b"mtt-client: -link-ss: no password was given" in shown
    assert termios.tcgetattr(terminal)[3] & termios.ECHO
    os.close(master)
    os.close(terminal)


# What is printed.

FOUND = [
    Link("command", "Command line", "c -x"), Link("plugin", "Options"), Link("ss", "Link", "L"),
]  # fmt: skip


def test_all_links_have_titles() -> None:
    assert shown(FOUND, "all") == (
        "Command line:\n    c -x\n\nOptions:\n    (none)\n\nLink:\n    L\n"
    )


def test_one_link_stands_alone() -> None:
    assert shown(FOUND, "command") == "c -x\n"
    assert shown(FOUND, "plugin") == "\n"


def test_missing_link_is_an_error() -> None:
    given = [*FOUND[:2], Link("ss", "", missing="add -link-ss")]
    assert "Link" not in shown(given, "all")
    with pytest.raises(UsageError, match=r"^-link ss: add -link-ss"):
        shown(given, "ss")


def dark_modules(text: str) -> list[list[bool]]:
    """The matrix in a drawing, margin included."""
    parts = {"█": (False, False), "▀": (False, True), "▄": (True, False), " ": (True, True)}
    rows = []
    for line in text.splitlines():
        for half in (0, 1):
            rows.append([parts[block][half] for block in line])
    return rows


@pytest.mark.parametrize("kind, text", [("all", "L"), ("command", "c -x")])
def test_qr_code(kind: str, text: str) -> None:
    segno = require_package("segno")
    *lines, last = shown(FOUND, kind, qr=True).splitlines()
    assert last == text
    rows = dark_modules("\n".join(lines))
    wanted = segno.make_qr(text.encode(), error="L").matrix
    size = len(wanted)
    assert [row[2 : 2 + size] for row in rows[2 : 2 + size]] == [list(map(bool, r)) for r in wanted]
    # A light margin around it.
    dark = {(y, x) for y, row in enumerate(rows) for x, module in enumerate(row) if module}
    assert {y for y, _ in dark} == {x for _, x in dark} == set(range(2, 2 + size))


def test_qr_code_has_a_limit() -> None:
    require_package("segno")
    draw_qr("x" * 2953)
    with pytest.raises(UsageError, match="-qr: the text is too long for a QR code"):
        draw_qr("x" * 2954)


def test_qr_code_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    with pytest.raises(UsageError, match="-qr needs segno; run pip install segno, or "):
        shown(FOUND, "all", qr=True)
