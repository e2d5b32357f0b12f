from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plugin import lifecycle
from plugin.lifecycle import watch_parent

ROOT = Path(__file__).parents[2]

# A plugin: it holds stdout open, and says when it watches its parent.
PLUGIN = """
import os, sys
parent = os.getppid()
from mtt.process import runtime
from plugin import lifecycle

if sys.argv[1] == "polling":
    lifecycle._pidfd_open = lambda pid: -1

class Service(runtime.Service):
    async def start(self):
        print("watching", flush=True)
    async def close(self):
        print("closed", flush=True)

runtime.run(Service(), plugin=True, watch=lambda end: lifecycle.watch_parent(
    parent, end, poll_interval=0.02))
"""

# A shadowsocks: it starts the plugin from a thread that ends at once, and goes on.
PARENT = """
import subprocess, sys, threading, time
thread = threading.Thread(target=lambda: subprocess.Popen([sys.executable, *sys.argv[1:]]))
thread.start()
thread.join()
print("started", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows leaves that to job objects")
@pytest.mark.parametrize("way", ["pidfd", "polling"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_plugin_ends_with_its_parent(way: str, number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, "-c", PLUGIN, way],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        try:
            assert sorted(parent.stdout.readline() for _ in range(2)) == ["started\n", "watching\n"]
            # The thread is gone, the plugin is not: only the plugin can hold the pipe open.
            parent.send_signal(number)
            parent.wait()
            assert parent.stdout.read() == ""  # the plugin closes it by ending
        finally:
            parent.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows leaves that to job objects")
@pytest.mark.parametrize("pidfd", [True, False])
async def test_a_parent_gone_before_the_watch_began(
    pidfd: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not pidfd:
        monkeypatch.setattr(lifecycle, "_pidfd_open", lambda _pid: -1)
    calls: list[str] = []
    watch_parent(os.getpid(), lambda: calls.append("gone"))
    assert calls == ["gone"]
    # The number of a process that never existed here.
    watch_parent(2**22 + 1, lambda: calls.append("gone"))
    assert calls == ["gone", "gone"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows leaves that to job objects")
async def test_polling_notices_the_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "_pidfd_open", lambda _pid: -1)
    parent = os.getppid()
    gone = asyncio.Event()
    watch_parent(parent, gone.set, poll_interval=0.001)
    assert not gone.is_set()
    monkeypatch.setattr(os, "getppid", lambda: parent + 1)
    await gone.wait()
