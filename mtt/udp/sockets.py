"""The sockets of flows at the server."""

from __future__ import annotations

import errno
import os
import socket

from mtt.net.accept import first_reserved
from mtt.net.resolve import Address
from mtt.net.sockets import set_receive_buffer
from mtt.udp.flows import RECEIVE_BUFFER


def open_socket(address: Address) -> socket.socket:
    """A socket connected to one address of a destination. Raises OSError."""
    sock = socket.socket(address[0], socket.SOCK_DGRAM)
    try:
        if sock.fileno() >= first_reserved():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        sock.setblocking(False)
        set_receive_buffer(sock, RECEIVE_BUFFER)
        sock.connect(address[1])
    except BaseException:
        sock.close()
        raise
    return sock
