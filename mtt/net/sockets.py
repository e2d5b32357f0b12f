"""Options that every TCP socket of ours gets, whoever made it."""

from __future__ import annotations

import socket

# A NAT or firewall that forgot us is found after idle + interval x probes = 15 + 15 x 9 s at
# worst; the Go runtime uses the same 15 s for both, so peers and middleboxes see what they know.
KEEPALIVE_IDLE = 15
KEEPALIVE_INTERVAL = 15


def tune(sock: socket.socket) -> None:
    """Set TCP_NODELAY and keepalive on a TCP socket, listening ones included; others are left alone.

    On Linux accepted sockets inherit all of these from their listener.
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
