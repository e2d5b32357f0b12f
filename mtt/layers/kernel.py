"""What the kernel reports of a TCP connection, and holds of it: unacknowledged data, and silence of
the peer.

Transports may be of any layer; the functions look at the socket at the bottom of the stack.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys

# Offsets in struct tcp_info of <linux/tcp.h>: tcpi_probes, unanswered window probes;
# tcpi_last_data_sent and tcpi_last_ack_recv, milliseconds ago; and the size up to there.
_PROBES, _LAST_DATA_SENT, _LAST_ACK_RECV = 3, 44, 56
_TCP_INFO_SIZE = 60
# Values of tcpi_state, its first byte, before our FIN is sent: ESTABLISHED and CLOSE_WAIT.
_BEFORE_FIN = (1, 8)

_LINUX = sys.platform.startswith("linux")


def silent_seconds(transport: asyncio.BaseTransport) -> float:
    """Return for how long the peer's kernel has owed an acknowledgement; 0 if it owes none.

    A peer that merely does not read acknowledges window probes and retransmissions; a dead one does
    not. Up to two minutes pass between two of these, in which nothing is owed, and a single probe
    may stay unanswered, because kernels answer only two per second. TCP keepalive does not notice:
    it stops while data is retransmitted, for a quarter of an hour. (Without data under way it keeps
    the last acknowledgement recent.) Linux only; elsewhere always 0.
    """
    info = _tcp_info(transport) if _queue_of(transport) else None
    if info is None:
        return 0.0
    sent, heard = (struct.unpack_from("I", info, at)[0] for at in (_LAST_DATA_SENT, _LAST_ACK_RECV))
    return float(heard) / 1000 if sent < heard or info[_PROBES] > 1 else 0.0


def stalled_seconds(transport: asyncio.BaseTransport) -> float | None:
    """Return for how long the kernel has sent nothing of its queue: the peer does not read.

    None except on Linux.
    """
    info = _tcp_info(transport)
    if info is None:
        return None
    (sent,) = struct.unpack_from("I", info, _LAST_DATA_SENT)
    return float(sent) / 1000 if _queue_of(transport) else 0.0


def tells_acknowledged(transport: asyncio.BaseTransport) -> bool:
    """Whether `kernel_queue` counts the data that the peer has not acknowledged.

    Except on Linux it counts only the data that our own kernel has not sent.
    """
    return _tcp_info(transport) is not None


def limit_unsent(transport: asyncio.BaseTransport, size: int) -> None:
    """Limit the kernel's unsent data to `size` bytes; on TCP sockets, and where supported."""
    sock = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if sock is not None and option is not None:
        with contextlib.suppress(OSError):  # not a TCP socket
            sock.setsockopt(socket.IPPROTO_TCP, option, size)


def kernel_queue(sock: socket.socket) -> int:
    """Return how many bytes of `sock` the peer's kernel has not acknowledged yet."""
    if sock.fileno() < 0:
        return 0
    try:
        import fcntl  # Unix only
        import select
        import termios

        poll = select.poll()
        poll.register(sock.fileno(), 0)
        if any(events & select.POLLERR for _, events in poll.poll(0)):
            return 0  # reset, which is not noticed otherwise once the peer's FIN has been read
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


def _queue_of(transport: asyncio.BaseTransport) -> int:
    sock = transport.get_extra_info("socket")
    return 0 if sock is None else kernel_queue(sock)


def _tcp_info(transport: asyncio.BaseTransport) -> bytes | None:
    sock = transport.get_extra_info("socket")
    if sock is None or not _LINUX:
        return None
    try:
        return bytes(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE))
    except OSError:  # closed, or not a TCP socket
        return None
