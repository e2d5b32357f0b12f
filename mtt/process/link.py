"""Messages between two processes of ours over a socket: lists that JSON can say, one on a line."""

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

# Bytes. Whoever has more to say splits it; a line beyond this is none of ours.
MAX_MESSAGE = 16 * 1024 * 1024
# Bytes that may wait for the other end. When it is so far behind it hangs.
MAX_BACKLOG = 64 * 1024 * 1024
# Seconds for the other end to hear the last words.
CLOSE_TIME = 1.0

Message = list[Any]


def encode(*message: Any) -> bytes:
    """A message as it is sent."""
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


class Link(StreamProtocol):
    """One end, which speaks from `connect()` to `close()`.

    Args:
        hear: called with every message.
        lost: called once when the other end is gone, or does not speak our language.
    """

    def __init__(self, hear: Callable[[Message], object], lost: Callable[[], object]) -> None:
        self._hear = hear
        self._lost = lost
        self._transport: StreamTransport | None = None
        self._buffer = b""
        self._room: asyncio.Future[None] | None = None  # while the other end is behind
        self._over: asyncio.Future[None] | None = None  # while we close

    def connect(self, sock: socket.socket) -> None:
        """Speak over `sock`, ours from now on, with the running loop."""
        sock.setblocking(False)
        SocketTransport(sock, self)

    def say(self, *message: Any) -> None:
        """Send a message; one that is too late for the other end is dropped."""
        self.send(encode(*message))

    def send(self, data: bytes) -> None:
        """Send a message as `encode()` made it."""
        if self._transport is not None:
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > MAX_BACKLOG:
                self.abort()

    async def drained(self) -> None:
        """Wait until the other end has taken most of what was said, or is gone."""
        if self._room is not None:
            await asyncio.shield(self._room)

    async def close(self) -> None:
        """Say no more, and wait until what was said has gone out, for CLOSE_TIME at most."""
        if self._transport is not None:
            self._over = asyncio.get_running_loop().create_future()
            self._transport.close()
            await asyncio.wait([self._over], timeout=CLOSE_TIME)
            self.abort()

    def abort(self) -> None:
        """Say no more."""
        if self._transport is not None:
            self._transport.abort()

    # The protocol.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: Data) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        try:
            for line in lines:
                self._hear(json.loads(line))
            if len(self._buffer) > MAX_MESSAGE:
                raise ValueError("a message is too long")
        except Exception as error:
            logger.error("another process of ours is not understood: %s", describe(error))
            logger.debug("where it happened:", exc_info=True)
            self.abort()

    def eof_received(self) -> bool:
        return False

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
