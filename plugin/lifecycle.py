"""Ends a plugin when the shadowsocks that started it is gone, however that died.

Shadowsocks ends its plugins with SIGTERM, but not when it crashes or is killed, and a
shadowsocks-libev that has changed its user may not signal a plugin it started as root. A plugin
that stays holds the port, and the next start fails.

prctl(PR_SET_PDEATHSIG) would look simpler, but it fires when the parent's *thread* that forked
us ends, and programs written in Go or Rust start plugins from threads that come and go. EOF on
stdin says nothing either: shadowsocks-rust gives plugins /dev/null.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable

# Seconds; where the system cannot tell us that the parent ended, we ask.
POLL_INTERVAL = 1.0


class ParentWatch:
    """Calls `gone` once, in the running loop, after the process `parent` has ended.

    `parent` is what os.getppid() returned when this process began: the earlier that was, the
    less can happen unseen. On Windows nothing is watched: there a process keeps the parent id
    of a parent long dead, and shadowsocks-windows puts plugins into a job object that the
    system ends with it.
    """

    def __init__(
        self, parent: int, gone: Callable[[], object], *, poll_interval: float = POLL_INTERVAL
    ) -> None:
        self._parent = parent
        self._gone = gone
        self._interval = poll_interval
        self._loop = asyncio.get_running_loop()
        self._descriptor = -1
        self._timer: asyncio.TimerHandle | None = None
        if sys.platform == "win32":
            return
        self._descriptor = _pidfd_open(parent)
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._end)
        # After opening, because until then the parent may have died and its number may have
        # gone to another process. An orphan has a new parent, so this is certain.
        self._check()

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _check(self) -> None:
        if os.getppid() != self._parent:
            self._end()
        elif self._descriptor < 0:
            self._timer = self._loop.call_later(self._interval, self._check)

    def _end(self) -> None:
        self.close()
        self._gone()


def _pidfd_open(pid: int) -> int:
    """A descriptor that becomes readable when process `pid` ends, or -1 without such a thing."""
    if sys.platform != "linux":
        return -1
    try:
        return os.pidfd_open(pid)
    except OSError:
        # Before Linux 5.3, forbidden by a container's seccomp filter, or the parent is in
        # another PID namespace and appears as number 0.
        return -1
