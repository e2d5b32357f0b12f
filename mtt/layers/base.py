"""What all layers share: the two contracts, and the plumbing of a layer.

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

Transport and protocol refer to each other, which is a cycle that only the garbage collector would
break, rarely and late. So a transport lets go of its protocol when it says `connection_lost`, and
nothing that a connection is made of may refer back to what is above it after that. An exception
that is kept loses its traceback first: that refers to every frame it went through.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

Data = bytes | memoryview

# struct tcp_info of <linux/tcp.h>: tcpi_probes, window probes without an answer so far;
# tcpi_last_data_sent and tcpi_last_ack_recv, milliseconds ago; and the size up to there.
_PROBES, _LAST_DATA_SENT, _LAST_ACK_RECV = 3, 44, 56
_TCP_INFO_SIZE = 60
# tcpi_state, its first byte, as long as no FIN of ours is under way: ESTABLISHED and CLOSE_WAIT.
_BEFORE_FIN = (1, 8)


_LINUX = sys.platform.startswith("linux")


class Upper(Protocol):
    """What a layer needs of the protocol above it; see `StreamProtocol`."""

    borrows: bool

    @property
    def sends_no_more(self) -> bool: ...
    @property
    def wants_rest(self) -> bool: ...
    def connection_made(self, transport: Any) -> None: ...
    def data_received(self, data: Data) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class StreamProtocol(asyncio.Protocol):
    """A protocol of ours: what is above a transport.

    `borrows`: it keeps nothing of what it is given, so that may be a view of memory that is used
    again afterwards.
    """

    __slots__ = ()

    borrows: bool = False

    @property
    def sends_no_more(self) -> bool:
        """Whether it is known to have written its last byte."""
        return False

    @property
    def wants_rest(self) -> bool:
        """Whether data still to be read are of use when sending has failed.

        They are not to a server that could not answer them. It would wait for its answers to be
        taken, and read nothing meanwhile, so it would not hear of the failure.
        """
        return True

    def data_received(self, data: Data) -> None:
        """Take data from the transport below; unless `borrows`, it stays unchanged afterwards."""
        raise NotImplementedError


class _Gone(StreamProtocol):
    """Stands above a transport that is over."""

    __slots__ = ()

    borrows = True  # what comes is dropped

    def data_received(self, data: Data) -> None:
        pass


GONE = _Gone()


def without_traceback(exc: Exception | None) -> Exception | None:
    """`exc`, to be kept: the traceback refers to every frame it went through."""
    return exc if exc is None else exc.with_traceback(None)


class LayerTransport(asyncio.Transport):
    """The transport of a layer, as opposed to that of the socket at the bottom.

    `close()` of it delivers what was written however the peer behaves (see `linger`), `cut()`
    delivers it and then makes the peer see a failure, and `abort()` does that at once.

    `borrows`: it keeps nothing of what it is given. `shares`: others write to the same
    connection, and wait for as long as it takes to send what was written before.
    """

    __slots__ = ("upper",)

    borrows: bool = False
    shares: ClassVar[bool] = False
    upper: Upper

    def write_framed(self, head: bytes, data: Data | bytearray) -> None:
        """Write `data` behind the header of its frame, in one piece."""
        self.write(b"".join((head, data)))

    def close_silently(self) -> None:
        """As `close()`, without the last word that the layer owes its peer, if it has one."""
        self.close()

    def unsent(self) -> int:
        """See the function `unsent`."""
        raise NotImplementedError

    def may_half_close(self) -> bool:
        """Whether `can_write_eof` may become true: the peer has not yet said what it knows."""
        return False

    def cut(self) -> None:
        """Deliver what was written, then have the peer see a failure."""
        raise NotImplementedError

    def ask(self) -> bool:
        """Ask the peer's program for a sign of life; false if that is not possible."""
        return False

    def has_answered(self) -> bool:
        """Whether the answer to the last question has come."""
        return False

    def _tell_lost(self, exc: Exception | None) -> None:
        """Tell the protocol above that this is over, and let go of it."""
        upper, self.upper = self.upper, GONE
        upper.connection_lost(without_traceback(exc))


def framed_writer(transport: asyncio.WriteTransport) -> Callable[[bytes, Data | bytearray], None]:
    """What writes data behind the header of its frame to `transport`, in one piece."""
    if isinstance(transport, LayerTransport):
        return transport.write_framed
    return lambda head, data: transport.write(b"".join((head, data)))


def unsent(transport: asyncio.WriteTransport) -> int:
    """How many of the bytes written to `transport` the peer's kernel has not acknowledged yet."""
    if isinstance(transport, LayerTransport):
        return transport.unsent()
    return transport.get_write_buffer_size() + _kernel_queue(transport)


def may_half_close(transport: asyncio.BaseTransport) -> bool:
    """See `LayerTransport.may_half_close`; a socket knows from the start."""
    return isinstance(transport, LayerTransport) and transport.may_half_close()


def silent_seconds(transport: asyncio.BaseTransport) -> float:
    """For how long the peer's kernel has owed us an acknowledgement; 0 if it owes none.

    A peer that merely does not read acknowledges our window probes and what we send again, one that
    is gone does not. There may be two minutes between two of these, in which nothing is owed; and
    a single probe may go without an answer, because kernels answer only two in a second.
    Keepalive does not see that: it rests while there is something to retransmit, which goes on for
    a quarter of an hour. (While nothing is under way it keeps the last acknowledgement young.)
    Linux only, elsewhere always 0.
    """
    info = _tcp_info(transport) if _kernel_queue(transport) else None
    if info is None:
        return 0.0
    sent, heard = (struct.unpack_from("I", info, at)[0] for at in (_LAST_DATA_SENT, _LAST_ACK_RECV))
    return float(heard) / 1000 if sent < heard or info[_PROBES] > 1 else 0.0


def stalled_seconds(transport: asyncio.BaseTransport) -> float | None:
    """For how long nothing has been sent of what waits in the kernel: the peer does not read.

    None where the system does not tell, other than Linux.
    """
    info = _tcp_info(transport)
    if info is None:
        return None
    (sent,) = struct.unpack_from("I", info, _LAST_DATA_SENT)
    return float(sent) / 1000 if _kernel_queue(transport) else 0.0


def tells_acknowledged(transport: asyncio.BaseTransport) -> bool:
    """Whether `unsent` counts what the peer's kernel has not acknowledged; false if, as on systems
    other than Linux, it counts only what our own kernel has not taken."""
    return _tcp_info(transport) is not None


def _tcp_info(transport: asyncio.BaseTransport) -> bytes | None:
    sock = transport.get_extra_info("socket")
    if sock is None or not _LINUX:
        return None
    try:
        return bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE))
    except OSError:  # closed, or not a TCP socket
        return None


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
            # read, because nobody watches the socket any more.
            return 0
        answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    except (ImportError, OSError):
        return 0
    (count,) = struct.unpack("i", answer)
    # Linux counts our own FIN as one byte.
    return 0 if count == 1 and _has_sent_fin(sock) else int(count)


def _has_sent_fin(sock: socket.socket) -> bool:
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except (OSError, AttributeError):  # not a TCP socket, not Linux
        return True
    return info[0] not in _BEFORE_FIN


class Layer(StreamProtocol, LayerTransport):
    """A protocol to the transport below (`lower`) and a transport to the protocol above (`upper`).

    Subclasses override what they change; everything else passes straight through.
    """

    __slots__ = ("lower", "written")

    lower: asyncio.Transport
    written: int  # bytes handed to `lower` so far

    def __init__(self, upper: Upper) -> None:
        super().__init__()
        self.upper = upper
        self.written = 0

    # As a protocol, called from below.

    @property
    def wants_rest(self) -> bool:
        return self.upper.wants_rest

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

    @property
    def handed_over(self) -> int:
        """Bytes given to the socket so far, in its own count."""
        return self.lower.handed_over if isinstance(self.lower, Layer) else self.written

    @property
    def tail(self) -> int:
        """How many of the last of these are not from above: see `SpeakingLayer`."""
        return self.lower.tail if isinstance(self.lower, Layer) else 0

    def peer_is_ours(self) -> None:
        """Learn that the peer's program is ours: it never leaves without saying so."""
        if isinstance(self.lower, Layer):
            self.lower.peer_is_ours()

    def can_write_eof(self) -> bool:
        """Whether both ends can end each direction by itself; false until that is known."""
        return False

    def write_eof(self) -> None:
        """Tell the peer that nothing more comes from us; if it cannot half-close, it closes."""
        self.lower.write_eof()


class SpeakingLayer(Layer):
    """A layer that also sends what is not from above: answers, alerts, signs of life.

    That does not count as unsent. A peer that has us answer without end and reads nothing would
    look busy to an idle timer, and whatever waits until all data are sent would wait for ever.
    """

    __slots__ = ("_tail",)

    # Bytes of its own behind the last data from above, in the socket's count. Whatever writes data
    # from above sets it to 0.
    _tail: int

    def __init__(self, upper: Upper) -> None:
        super().__init__(upper)
        self._tail = 0

    def _speak(self, data: bytes) -> None:
        """Hand `data` that is not from above to the transport below."""
        before = self.handed_over
        self._send(data)
        self._tail += self.handed_over - before

    @property
    def tail(self) -> int:
        return self._tail + super().tail

    def unsent(self) -> int:
        return max(0, unsent(self.lower) - self._tail)
