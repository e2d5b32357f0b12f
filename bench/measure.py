"""What the kernel knows about processes: CPU time and resident memory (Linux)."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")

# clock_getcpuclockid(3): the id of a process's CPU clock is made of its pid and this.
_CPUCLOCK_SCHED = 2


def family(pid: int) -> list[int]:
    """`pid` and all its descendants: a program may work in several processes."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += family(int(child))
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time that `pid` and its descendants have used, user and system together.

    From the process's CPU clock, which counts nanoseconds and threads that have ended, where
    /proc/PID/stat has ticks of 10 ms.
    """
    total = 0.0
    for member in family(pid):
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~member << 3) | _CPUCLOCK_SCHED)
    return total


def rss_bytes(pid: int) -> int:
    """Resident memory of `pid` and its descendants; pages they share count for each."""
    total = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{member}/statm").read_text().split()[1]) * _PAGE
    return total
