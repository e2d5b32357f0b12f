"""What the kernel tells of a TCP connection: what it holds, and how long its peer is silent.

Each function takes any transport; the socket is the one at the bottom of its stack.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys

# struct tcp_info of <linux/tcp.h>: tcpi_probes, window probes without an answer so far;
# tcpi_last_data_sent and tcpi_last_ack_recv, milliseconds ago; and the size up to there.
_PROBES, _LAST_DATA_SENT, _LAST_ACK_RECV = 3, 44, 56
_TCP_INFO_SIZE = 60
# tcpi_state, its first byte, as long as no FIN of ours is under way: ESTABLISHED and CLOSE_WAIT.
_BEFORE_FIN = (1, 8)

_LINUX = sys.platform.startswith("linux")


def silent_seconds(transport: asyncio.BaseTransport) -> float:
    """For how long the peer's kernel has owed us an acknowledgement; 0 if it owes none.

    A peer that merely does not read acknowledges our window probes and what we send again, one that
    is gone does not. There may be two minutes between two of these, in which nothing is owed; and
    a single probe may go without an answer, because kernels answer only two in a second.
    Keepalive does not see that: it rests while there is something to retransmit, which goes on for
    a quarter of an hour. (While nothing is under way it keeps the last acknowledgement young.)
    Linux only, elsewhere always 0.
    """
    info = _tcp_info(transport) if _queue_of(transport) else None
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
    return float(sent) / 1000 if _queue_of(transport) else 0.0


def tells_acknowledged(transport: asyncio.BaseTransport) -> bool:
    """Whether `kernel_queue` counts what the peer's kernel has not acknowledged; false if, as on
    systems other than Linux, it counts only what our own kernel has not sent."""
    return _tcp_info(transport) is not None


def kernel_queue(sock: socket.socket) -> int:
    """How many of the bytes given to `sock` the peer's kernel has not acknowledged yet."""
    if sock.fileno() < 0:
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
