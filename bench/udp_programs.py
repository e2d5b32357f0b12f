"""The other ends of the UDP row: `python -m bench.udp_programs sink|client|server PORT [CONNECT]`.

`sink` echoes datagrams that begin with `?`, and answers those that begin with `=` with themselves
and the number of all others so far. `client` and `server` are the plainest tunnel for UDP:
datagrams on one TCP connection, each after its length, without TLS, in blocking threads.
"""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable

from bench.processes import LOOPBACK

ECHO, COUNT = b"?", b"="
LARGEST = 65535
# Bytes of the kernel's receive buffers.
BUFFER = 1024 * 1024


def bound(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    sock.bind((LOOPBACK, port))
    return sock


def sink(port: int) -> None:
    sock = bound(port)
    count = 0
    while True:
        data, sender = sock.recvfrom(LARGEST)
        kind = data[:1]
        if kind == ECHO:
            sock.sendto(data, sender)
        elif kind == COUNT:
            sock.sendto(b"%s %d" % (data, count), sender)
        else:
            count += 1


def client(port: int, connect: int) -> None:
    """Datagrams of one application on a connection to the server."""
    sock = bound(port)
    data, application = sock.recvfrom(LARGEST)
    sock.connect(application)
    stream = socket.create_connection((LOOPBACK, connect))
    stream.sendall(len(data).to_bytes(2, "big") + data)
    _both_ways(stream, sock)


def server(port: int, connect: int) -> None:
    """One connection of the client, to the destination."""
    listening = socket.create_server((LOOPBACK, port))
    stream, _ = listening.accept()
    sock = bound(0)
    sock.connect((LOOPBACK, connect))
    _both_ways(stream, sock)


def _both_ways(stream: socket.socket, sock: socket.socket) -> None:
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=_to_stream, args=(sock, stream), daemon=True).start()
    file = stream.makefile("rb")
    while head := file.read(2):
        sock.send(file.read(int.from_bytes(head, "big")))


def _to_stream(sock: socket.socket, stream: socket.socket) -> None:
    while True:
        data = sock.recv(LARGEST)
        stream.sendall(len(data).to_bytes(2, "big") + data)


PROGRAMS: dict[str, Callable[..., None]] = {"sink": sink, "client": client, "server": server}

if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](*map(int, sys.argv[2:]))
