"""UDP sockets of servers, which answer from the address that a datagram was sent to.

A socket on all addresses otherwise answers from the address of the route back. On a machine with
several addresses that may be another one, and a user that checks the source drops the answer.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Any

# The header, and in6_pktinfo (20 bytes) or in_pktinfo (12 bytes), aligned.
_ANCILLARY = 64
# Only from Python 3.14 on the socket module has it.
_IP_PKTINFO = 8

# One buffer for all sockets: its data is copied in the same turn.
_received = memoryview(bytearray(65535))

# Control messages for `sendmsg`: none, or one with the address to send from.
Control = tuple[tuple[int, int, bytes], ...]


class UdpServerSocket:
    """A bound UDP socket, not blocking, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.name = sock.getsockname()
        self._has_info = False
        # Other systems lack it, or have it for one IP version only.
        if sys.platform in ("linux", "android") and self.name[0] in ("::", "0.0.0.0"):
            if sock.family == socket.AF_INET6:
                option = (socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO)
            else:
                option = (socket.IPPROTO_IP, _IP_PKTINFO)
            with contextlib.suppress(OSError):
                sock.setsockopt(*option, 1)
                self._has_info = True

    def receive(self) -> tuple[bytes, Any, Control]:
        """A datagram, its source, and what an answer from the same address needs.

        Raises OSError; BlockingIOError if there is none.
        """
        if not self._has_info:
            size, source = self.sock.recvfrom_into(_received)
            return bytes(_received[:size]), source, ()
        size, control, _, source = self.sock.recvmsg_into([_received], _ANCILLARY)
        return bytes(_received[:size]), source, _from_there(control)

    def send(self, payload: bytes | memoryview, to: Any, control: Control = ()) -> None:
        """Send a datagram. Raises OSError if that is impossible now."""
        if control:
            self.sock.sendmsg([payload], control, 0, to)
        else:
            self.sock.sendto(payload, to)

    def close(self) -> None:
        self.sock.close()


def _from_there(control: list[tuple[int, int, bytes]]) -> Control:
    """The control message that sends from where one was received, by whatever interface."""
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return ((level, kind, data[:16] + bytes(4)),)  # address, interface
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return ((level, kind, bytes(4) + data[4:8] + bytes(4)),)  # interface, address, header's
    return ()
