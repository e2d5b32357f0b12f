"""Messages between two processes of a service over a socket: JSON lists, one per line."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

from mtt.errors import describe
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.tcp import SocketTransport
from mtt.log import logger

# Bytes. Senders split larger messages, so a longer line is not from this program.
MAX_MESSAGE = 16 * 1024 * 1024
# Unsent bytes at which the other process counts as hung.
MAX_BACKLOG = 64 * 1024 * 1024
# Seconds that the other process has to read the final messages.
CLOSE_TIME = 1.0

Message = list[Any]


def encode(*message: Any) -> bytes:
    """The encoded message."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


class Link(StreamProtocol):
    """One side of the connection, open from `connect()` to `close()`.

    `handle` is called with every message; `lost` once, when the other process is gone or sends an
    invalid message.
    """

    def __init__(self, handle: Callable[[Message], object], lost: Callable[[], object]) -> None:
        self._handle = handle
        self._lost = lost
        self._transport: StreamTransport | None = None
        self._buffer = b""
        self._room: asyncio.Future[None] | None = None  # set while writing is paused
        self._over: asyncio.Future[None] | None = None  # set while closing

    def connect(self, sock: socket.socket) -> None:
        """Take over `sock` and use it in the running loop."""
        sock.setblocking(False)
        SocketTransport(sock, self)

    def send(self, *message: Any) -> None:
        """Send a message; drops it if the other process is gone."""
        self.send_encoded(encode(*message))

    def send_encoded(self, data: bytes) -> None:
        """Send a message encoded by `encode()`."""
        if self._transport is not None:
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > MAX_BACKLOG:
                self.abort()

    async def drained(self) -> None:
        """Wait until the other process has read most messages, or is gone."""
        if self._room is not None:
            await asyncio.shield(self._room)

    async def close(self) -> None:
        """Close after sending what is buffered, waiting at most CLOSE_TIME."""
        if self._transport is not None:
            self._over = asyncio.get_running_loop().create_future()
            self._transport.close()
            await asyncio.wait([self._over], timeout=CLOSE_TIME)
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: Data) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            for line in lines:
                self._handle(json.loads(line))
            if len(self._buffer) > MAX_MESSAGE:
                raise ValueError("a message is too long")
        except Exception as error:
            logger.error("invalid message from another process: %s", describe(error))
            logger.debug("where it happened:", exc_info=True)
            self.abort()

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        if self._over is not None:
            self._over.set_result(None)
        self._lost()
