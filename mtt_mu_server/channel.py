"""One connection to the controller as a coroutine sees it: HTTP requests out of a transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mtt.errors import NetworkError
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.holding import hand_over
from mtt.wire.http1 import MAX_HEAD, HttpError, Request, find_head_end, parse_request

# What may wait for a coroutine that is busy. Another read's worth can come on top.
BACKLOG = 64 * 1024

# A chunk's size line, or a trailer's. Nobody uses what may stand there beside the size.
MAX_LINE = 1024
MAX_TRAILERS = 64


class BodyTooLargeError(Exception):
    """The body has the limit's size, or more."""


class Channel(StreamProtocol):
    """The protocol of a connection whose requests are awaited one after the other.

    Args:
        transport: taken over.
        on_lost: called when the connection is gone.
    """

    def __init__(self, transport: asyncio.Transport, on_lost: Callable[[], None]) -> None:
        self.transport = transport
        self._on_lost = on_lost
        self.ended = False  # nothing more will come
        self.lost = False  # nor can anything be sent
        self._buffer = bytearray()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._full = False
        hand_over(transport, self)

    # Awaited.

    async def begun(self) -> bool:
        """Wait for the first byte of a request; False if the client ends instead."""
        return bool(self._buffer) or await self._more()

    async def head(self) -> Request:
        """The head of the next request. Raises HttpError and NetworkError."""
        scanned = 0
        while (end := find_head_end(self._buffer, scanned)) < 0:
            scanned = len(self._buffer)
            if scanned > MAX_HEAD:
                raise HttpError(431, f"the request head is larger than {MAX_HEAD} bytes")
            await self._need()
        return parse_request(bytes(self._taken(end)))

    async def body(self, request: Request, limit: int) -> bytes:
        """The body of the request whose head has just been read.

        Raises BodyTooLargeError if it has `limit` bytes or more, HttpError and NetworkError.
        """
        if request.content_length >= limit:
            raise BodyTooLargeError
        if request.has_body and not self._buffer and request.first("expect") is not None:
            # curl waits a second for this before it sends a large body (RFC 9110, 10.1.1).
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.chunked:
            return await self._chunks(limit)
        return bytes(await self._exactly(request.content_length))

    async def sent(self) -> None:
        """Wait until the client takes what was written. Raises NetworkError."""
        while self._full and not self.lost:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer
        if self.lost:
            raise NetworkError("the client is gone")

    async def _chunks(self, limit: int) -> bytes:
        """A chunked body (RFC 9112, 7.1)."""
        body = bytearray()
        while size := self._chunk_size(await self._line()):
            if len(body) + size >= limit:
                raise BodyTooLargeError
            body += await self._exactly(size)
            if await self._line():
                raise HttpError(400, "malformed chunk")
        for _ in range(MAX_TRAILERS):
            if not await self._line():
                return bytes(body)
        raise HttpError(431, "too many trailers")

    @staticmethod
    def _chunk_size(line: bytes) -> int:
        digits = line.partition(b";")[0].strip(b" \t")
        if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
            raise HttpError(400, "malformed chunk size")
        return int(digits, 16)

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n", 0, MAX_LINE)) < 0:
            if len(self._buffer) >= MAX_LINE:
                raise HttpError(400, "malformed chunk")
            await self._need()
        return bytes(self._taken(end + 1)).rstrip(b"\r\n")

    async def _exactly(self, size: int) -> bytearray:
        while len(self._buffer) < size:
            await self._need()
        return self._taken(size)

    def _taken(self, size: int) -> bytearray:
        taken = self._buffer[:size]
        del self._buffer[:size]
        return taken

    async def _need(self) -> None:
        if not await self._more():
            raise NetworkError("the client ended in the middle of a request")

    async def _more(self) -> bool:
        """Wait for more data; False if there will be none."""
        if self.ended:
            return False
        self.transport.resume_reading()
        size = len(self._buffer)
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None
        return len(self._buffer) > size

    # The protocol of the transport.

    def data_received(self, data: Data) -> None:
        self._buffer += data
        if self._reader is None and len(self._buffer) >= BACKLOG:
            self.transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> bool:
        self.ended = True
        _wake(self._reader)
        return True  # an answer may still be due

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = self.lost = True
        _wake(self._reader)
        _wake(self._writer)
        self._on_lost()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        _wake(self._writer)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
