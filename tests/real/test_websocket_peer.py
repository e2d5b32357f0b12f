"""The `websockets` package as the other end, if it is installed: nothing needs it."""

# ruff: noqa: E402  (whether the package is there has to be known first)

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.real.destinations import (
    MB,
    SOCKET_TIMEOUT,
    Destination,
    echo,
    payload,
    read_to_end,
)
from tests.real.tunnels import start_client, start_server
from tests.support.certs import Certs
from tests.support.contexts import bare_context, trusting_context
from tests.support.processes import Process, Processes
from tests.support.programs import require_package

require_package("websockets.sync.server")

from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

PATH = "/chat"
SMUX_OFF = Subprotocol("smux_off")
PIECE = 16 * 1024


# Their client, our server.


@contextlib.contextmanager
def connected(processes: Processes, certs: Certs, destination: str) -> Iterator[ClientConnection]:
    """Their client, connected through our server to `destination`."""
    _, port = start_server(processes, certs, destination, "-wss", "-wss-path", PATH)
    with connect(
        f"wss://{certs.name}:{port}{PATH}",
        sock=socket.create_connection(("127.0.0.1", port), timeout=SOCKET_TIMEOUT),
        ssl=trusting_context(certs.ca),
        subprotocols=[SMUX_OFF],
        open_timeout=SOCKET_TIMEOUT,
        close_timeout=SOCKET_TIMEOUT,
    ) as websocket:
        yield websocket


def receive(websocket: Any, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        message = websocket.recv(timeout=SOCKET_TIMEOUT)
        assert isinstance(message, bytes)
        received += message
    return bytes(received)


def test_their_client_and_our_server(processes: Processes, certs: Certs) -> None:
    with (
        Destination(echo) as destination,
        connected(processes, certs, destination.address) as websocket,
    ):
        assert websocket.subprotocol == SMUX_OFF
        assert websocket.protocol.extensions == []  # it has offered permessage-deflate
        websocket.send(payload(MB))
        assert receive(websocket, MB) == payload(MB)


def test_ping_gets_pong_between_the_pieces_of_a_message(processes: Processes, certs: Certs) -> None:
    data = payload(8 * PIECE)
    pongs: list[threading.Event] = []
    with (
        Destination(echo) as destination,
        connected(processes, certs, destination.address) as websocket,
    ):

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(data), PIECE):
                pongs.append(websocket.ping())
                yield data[start : start + PIECE]

        websocket.send(pieces())
        assert receive(websocket, len(data)) == data
        assert all(pong.wait(SOCKET_TIMEOUT) for pong in pongs)
        assert len(pongs) == 8


def test_the_destination_s_end_is_close_1000(processes: Processes, certs: Certs) -> None:
    def speak(connection: socket.socket) -> None:
        connection.sendall(payload(MB))

    with (
        Destination(speak) as destination,
        connected(processes, certs, destination.address) as websocket,
    ):
        assert receive(websocket, MB) == payload(MB)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(timeout=SOCKET_TIMEOUT)
    assert closed.value.rcvd == Close(1000, "")
    assert closed.value.rcvd_then_sent


@pytest.mark.parametrize(
    ("code", "expected"), [(1000, b""), (1001, b""), (1011, b"reset"), (4000, b"reset")]
)
def test_their_close_code_reaches_the_destination(
    code: int, expected: bytes, processes: Processes, certs: Certs
) -> None:
    """As an ordinary end, or as a reset when they say that something went wrong."""
    ends: list[bytes] = []
    ended = threading.Event()

    def watch(connection: socket.socket) -> None:
        connection.sendall(b"ready")
        try:
            ends.append(read_to_end(connection))
        except ConnectionResetError:
            ends.append(b"reset")
        ended.set()

    with (
        Destination(watch) as destination,
        connected(processes, certs, destination.address) as websocket,
    ):
        assert receive(websocket, 5) == b"ready"
        websocket.close(code)
        assert websocket.close_code == code  # ours is an echo of theirs (RFC 6455, 5.5.1)
        assert ended.wait(SOCKET_TIMEOUT)
    assert ends == [expected]


# Their server, our client.


@contextlib.contextmanager
def serving(certs: Certs, handler: Callable[[ServerConnection], None]) -> Iterator[int]:
    """Their server; the port."""
    context = bare_context(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.cert, certs.key)
    with serve(
        handler, "127.0.0.1", 0, ssl=context, subprotocols=[SMUX_OFF],
        open_timeout=SOCKET_TIMEOUT, close_timeout=SOCKET_TIMEOUT,
    ) as server:  # fmt: skip
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def application(
    processes: Processes, certs: Certs, handler: Callable[[ServerConnection], None]
) -> Iterator[tuple[socket.socket, Process]]:
    """An application's connection through our client to their server, and that client."""
    with serving(certs, handler) as server_port:
        client, port = start_client(processes, certs, server_port, "-wss", "-wss-path", PATH)
        with socket.create_connection(("127.0.0.1", port), timeout=SOCKET_TIMEOUT) as connection:
            yield connection, client


def test_our_client_and_their_server(processes: Processes, certs: Certs) -> None:
    seen: list[Any] = []

    def handler(websocket: ServerConnection) -> None:
        assert websocket.request is not None
        seen.append((websocket.request.path, websocket.subprotocol))
        with contextlib.suppress(ConnectionClosed):
            for message in websocket:
                websocket.send(message)
        seen.append(websocket.close_code)

    with application(processes, certs, handler) as (connection, _):
        connection.sendall(payload(MB))
        connection.shutdown(socket.SHUT_WR)
        assert read_to_end(connection) == payload(MB)
    assert seen == [(PATH, SMUX_OFF), 1000]


def test_their_pings_and_fragments(processes: Processes, certs: Certs) -> None:
    data = payload(8 * PIECE)
    pongs: list[bool] = []

    def handler(websocket: ServerConnection) -> None:
        waiting: list[threading.Event] = []

        def pieces() -> Iterator[bytes]:
            for start in range(0, len(data), PIECE):
                waiting.append(websocket.ping())
                yield data[start : start + PIECE]

        websocket.send(pieces())
        pongs.extend(pong.wait(SOCKET_TIMEOUT) for pong in waiting)

    with application(processes, certs, handler) as (connection, _):
        assert read_to_end(connection) == data
    assert pongs == [True] * 8


@pytest.mark.parametrize("code", [1000, 1001])
def test_their_orderly_close_is_the_application_s_end(
    code: int, processes: Processes, certs: Certs
) -> None:
    def handler(websocket: ServerConnection) -> None:
        websocket.send(b"last words")
        websocket.close(code)

    with application(processes, certs, handler) as (connection, client):
        assert read_to_end(connection) == b"last words"
        connection.close()
        client.stop()
        assert "WARNING" not in client.expect_silence()


def test_their_error_is_a_reset_for_the_application(processes: Processes, certs: Certs) -> None:
    def handler(websocket: ServerConnection) -> None:
        websocket.close(1011, "out of order")

    with (
        application(processes, certs, handler) as (connection, _),
        pytest.raises(ConnectionResetError),
    ):
        connection.recv(1)
