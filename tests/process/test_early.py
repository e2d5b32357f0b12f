"""Ctrl-C while a command is still importing."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("program", "silent"),
    [("/usr/bin/mtt-client", True), ("anytls-server", True), ("/anyproxy-gateway", True),
     ("/x/pytest", False), ("-c", False)],
)
def test_interrupt_is_silent_only_in_own_commands(program: str, silent: bool) -> None:
    # Shells start background jobs with SIGINT ignored, which Python then leaves so.
    code = (
        "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"from mtt.process import early; early.begin({program!r}); "
        "os.kill(os.getpid(), signal.SIGINT); signal.pause()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.returncode == 0) == silent
    assert ("KeyboardInterrupt" in done.stderr) != silent
