"""Ctrl-C while a command is still importing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mtt.process import early


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


def test_no_slow_imports() -> None:
    # -S: site, or a .pth file in it, may import anything.
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; before = set(sys.modules); "
        "import mtt.process.early; print(*set(sys.modules) - before)"
    )
    root = str(Path(early.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, root],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert "mtt.process.early" in loaded
    assert not loaded & {"typing", "asyncio", "ssl", "logging"}
