"""Metrics about this process, with the names that Prometheus' client libraries use."""

from __future__ import annotations

import os
import ssl
import sys
import time

from mtt.observe.metrics import labels, metric
from mtt.version import __version__

# Numbers of the fields in /proc/self/statm, in pages.
_VIRTUAL, _RESIDENT = 0, 1

_DESCRIPTORS = "/proc/self/fd"
# Before Linux 6.2, descriptors have to be listed, which takes 1 ms for a thousand. A larger number
# is valid for this many seconds, because workers make a page every second.
_MANY = 1000
_VALID_TIME = 15.0


def build_lines() -> str:
    """The versions that are running."""
    python = ".".join(map(str, sys.version_info[:3]))
    openssl = ssl.OPENSSL_VERSION.split()[1]  # behind the name of the library
    versions = labels(version=__version__, python=python, openssl=openssl)
    return metric("mtt_build_info", "gauge", "The running versions; always 1.", {versions: 1})


def process_lines() -> str:
    """CPU time, memory and descriptors, as far as the system provides them."""
    text = metric(
        "process_cpu_seconds_total", "counter", "CPU time, of user and system.", time.process_time()
    )
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = [int(field) for field in file.read().split()]
        descriptors = _count.descriptors()
        page_size = os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux, or no /proc
        return text
    return (
        text
        + metric("process_resident_memory_bytes", "gauge", "Resident memory.",
                 pages[_RESIDENT] * page_size)
        + metric("process_virtual_memory_bytes", "gauge", "Virtual memory.",
                 pages[_VIRTUAL] * page_size)
        + metric("process_open_fds", "gauge", "Open file descriptors.", descriptors)
        + _limit_lines()
    )  # fmt: skip


class _Count:
    """Counts the open descriptors."""

    def __init__(self) -> None:
        self._number = 0
        self._valid_until = 0.0

    def descriptors(self) -> int:
        """Their number. Raises OSError."""
        number = os.stat(_DESCRIPTORS).st_size  # since Linux 6.2
        if number:
            return number
        now = time.monotonic()
        if now >= self._valid_until:
            self._number = len(os.listdir(_DESCRIPTORS)) - 1  # one reads the directory
            self._valid_until = now + _VALID_TIME if self._number > _MANY else now
        return self._number


_count = _Count()


def _limit_lines() -> str:
    import resource  # not everywhere

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return ""
    return metric("process_max_fds", "gauge", "Maximum number of open file descriptors.", limit)
