"""`make run`, as the README says it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.support.programs import missing, require_program

ROOT = Path(__file__).parent.parent


@pytest.mark.deadline(60)
@pytest.mark.parametrize("mode", ["tls", "wss+mux"])
def test_make_run_opens_a_tunnel_and_ends_with_a_signal(mode: str) -> None:
    make = require_program("make")
    venv = Path(sys.prefix)
    if not (venv / ".installed").exists():
        missing(f"make install was not run for {venv}, and tests do not download")
    environment = {name: text for name, text in os.environ.items() if name not in ("DEST", "PORT")}
    with subprocess.Popen(
        [make, "run", f"VENV={venv}"], cwd=ROOT, env=environment | {"MODE": mode}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            seen = ""
            for line in process.stdout:
                seen += line
                if found := re.search(r"open (http://\S+)", line):
                    break
            else:
                pytest.fail(f"it ended with:\n{seen}")
            assert f"the tunnel ({mode})" in seen
            assert "fetched / through the tunnel: 200 OK" in seen
            with urllib.request.urlopen(found[1], timeout=20) as page:
                assert b"It works" in page.read()
            os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does it
            process.stdout.read()  # to its end: no writer is left
            # make itself dies of the signal, as every program that runs others does.
            assert process.wait(20) in (0, -signal.SIGINT)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
