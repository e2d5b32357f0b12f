"""Whole commands: SIGHUP, closed terminals, and the identity that outlives a restart."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.certs import Certs
from tests.support.processes import PATIENCE, Process, Processes, clean_environment, command

SERVER = ("mtt-server", "-b", "127.0.0.1:0", "-d", "127.0.0.1:1")
PIN = re.compile(r"pin (sha256/\S+)")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")


def pin_of(server: Process) -> str:
    return server.expect(PIN.pattern)[1]


def test_identity_survives_a_restart(processes: Processes, tmp_path: Path) -> None:
    pins = []
    for _ in range(2):
        server = processes.command(*SERVER, "-cert-dir", tmp_path / "identity")
        pins.append(pin_of(server))
        assert server.stop() == 0
    assert pins[0] == pins[1]


def test_damaged_identity_is_reported_in_one_line(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").touch()
    server = processes.command(*SERVER, "-cert-dir", tmp_path)
    assert server.wait() == 2
    assert re.fullmatch(r"mtt-server: -cert-dir: .*\n", server.expect_silence())


def test_sighup_reloads_the_files(processes: Processes, certs: Certs, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(certs.cert, cert)
    shutil.copy(certs.key, key)
    server = processes.command(*SERVER, "-cert", cert, "-key", key)
    pin = pin_of(server)
    server.send(signal.SIGHUP)
    server.expect(rf"INFO mtt-server: reloaded: .*{re.escape(pin)}\n")
    key.write_bytes(b"")
    server.send(signal.SIGHUP)
    server.expect(r"ERROR mtt-server: the old certificates stay in use: -key: .* no PEM private")
    assert server.stop() == 0


@pytest.mark.parametrize(
    "argv", [SERVER, ("mtt-client", "-b", "127.0.0.1:0", "-s", "127.0.0.1:1")]
)
def test_sighup_without_files_is_harmless(argv: tuple[str, ...], processes: Processes) -> None:
    process = processes.command(*argv)
    process.expect("listening")
    process.send(signal.SIGHUP)
    process.expect("INFO mtt-.*: not reloaded: certificates: no option names a file\n")
    assert process.stop() == 0


# Makes the terminal that is its stdin its own, and becomes the program it is given.
IN_TERMINAL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
if sys.argv[1] == "nohup":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("how", ["plain", "nohup"])
def test_closed_terminal_ends_its_programs(how: str) -> None:
    """Unless nohup(1) is to prevent just that. The terminal hangs up as when its window closes."""
    import pty

    window, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", IN_TERMINAL, how, *command("mtt-server"), *SERVER[1:]],
        stdin=terminal, stderr=subprocess.PIPE, start_new_session=True,
        env=clean_environment(),
    ) as server:  # fmt: skip
        os.close(terminal)
        try:
            assert server.stderr is not None
            assert b"listening" in server.stderr.readline()
            os.close(window)
            if how == "nohup":
                assert b"not reloaded: certificates" in server.stderr.readline()
                server.terminate()
            assert server.wait(PATIENCE) == 0
            assert b"certificate" not in server.stderr.read()
        finally:
            server.kill()
