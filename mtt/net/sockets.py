"""Options of sockets."""

from __future__ import annotations

import contextlib
import functools
import socket
import sys
from typing import Any

# The Go runtime uses the same 15 s for both, so peers and middleboxes see familiar traffic. With 3
# probes, an idle connection to a dead peer is detected after 15 + 3 x 15 = 60 s.
KEEPALIVE_IDLE = 15
KEEPALIVE_INTERVAL = 15
KEEPALIVE_PROBES = 3

# Connections that the kernel completes before they are accepted. When many clients reconnect at
# once, those that do not fit are delayed by 1 s (a lost SYN). The kernel caps this at somaxconn.
BACKLOG = 1024

_CONGESTION_CONTROL = "/proc/sys/net/ipv4/tcp_congestion_control"
# A congestion control that does not pace. Every Linux has it, and lets everyone use it.
_WITHOUT_PACING = b"reno"
# Peers on this machine, besides ::1; the second form is IPv4 on an IPv6 socket.
_LOOPBACK = ("127.", "::ffff:127.")

# <asm-generic/socket.h>; the socket module lacks it.
_SO_RCVBUFFORCE = 33


def tune(sock: socket.socket) -> None:
    """Set TCP_NODELAY and keepalive on a TCP socket, listening or not; ignore other sockets.

    On Linux, accepted sockets inherit these options from their listener.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # macOS calls the idle time TCP_KEEPALIVE.
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
    if idle is not None:
        sock.setsockopt(socket.IPPROTO_TCP, idle, KEEPALIVE_IDLE)
    if hasattr(socket, "TCP_KEEPINTVL"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    if hasattr(socket, "TCP_KEEPCNT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)


def set_receive_buffer(sock: socket.socket, size: int) -> None:
    """Request a receive buffer of `size` bytes in the kernel; the system may permit less.

    On Linux, root is not bound by net.core.rmem_max.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
            return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def stop_local_pacing(sock: socket.socket, peer: Any) -> None:
    """Turn off the pacing of BBR if `peer`, a socket address, is on this machine.

    BBR sends segments by timers. On loopback this has no benefit, and takes an eighth of the CPU of
    a bulk transfer.
    """
    if (
        isinstance(peer, tuple)
        and (peer[0] == "::1" or peer[0].startswith(_LOOPBACK))
        and _system_paces()
    ):
        with contextlib.suppress(OSError):  # forbidden by a sandbox
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _WITHOUT_PACING)


@functools.cache
def _system_paces() -> bool:
    """Whether new connections of this system are paced."""
    if not hasattr(socket, "TCP_CONGESTION"):
        return False
    try:
        with open(_CONGESTION_CONTROL, encoding="ascii") as file:
            return file.read().startswith("bbr")
    except OSError:  # not Linux, or hidden by a sandbox
        return False


def source_address(peer: Any) -> str | None:
    """The local address from which the kernel would send to `peer`, a socket address.

    None without a route, or if `peer` is not an IP address. Sends nothing.
    """
    if not isinstance(peer, tuple):
        return None
    family = socket.AF_INET if len(peer) == 2 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(peer)
            return str(probe.getsockname()[0])
    except OSError:
        return None
