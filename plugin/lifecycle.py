"""Ends a plugin when the shadowsocks that started it exits, for any reason.

Shadowsocks ends its plugins with SIGTERM, but not if it crashes or is killed, and a
shadowsocks-libev that has changed its user may not signal a plugin that it started as root. A
plugin that stays holds the port, and the next start fails.

prctl(PR_SET_PDEATHSIG) looks simpler, but it fires when the *thread* that forked the plugin ends,
and programs in Go or Rust start plugins from short-lived threads. EOF on stdin is no help either:
shadowsocks-rust gives plugins /dev/null.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

# Seconds between checks of the parent where the system cannot report its end.
POLL_INTERVAL = 1.0


def watch_parent(
    parent: int, gone: Callable[[], object], *, poll_interval: float = POLL_INTERVAL
) -> None:
    """Call `gone` once, in the running loop, after the process `parent` has ended.

    `parent` is the result of os.getppid() when this process began: the earlier, the smaller the
    chance that the parent's end goes unnoticed. Does nothing on Windows: a process there keeps the
    parent id of a dead parent, and shadowsocks-windows puts plugins into a job object that ends
    with it.
    """
    if sys.platform == "win32":
        return
    loop = asyncio.get_running_loop()
    descriptor = _pidfd_open(parent)

    def check() -> None:
        if os.getppid() != parent:
            end()
        elif descriptor < 0:
            loop.call_later(poll_interval, check)

    def end() -> None:
        if descriptor >= 0:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        gone()

    if descriptor >= 0:
        loop.add_reader(descriptor, end)
    # Checked after opening: before that, the parent may have died and its pid may have been
    # reused. An orphan has a new parent, so the check is reliable.
    check()


def _pidfd_open(pid: int) -> int:
    """A descriptor that becomes readable when process `pid` ends; -1 if not supported."""
    if sys.platform != "linux":
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError:
        # Linux before 5.3, forbidden by a container's seccomp filter, or the parent is in another
        # PID namespace and appears as 0.
        return -1
