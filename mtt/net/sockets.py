"""Options of sockets."""

from __future__ import annotations

import socket
from typing import Any

# The Go runtime uses the same 15 s for both, so peers and middleboxes see familiar traffic. With 3
# probes, an idle connection to a dead peer is detected after 15 + 3 x 15 = 60 s.
KEEPALIVE_IDLE = 15
KEEPALIVE_INTERVAL = 15
KEEPALIVE_PROBES = 3

# Connections that the kernel completes before they are accepted. When many clients reconnect at
# once, those that do not fit are delayed by 1 s (a lost SYN). The kernel caps this at somaxconn.
BACKLOG = 1024


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
    """Ask for `size` bytes of the kernel's receive buffer, and get what the system permits."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


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
