"""How much of a socket is read at a time, and where to."""

from __future__ import annotations

import time

# One read of a socket. Below 64 KiB the system calls dominate. Less the headers of frames: with
# those it fits into four records of TLS, and into one frame of smux or AnyTLS.
READ_SIZE = 64 * 1024 - 64
# The same while data come in faster than they can be read so: a quarter of the system calls and of
# the turns of the event loop. Not for those who have a line in front of them: on one with 10 Mbit/s
# a quarter of a megabyte is a fifth of a second, for which others have to wait.
LARGE_READ = 4 * READ_SIZE
# Several full reads in a row, each so many seconds after the one before: 130 Mbit/s and more.
QUICK_READS = 4
QUICK_TIME = 0.004

# All connections of the process read into this buffer: a transport fills it and hands it over
# in the same turn, so nobody sees another's bytes. That asks for a loop that reads when a socket
# is ready (selector loops, uvloop), not one that lends buffers to the kernel (Windows proactor).
_large = memoryview(bytearray(LARGE_READ))
_shared = _large[:READ_SIZE]

# glibc maps what is larger than 128 KiB anew each time, and the kernel fills it with zeros, page by
# page, until a larger piece than that has been freed (mallopt(3), M_MMAP_THRESHOLD).
_freed = bytes(2 * LARGE_READ)
del _freed


class Reads:
    """How much the next read of a socket may take, by what came with the last ones.

    Args:
        large: whether it may ever be more than READ_SIZE.

    Attributes:
        buffer: where it goes: a part of the shared buffer, from its beginning.
    """

    __slots__ = ("_full_at", "_most", "_quick", "buffer")

    def __init__(self, *, large: bool = True) -> None:
        self.buffer = _shared
        self._most = _large if large else _shared
        self._quick = 0  # full reads of which each followed close on another
        self._full_at = 0.0

    def took(self, nbytes: int) -> None:
        """A read has brought `nbytes`."""
        if nbytes >= READ_SIZE:
            now = time.monotonic()
            self._quick = self._quick + 1 if now - self._full_at < QUICK_TIME else 0
            self._full_at = now
            self.buffer = self._most if self._quick >= QUICK_READS else _shared
        elif self._quick:
            self._quick = 0
            self.buffer = _shared
