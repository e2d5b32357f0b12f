"""What the tunnels of these tests lead to: servers in threads of the test process.

Plain sockets and the standard library: nothing of this project is on these ends.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import random
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

MB = 1_000_000
SIZE = 20 * MB
PAGE = b"a page\n"
CROWD = 100

# How long one end of a tunnel waits for the other, in seconds; only a broken one uses it up.
SOCKET_TIMEOUT = 20.0


@functools.cache
def payload(size: int = SIZE) -> bytes:
    """Bytes that no layer can compress, or repeat unnoticed."""
    return random.Random(size).randbytes(size)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Site:
    """An HTTP server on a port of 127.0.0.1.

    `GET /payload` gives the payload, `GET /crowd...` the page once CROWD requests are waiting
    for it, any other GET the page at once. POST answers with the size and the digest of what
    came.
    """

    def __init__(self) -> None:
        self._server = _HttpServer(("127.0.0.1", 0), _Handler)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _HttpServer(ThreadingHTTPServer):
    request_queue_size = 2 * CROWD
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.crowd = threading.Barrier(CROWD)

    def handle_error(self, *_args: Any) -> None:
        """Connections that a test cuts off are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # with keep-alive
    wbufsize = -1
    server: _HttpServer

    def do_GET(self) -> None:
        if self.path.startswith("/crowd"):
            self.server.crowd.wait(SOCKET_TIMEOUT)
        self._answer(payload() if self.path == "/payload" else PAGE)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(f"{len(body)} {digest(body)}".encode())

    def handle_expect_100(self) -> bool:
        result = super().handle_expect_100()
        self.wfile.flush()
        return result

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Log nothing."""


class Destination:
    """A TCP server that calls `handle(socket)` for each connection in a thread of its own."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self._handle = handle
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.settimeout(SOCKET_TIMEOUT)
            self._handle(connection)


class Receiver(Destination):
    """Takes one upload; `upload()` is what came.

    It answers every read with one byte at once, as chatty protocols do: a tunnel that closes
    a socket with such an answer unread destroys what that socket has yet to deliver.
    """

    def __init__(self) -> None:
        super().__init__(self._receive)
        self._received = bytearray()
        self._ended = threading.Event()

    def upload(self) -> bytes:
        assert self._ended.wait(SOCKET_TIMEOUT), "the end of the upload never came"
        return bytes(self._received)

    def _receive(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(65536):
                self._received += data
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(b".")
        finally:
            self._ended.set()


def answer_to_a_megabyte(connection: socket.socket) -> None:
    """Read 1 MB, then send its digest and a payload: a protocol whose messages say their size."""
    request = bytearray()
    while len(request) < MB and (data := connection.recv(65536)):
        request += data
    connection.sendall(digest(bytes(request)).encode() + payload(MB))


def answer_at_the_end(connection: socket.socket) -> None:
    """Read up to the end of the request; only then send its digest and a payload."""
    connection.sendall(digest(read_to_end(connection)).encode() + payload(MB))


def speak_and_close(connection: socket.socket) -> None:
    """Send the payload without being asked, and end the connection."""
    connection.sendall(payload())


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def read_to_end(connection: socket.socket) -> bytes:
    return b"".join(iter(functools.partial(connection.recv, 65536), b""))
