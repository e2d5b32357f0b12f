"""What every tunnel must carry, whatever is between its ends."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.real.destinations import (
    MB,
    SIZE,
    SOCKET_TIMEOUT,
    Destination,
    Receiver,
    Site,
    answer_at_the_end,
    answer_to_a_megabyte,
    digest,
    echo,
    payload,
    read_to_end,
    speak_and_close,
)
from tests.support.processes import run
from tests.support.programs import require_program

# Builds a tunnel to a destination, HOST:PORT, and returns the port of 127.0.0.1 it begins at.
Route = Callable[[str], int]

ROUNDS = 100


@contextlib.contextmanager
def application(route: Route, handle: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """An application's connection through a tunnel to a destination that does `handle`."""
    with Destination(handle) as destination, _connect(route(destination.address)) as connection:
        yield connection


def http(route: Route, directory: Path) -> None:
    with Site() as site:
        http_transfers(f"http://127.0.0.1:{route(site.address)}", directory)


def http_transfers(base: str, directory: Path, *curl_options: str) -> None:
    """Download and upload 20 MB with curl under the URL `base`, both compared byte for byte."""
    curl = (require_program("curl"), "--silent", "--show-error", "--fail", "--max-time", "25")
    sent, received = directory / "sent", directory / "received"
    run(*curl, *curl_options, "--output", received, f"{base}/payload")
    assert received.read_bytes() == payload()
    sent.write_bytes(payload())
    answer = run(*curl, *curl_options, "--data-binary", f"@{sent}", f"{base}/upload")
    assert answer.decode() == f"{SIZE} {digest(payload())}"


def reply_after_the_end(route: Route, _directory: Path) -> None:
    """The application ends its direction before the reply comes, which is complete."""
    _ask(route, answer_to_a_megabyte)


def half_close(route: Route, _directory: Path) -> None:
    """The same with a destination that waits for the end: only some tunnels can do that."""
    _ask(route, answer_at_the_end)


def chatty_upload(route: Route, _directory: Path) -> None:
    """An upload is complete although the destination talks all the time."""
    with Receiver() as destination, _connect(route(destination.address)) as connection:
        connection.sendall(payload())
        connection.shutdown(socket.SHUT_WR)
        assert set(read_to_end(connection)) == set(b".")
        assert destination.upload() == payload()


def destination_speaks_and_closes(route: Route, _directory: Path) -> None:
    with application(route, speak_and_close) as connection:
        assert read_to_end(connection) == payload()


def small_messages(route: Route, _directory: Path) -> None:
    """Requests and replies in turn, each waiting for the one before."""
    with application(route, echo) as connection:
        for number in range(1, ROUNDS + 1):
            message = payload(number)
            connection.sendall(message)
            assert _read(connection, len(message)) == message


CHECKS = {
    "http": http,
    "reply-after-the-end": reply_after_the_end,
    "chatty-upload": chatty_upload,
    "destination-speaks-and-closes": destination_speaks_and_closes,
    "small-messages": small_messages,
}


def _ask(route: Route, handle: Callable[[socket.socket], None]) -> None:
    with application(route, handle) as connection:
        connection.sendall(payload(MB))
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == digest(payload(MB)).encode() + payload(MB)


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SOCKET_TIMEOUT)


def _read(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size and (data := connection.recv(65536)):
        received += data
    return received
