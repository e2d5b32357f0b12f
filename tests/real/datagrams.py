"""UDP: applications, and servers in threads of the test process."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

from tests.net.fake_dns import holding
from tests.real.destinations import SOCKET_TIMEOUT

Address = tuple[str, int]
Handle = Callable[[socket.socket, bytes, Address], None]


@contextlib.contextmanager
def udp_server(handle: Handle) -> Iterator[int]:
    """Call `handle` with each datagram in a thread; yields the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                data, sender = server.recvfrom(65536)
                if not data:
                    return
                handle(server, data, sender)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.sendto(b"", server.getsockname())
            thread.join()


def application(port: int) -> socket.socket:
    """A UDP socket connected to `port`."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(SOCKET_TIMEOUT)
    sock.connect(("127.0.0.1", port))
    return sock


def echo(server: socket.socket, data: bytes, sender: Address) -> None:
    server.sendto(data, sender)


def names(*addresses: str) -> Handle:
    """A DNS server that knows these addresses for every name."""
    handler = holding(*addresses)

    def answer(server: socket.socket, query: bytes, sender: Address) -> None:
        for message in handler(query, False):
            server.sendto(message, sender)

    return answer
