"""The buffer that sockets read into, and how much of it one read uses."""

from __future__ import annotations

import time

# One read of a socket. Below 64 KiB the system calls dominate. Less the headers of frames: with
# those it fits into four TLS records, and into one frame of smux or AnyTLS.
READ_SIZE = 64 * 1024 - 64
# One read while data arrives faster than such reads take it: an eighth of the system calls, of the
# turns of the event loop, and of the times that processes wake each other. Not where connections
# share a slow link: at 10 Mbit/s half a megabyte takes 0.4 seconds, for which the others wait.
LARGE_READ = 8 * READ_SIZE
# Full reads in a row that lead to large reads, and the most seconds between two of them: 130 Mbit/s
# and more.
QUICK_READS = 4
QUICK_TIME = 0.004

# All connections of the process share this buffer: a transport fills it and hands it over in the
# same turn. That needs an event loop that reads when a socket is ready (selector loops, uvloop),
# not one that lends buffers to the kernel (Windows proactor).
_large = memoryview(bytearray(LARGE_READ))
_shared = _large[:READ_SIZE]

# glibc maps each block above 128 KiB anew, and the kernel fills it with zeros, page by page, until
# a larger block than that has been freed (mallopt(3), M_MMAP_THRESHOLD).
_freed = bytes(2 * LARGE_READ)
del _freed


class ReadSizer:
    """Chooses the size of a socket's next read by the sizes of the last ones.

    Args:
        large: permit more than READ_SIZE.

    Attributes:
        buffer: for the next read: the beginning of the shared buffer.
        quick: number of full reads, each soon after the one before.
    """

    __slots__ = ("_full_at", "_max_buffer", "buffer", "quick")

    def __init__(self, *, large: bool = True) -> None:
        self.buffer = _shared
        self._max_buffer = _large if large else _shared
        self.quick = 0
        self._full_at = 0.0

    def update(self, nbytes: int) -> None:
        """Note a read of `nbytes`; nothing changes if it is not full and `quick` is 0."""
        if nbytes >= READ_SIZE:
            now = time.monotonic()
            self.quick = self.quick + 1 if now - self._full_at < QUICK_TIME else 0
            self._full_at = now
            self.buffer = self._max_buffer if self.quick >= QUICK_READS else _shared
        elif self.quick:
            self.quick = 0
            self.buffer = _shared
