"""What all layers share: the receive buffer, and the plumbing of a layer.

Theory of operation
-------------------
A connection is a stack. At the bottom is a socket (`tcp`); each layer above (TLS,
WebSocket) is a *protocol* to the layer below it and a *transport* to the one above, both by
asyncio's own contract. So any protocol runs on any stack, and nobody needs to know which.

Data goes up as immutable bytes (`bytes`, or a `memoryview` of one); whoever keeps it longer
than the call copies it. Data goes down with `write()`, which takes it at once.

Back-pressure goes down-up as `pause_writing` / `resume_writing` and up-down as
`pause_reading` / `resume_reading`; a layer holds at most what one read of the layer below
gave it, because a paused layer pauses the one below.

A protocol above a layer gets `connection_made` when that layer is ready to carry its data. If
the layer fails before, it gets `connection_lost` alone.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from typing import Any, ClassVar, Protocol

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

Data = bytes | memoryview

# struct tcp_info of <linux/tcp.h>: tcpi_probes, window probes without an answer so far;
# tcpi_last_data_sent and tcpi_last_ack_recv, milliseconds ago; and the size up to there.
_PROBES, _LAST_DATA_SENT, _LAST_ACK_RECV = 3, 44, 56
_TCP_INFO_SIZE = 60

# All connections of the process read into this buffer: the event loop fills it and hands it over
# in the same turn, so nobody sees another's bytes. That asks for a loop that reads when a socket
# is ready (selector loops, uvloop), not one that lends buffers to the kernel (Windows proactor).
_large = memoryview(bytearray(LARGE_READ))
_shared = _large[:READ_SIZE]

# glibc maps what is larger than 128 KiB anew each time, and the kernel fills it with zeros, page by
# page, until a larger piece than that has been freed (mallopt(3), M_MMAP_THRESHOLD).
_freed = bytes(2 * LARGE_READ)
del _freed


class Upper(Protocol):
    """The protocol above a layer (asyncio.Protocol, or one that also reads raw sockets).

    `borrows`: it keeps nothing of what `data_received` is given, so that may be a view of memory
    that is used again afterwards.
    """

    borrows: ClassVar[bool]

    def connection_made(self, transport: Any) -> None: ...
    def data_received(self, data: Data) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


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


class SharedReader(asyncio.BufferedProtocol):
    """A protocol that reads sockets through the shared buffer and gets `data_received` calls."""

    __slots__ = ()

    borrows: ClassVar[bool] = False

    def get_buffer(self, sizehint: int) -> memoryview:
        return _shared

    def buffer_updated(self, nbytes: int) -> None:
        # A copy, because ownership changes here: the shared buffer is overwritten by the next read.
        self.data_received(bytes(_shared[:nbytes]))

    def data_received(self, data: Data) -> None:
        """Take data from the transport below; unless `borrows`, it stays unchanged afterwards."""
        raise NotImplementedError


class LayerTransport(asyncio.Transport):
    """The transport of a layer, as opposed to that of the socket at the bottom.

    `close()` of it delivers what was written however the peer behaves (see `linger`), and
    `abort()` makes the peer see a failure.

    `borrows`: `write()` keeps nothing of what it is given. `shares`: others write to the same
    connection, and wait for as long as it takes to send what was written before.
    """

    __slots__ = ()

    borrows: ClassVar[bool] = False
    shares: ClassVar[bool] = False

    def write_framed(self, head: bytes, data: Data | bytearray) -> None:
        """Write `data` behind the header of its frame, in one piece."""
        self.write(b"".join((head, data)))

    def unsent(self) -> int:
        """See the function `unsent`."""
        raise NotImplementedError


def unsent(transport: asyncio.WriteTransport) -> int:
    """How many of the bytes written to `transport` the peer's kernel has not acknowledged yet."""
    if isinstance(transport, LayerTransport):
        return transport.unsent()
    return transport.get_write_buffer_size() + _kernel_queue(transport)


def silent_seconds(transport: asyncio.BaseTransport) -> float:
    """For how long the peer's kernel has owed us an acknowledgement; 0 if it owes none.

    A peer that merely does not read acknowledges our window probes and what we send again, one that
    is gone does not. There may be two minutes between two of these, in which nothing is owed; and
    a single probe may go without an answer, because kernels answer only two in a second.
    Keepalive does not see that: it rests while there is something to retransmit, which goes on for
    a quarter of an hour. (While nothing is under way it keeps the last acknowledgement young.)
    Linux only, elsewhere always 0.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or not sys.platform.startswith("linux") or not _kernel_queue(transport):
        return 0.0
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
    except OSError:  # not a TCP socket
        return 0.0
    sent, heard = (struct.unpack_from("I", info, at)[0] for at in (_LAST_DATA_SENT, _LAST_ACK_RECV))
    return float(heard) / 1000 if sent < heard or info[_PROBES] > 1 else 0.0


def _kernel_queue(transport: asyncio.BaseTransport) -> int:
    sock = transport.get_extra_info("socket")
    if sock is None or sock.fileno() < 0:
        return 0
    try:
        import fcntl  # Unix only
        import select
        import termios

        poll = select.poll()
        poll.register(sock.fileno(), 0)
        if any(events & select.POLLERR for _, events in poll.poll(0)):
            # Reset: the rest will never be sent. Nobody tells us once the peer's FIN has been
            # read, because the event loop does not watch the socket any more.
            return 0
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (ImportError, OSError):
        return 0
    # Linux counts our own FIN as one byte.
    return max(0, int(struct.unpack("i", answer)[0]) - 1)


class Layer(SharedReader, LayerTransport):
    """A protocol to the transport below (`lower`) and a transport to the protocol above (`upper`).

    Subclasses override what they change; everything else passes straight through.
    """

    __slots__ = ("lower", "upper", "written")

    lower: asyncio.Transport
    upper: Upper
    written: int  # bytes handed to `lower` so far

    def __init__(self, upper: Upper) -> None:
        super().__init__()
        self.upper = upper
        self.written = 0

    # As a protocol, called from below.

    # Any: uvloop's transports are of no asyncio class.
    def connection_made(self, transport: Any) -> None:
        self.lower = transport

    def pause_writing(self) -> None:
        self.upper.pause_writing()

    def resume_writing(self) -> None:
        self.upper.resume_writing()

    def _send(self, data: bytes) -> None:
        """Hand `data` to the transport below."""
        self.written += len(data)
        self.lower.write(data)

    # As a transport, called from above.

    def set_protocol(self, protocol: Any) -> None:
        self.upper = protocol

    def get_protocol(self) -> Any:
        return self.upper

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.lower.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self.lower.is_closing()

    def is_reading(self) -> bool:
        return self.lower.is_reading()

    def pause_reading(self) -> None:
        self.lower.pause_reading()

    def resume_reading(self) -> None:
        self.lower.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self.lower.get_write_buffer_size()

    def unsent(self) -> int:
        return unsent(self.lower)

    def can_write_eof(self) -> bool:
        """Whether both ends can end each direction by itself; false until that is known."""
        return False

    def write_eof(self) -> None:
        """Tell the peer that nothing more comes from us; if it cannot half-close, it closes."""
        self.lower.write_eof()
