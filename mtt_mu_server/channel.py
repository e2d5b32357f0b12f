"""One connection to the controller as a coroutine sees it: HTTP requests out of a transport."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mtt.errors import NetworkError
from mtt.layers import linger
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.holding import hand_over
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import Request, parse_request
from mtt.wire.httpbody import Body


class BodyTooLargeError(Exception):
    """The body has the limit's size, or more."""


class Channel(StreamProtocol):
    """The protocol of a connection whose requests are awaited one after the other.

    It is read only while data are awaited, so at most one read is kept beside them.

    Args:
        transport: taken over.
        on_lost: called when the connection is gone.
    """

    def __init__(self, transport: asyncio.Transport, on_lost: Callable[[], None]) -> None:
        self.transport = transport
        self._on_lost = on_lost
        self.ended = False  # nothing more will come
        self.lost = False  # nor can anything be sent
        self._cut_reason = ""
        self._received = self._written = 0  # bytes
        self._buffer = HeadBuffer()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._full = False
        hand_over(transport, self)

    @property
    def waits(self) -> bool:
        """Whether this end waits for the client to send, or to take what was written."""
        return self._reader is not None or self._writer is not None

    @property
    def moved(self) -> int:
        """How many bytes the client has sent and taken."""
        return self._received + self._written - self.transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        """Send `data`; see `sent`."""
        self._written += len(data)
        self.transport.write(data)

    def cut(self, reason: str) -> None:
        """Reset the connection: what is awaited fails for this reason."""
        self._cut_reason = reason
        linger.reset(self.transport)

    # Awaited.

    async def begun(self) -> bool:
        """Wait for the first byte of a request; False if the client ends instead."""
        return bool(self._buffer) or await self._more()

    async def head(self) -> Request:
        """The head of the next request. Raises HttpError and NetworkError."""
        while (end := self._buffer.head_end(of_request=True)) < 0:
            await self._need()
        return parse_request(self._buffer.take(end))

    async def body(self, request: Request, limit: int) -> bytes:
        """The body of the request whose head has just been read.

        Raises BodyTooLargeError if it has `limit` bytes or more, HttpError and NetworkError.
        """
        if request.content_length >= limit:
            raise BodyTooLargeError
        if request.has_body and not self._buffer and request.first("expect") is not None:
            # curl waits a second for this before it sends a large body (RFC 9110, 10.1.1).
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray()
        framing = Body(request.content_length, chunked=request.chunked)
        while not framing.over:
            if not self._buffer:
                await self._need()
            self._buffer.drop(framing.take(self._buffer, body))
            if len(body) + framing.left >= limit:
                raise BodyTooLargeError
        return bytes(body)

    async def sent(self) -> None:
        """Wait until the client takes what was written. Raises NetworkError."""
        while self._full and not self.lost:
            self._writer = asyncio.get_running_loop().create_future()
            try:
                await self._writer
            finally:
                self._writer = None
        if self.lost:
            raise NetworkError(self._cut_reason or "the client is gone")

    async def _need(self) -> None:
        if not await self._more():
            reason = self._cut_reason or "the client ended in the middle of a request"
            raise NetworkError(reason)

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

    @property
    def wants_rest(self) -> bool:
        return False

    def data_received(self, data: Data) -> None:
        self._received += len(data)
        self._buffer += data
        if self._reader is None or self._reader.done():
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
