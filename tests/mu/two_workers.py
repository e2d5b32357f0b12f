"""mtt-mu-server with two workers, its operator, and clients."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.mu.controller import Connection
from tests.support.contexts import bare_context
from tests.support.metrics import parse, short
from tests.support.processes import Processes, listening
from tests.support.workers import Echo, check_echo, connect, worker

in_both_modes = pytest.mark.parametrize("mode", [(), ("-mux",)], ids=["wss", "wss+mux"])


class Server:
    """mtt-mu-server with two workers, its operator, and clients of it."""

    def __init__(
        self,
        processes: Processes,
        directory: Path,
        *options: str,
        constants: Mapping[str, object] | None = None,
    ) -> None:
        self._processes = processes
        self._control = directory / "control"
        self.process = processes.command(
            "mtt-mu-server", "-b", "127.0.0.1:0", "-c", f"unix:{self._control}",
            "-workers", "2", "-verbose", *options, constants=constants,
        )  # fmt: skip
        self.port = listening(self.process)[1]

    def connection(self) -> Connection:
        """A new connection to the controller."""
        return Connection(self._control)

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        connection = self.connection()
        with contextlib.closing(connection):
            connection.request(method, path, body)
            return connection.getresponse().read()

    def command(self, opt: int, *args: dict[str, Any], **fields: Any) -> Any:
        body = json.dumps({"opt": opt, "args_bunch": args} | fields).encode()
        return json.loads(self.ask("POST", "/", body))

    def add(self, path: str, echo: Echo, **limits: int) -> None:
        assert self.command(1, {"path": path, "dst": echo.address} | limits) == {"res": 1}

    def statistics(self, path: str) -> dict[str, Any]:
        (found,) = self.command(5, {"path": path})["users"]
        assert isinstance(found, dict)
        return found

    def metrics(self) -> dict[str, float]:
        return short(parse(self.ask("GET", "/metrics").decode()))

    def worker(self, number: int) -> int:
        """The pid of a worker, the latest with this number."""
        return worker(self.process, number)

    def upgrade(self, path: str) -> int:
        """The status that a WebSocket request for `path` gets."""
        # Not create_default_context(), which reads all authorities of the system each time.
        context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with connect(self.port) as raw, context.wrap_socket(raw) as client:
            client.sendall(
                f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            head = client.recv(100)
        return int(head.split(b" ")[1])


def start_client(processes: Processes, server: Server, path: str, *mode: str) -> int:
    """A client of the user of `path`; the port for applications."""
    if mode:  # a session for each, so that any worker may get it
        mode = ("-mux-max-stream", "1", *mode)
    process = processes.command(
        "mtt-client", "-b", "127.0.0.1:0", "-s", f"127.0.0.1:{server.port}", "-sv", "-wss",
        "-wss-path", path, *mode,
    )  # fmt: skip
    return listening(process)[1]


def opened(stack: contextlib.ExitStack, port: int) -> socket.socket | None:
    """A connection to a client, None if that resets it in the first moment."""
    try:
        return stack.enter_context(connect(port))
    except ConnectionResetError:
        return None


def is_open(application: socket.socket | None) -> bool:
    """Whether a tunnel works; False when it was refused or cut."""
    if application is None:
        return False
    try:
        check_echo(application)
    except (AssertionError, ConnectionError):
        application.close()  # or it would keep half a stream
        return False
    return True


def ended(application: socket.socket) -> None:
    """Wait until a tunnel is cut or closed."""
    with contextlib.suppress(ConnectionResetError):
        while application.recv(1000):
            pass
