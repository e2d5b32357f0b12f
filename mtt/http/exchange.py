"""One request that a coroutine answers.

`HttpServer` makes an `Exchange` for each request whose router returns a handler, and runs the
handler in a task. The connection serves nothing else meanwhile:

    handler -> body() -> any other work -> answer() or stream() -> the next request
                                       `-> upgrade() -> a WebSocket

The body is read only while the handler waits for it. Otherwise, reading pauses after one read: a
client cannot fill the memory, and the end of the connection is noticed. Writing waits for the
client to take what was written.

When the connection is lost, the handler is cancelled, unless it `keeps_on`: then its next call here
raises NetworkError.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, Protocol

from mtt.errors import Cause, NetworkError
from mtt.http.limits import MAX_DISCARD, Limits
from mtt.layers.base import StreamTransport
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import HttpError, Reply, Request
from mtt.wire.httpbody import Body
from mtt.wire.upgrade import Upgrade, check_hidden_request

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

Handler = Callable[["Exchange"], Coroutine[Any, Any, None]]


class Connection(Protocol):
    """The part of `HttpServer` that an exchange needs."""

    def encode(
        self, reply: Reply, request: Request | None, *, close: bool, follows: int | None = 0
    ) -> bytes:
        """See `Reply.encode`."""

    def switch(self, upgrade: Upgrade) -> None:
        """Leave the connection, and write the response that switches to WebSocket."""

    def answered(self, exchange: Exchange, error: Exception | None) -> None:
        """Called when the handler has returned, or raised `error`."""


def ends_connection(request: Request) -> bool:
    """Whether an answer that leaves the body of `request` unread ends the connection.

    With Expect the client may or may not send the body after the answer (RFC 9110, 10.1.1).
    """
    unclear = request.chunked or request.first("expect") is not None
    return unclear or request.content_length > MAX_DISCARD


class Exchange:
    """A request that a handler answers, once. `buffer` holds the bytes after its head.

    Attributes:
        keeps_on: the handler continues when the connection is lost.
        begun: part of the answer has been sent.
        closes: the connection ends with the answer; known once that has begun.
        ended: the client sends nothing more.
        full: writing waits until the client takes what was written.
        unread: the rest of the request's body.
    """

    __slots__ = (
        "_buffer", "_connection", "_cut_reason", "_is_lost", "_is_whole", "_limits", "_received",
        "_stops_at_end", "_task", "_waiter", "_written", "begun", "closes", "ended", "full",
        "keeps_on", "request", "transport", "unread",
    )  # fmt: skip

    def __init__(
        self,
        connection: Connection,
        transport: StreamTransport,
        request: Request,
        buffer: HeadBuffer,
        *,
        ended: bool,
        limits: Limits,
    ) -> None:
        self.request = request
        self.transport = transport
        self.keeps_on = self.begun = self.closes = self.full = False
        self.ended = ended
        self.unread = Body(request.content_length, chunked=request.chunked)
        self._connection = connection
        self._buffer = buffer
        self._limits = limits
        self._is_whole = False  # the whole answer has been sent
        self._is_lost = False
        self._stops_at_end = False
        self._cut_reason = ""
        self._received = len(buffer)  # bytes
        self._written = 0
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # For the handler.

    async def body(self, limit: int) -> bytes:
        """Read the body. Raises HttpError (413 from `limit` bytes on) and NetworkError."""
        request, body, buffer = self.request, self.unread, self._buffer
        too_large = HttpError(413, f"body: must be smaller than {limit} bytes")
        if request.content_length >= limit:
            raise too_large
        asks = request.version >= (1, 1) and "100-continue" in request.tokens("expect")
        if asks and not (body.over or buffer):
            self._write(_CONTINUE)  # curl waits a second for this before it sends a large body
        content = bytearray()
        deadline = self._deadline()
        while not body.over:
            if not buffer:
                if self.ended:
                    text = "the connection ended in the middle of a request body"
                    raise NetworkError(text, cause=Cause.EOF)
                self.transport.resume_reading()
                await self._wait(deadline, "no complete request body")
            buffer.drop(body.take(buffer, content))
            if len(content) + body.left >= limit:
                raise too_large
        return bytes(content)

    async def answer(self, reply: Reply, *, close: bool = False) -> None:
        """Answer, and wait until the client has taken it. Raises NetworkError.

        `close`: end the connection with it in any case.
        """
        self._begin_answer(reply, close=close)
        await self._wait_until_taken()
        self._is_whole = True

    async def stream(
        self, reply: Reply, pieces: AsyncGenerator[bytes, None], length: int | None = None
    ) -> None:
        """Answer with the head of `reply` and a body of `pieces`, `length` bytes if known.

        Waits until the client has taken a piece before it asks for the next. Raises NetworkError,
        and what `pieces` raises.
        """
        chunked = length is None and self.request.version >= (1, 1)
        async with aclosing(pieces):
            self._begin_answer(reply, close=length is None and not chunked, follows=length)
            if self.request.method != "HEAD":
                sent = 0
                async for piece in pieces:
                    sent += len(piece)
                    if piece:
                        self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                        await self._wait_until_taken()
                if length not in (None, sent):
                    raise ValueError(f"an answer of {length} bytes has {sent}")
                if chunked:
                    self._write(b"0\r\n\r\n")
        await self._wait_until_taken()
        self._is_whole = True

    def stop_at_end(self) -> None:
        """From now on, cancel the handler when the client ends its direction.

        Raises NetworkError if it has ended already.
        """
        if self._is_lost or self.ended:
            raise self._lost_error()
        self._stops_at_end = True

    def upgrade(self, protocols: tuple[str, ...] = ()) -> Upgrade:
        """Switch to WebSocket. The handler then owns `transport`: it sets its protocol and returns.

        `protocols`: subprotocols of the server, preferred one first. Raises UpgradeRefused, with
        the reply to send, if the request is no opening handshake; raises NetworkError.
        """
        if self._is_lost or self.ended:
            raise self._lost_error()
        early = bool(self._buffer) or self.request.has_body
        upgrade = check_hidden_request(self.request, protocols, early=early)
        self._is_whole = True
        self._connection.switch(upgrade)
        return upgrade

    @property
    def waits(self) -> bool:
        """Whether the exchange waits for the client to send, or to take what was written."""
        return self._waiter is not None

    @property
    def moved(self) -> int:
        """Number of bytes that the client has sent and taken."""
        return self._received + self._written - self.transport.get_write_buffer_size()

    def cut(self, reason: str) -> None:
        """Reset the connection; `reason` is for the log."""
        self._cut_reason = reason
        self.transport.abort()

    # For the connection.

    def start(self, handler: Handler, tasks: set[asyncio.Task[None]] | None) -> None:
        """Run the handler in a task, which is in `tasks` meanwhile."""
        self._task = task = asyncio.get_running_loop().create_task(handler(self))
        if tasks is not None:
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        task.add_done_callback(self._handler_done)

    def received(self, size: int) -> None:
        """Called when `size` bytes have been added to the buffer."""
        self._received += size
        if self.full or self._waiter is None or self._waiter.done():
            self.transport.pause_reading()
        self.wake()

    def end(self) -> None:
        """Called when the client sends nothing more."""
        self.ended = True
        if self._stops_at_end and self._task is not None:
            self._task.cancel()
        self.wake()

    def wake(self) -> None:
        """Resume the handler if it waits for the client."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lose(self) -> NetworkError | None:
        """Called when the connection is lost; returns the error, None if the owner has cut it."""
        task = self._task
        self._is_lost = True
        self.wake()
        if task is None or task.cancelling():
            return None
        if not self.keeps_on:
            task.cancel()
        return self._lost_error()

    # Internals.

    def _handler_done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            if not self._is_lost:
                self.transport.abort()
            return
        error = task.exception()
        if error is None and not self._is_whole:
            error = RuntimeError("the handler did not answer")
        assert error is None or isinstance(error, Exception)
        self._connection.answered(self, error)

    def _begin_answer(self, reply: Reply, *, close: bool, follows: int | None = 0) -> None:
        request = self.request
        blocked = not self.unread.over and ends_connection(request)
        self.closes = close or reply.closes or not request.keep_alive or blocked
        self._write(self._connection.encode(reply, request, close=self.closes, follows=follows))
        self.begun = True

    def _write(self, data: bytes) -> None:
        if self._is_lost:
            raise self._lost_error()
        self._written += len(data)
        self.transport.write(data)

    async def _wait_until_taken(self) -> None:
        deadline = self._deadline()
        while self.full:
            await self._wait(deadline, "the client did not read its answer")

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._limits.body

    async def _wait(self, deadline: float, failure: str) -> None:
        """Wait for the client; `failure` describes what it failed to do by the deadline."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        try:
            async with asyncio.timeout(deadline - loop.time()):
                await self._waiter
        except TimeoutError:
            text = f"{failure} within {self._limits.body:g} s"
            raise NetworkError(text, cause=Cause.TIMEOUT) from None
        finally:
            self._waiter = None
        if self._is_lost:
            raise self._lost_error()

    def _lost_error(self) -> NetworkError:
        reason = self._cut_reason or "the client disconnected before it was answered"
        return NetworkError(reason, cause=Cause.EOF)
