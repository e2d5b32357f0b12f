"""One request that a coroutine answers.

Theory of operation
-------------------
`HttpServer` makes an `Exchange` for each request whose router names a handler, and runs the handler
in a task. Until that is over, the connection serves nothing else:

    handler -> body() -> any other work -> answer() or stream() -> the next request

The body is read only while the handler waits for it. Whatever else comes waits after one read of
the transport, so a client cannot fill the memory; while nothing comes, the transport is read, so
the end of the connection is noticed. Writing waits for the client to take what was written.

When the connection dies, the handler is cancelled, unless it `keeps_on`: then its next call here
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
from mtt.wire.http1 import Framing, HttpError, Reply, Request
from mtt.wire.httpbody import Body

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(Protocol):
    """What an exchange needs of its connection."""

    def encode(
        self,
        reply: Reply,
        request: Request | None,
        *,
        close: bool,
        framing: Framing | None = None,
    ) -> bytes:
        """See `Reply.encode`."""

    def answered(self, exchange: Exchange, error: Exception | None) -> None:
        """The handler is done with it, or has failed."""


def ends_connection(request: Request) -> bool:
    """Whether an answer that leaves the body of `request` unread ends the connection.

    With Expect the client may or may not send the body after the answer (RFC 9110, 10.1.1).
    """
    unclear = request.chunked or request.first("expect") is not None
    return unclear or request.content_length > MAX_DISCARD


class Exchange:
    """A request that a handler answers, once.

    Args:
        buffer: what came behind the head of the request.
        ended: nothing more will come.

    Attributes:
        keeps_on: whether the handler goes on when the connection dies.
        begun: a part of the answer has been sent.
        closes: the connection ends with the answer; known when that has begun.
    """

    __slots__ = (
        "_body", "_body_begun", "_buffer", "_connection", "_cut_reason", "_ended", "_full",
        "_is_lost", "_is_whole", "_limits", "_reads", "_received", "_task", "_waiter", "_written",
        "begun", "closes", "keeps_on", "request", "transport",
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
        self.keeps_on = False
        self.begun = self.closes = False
        self._is_whole = False  # all of the answer has been sent
        self._connection = connection
        self._buffer = buffer
        self._limits = limits
        self._body = Body(request.content_length, chunked=request.chunked)
        self._body_begun = False
        self._ended = ended
        self._full = False  # the client has to take what was written first
        self._is_lost = False
        self._cut_reason = ""
        self._received = len(buffer)  # bytes
        self._written = 0
        self._reads = False
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # For the handler.

    async def body(self, limit: int) -> bytes:
        """The body of the request.

        Raises HttpError, 413 if it has `limit` bytes or more, and NetworkError.
        """
        request, framing, buffer = self.request, self._body, self._buffer
        if request.content_length >= limit:
            raise _too_large(limit)
        self._body_begun = True
        if not (framing.over or buffer) and _expects_continue(request):
            self._write(_CONTINUE)  # curl waits a second for this before it sends a large body
        content = bytearray()
        try:
            async with asyncio.timeout(self._limits.body):
                while not framing.over:
                    if not buffer:
                        await self._more()
                    buffer.drop(framing.take(buffer, content))
                    if len(content) + framing.left >= limit:
                        raise _too_large(limit)
        except TimeoutError:
            text = f"no complete request body within {self._limits.body:g} s"
            raise NetworkError(text, cause=Cause.TIMEOUT) from None
        return bytes(content)

    async def answer(self, reply: Reply, *, close: bool = False) -> None:
        """Answer with `reply`, and wait until the client has taken it. Raises NetworkError.

        `close`: end the connection with it, even if nothing else asks for that.
        """
        self._begin(reply, None, close=close)
        await self._taken()
        self._is_whole = True

    async def stream(
        self,
        reply: Reply,
        pieces: AsyncGenerator[bytes, None],
        *,
        length: int | None = None,
        close: bool = False,
    ) -> None:
        """Answer with the head of `reply` and a body of `pieces`, each taken by the client before
        the next one is asked for. Raises NetworkError, and what `pieces` raises.

        `length`: of all pieces, if that is known.
        """
        chunked = length is None and self.request.version >= (1, 1)
        framing: Framing = ()
        if length is not None:
            framing = (("Content-Length", str(length)),)
        elif chunked:
            framing = (("Transfer-Encoding", "chunked"),)
        async with aclosing(pieces):
            self._begin(reply, framing, close=close or not framing)
            if self.request.method != "HEAD":
                sent = 0
                async for piece in pieces:
                    sent += len(piece)
                    if piece:
                        self._write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                        await self._taken()
                if length not in (None, sent):
                    raise ValueError(f"{sent} bytes of an answer with {length}")
                if chunked:
                    self._write(b"0\r\n\r\n")
        await self._taken()
        self._is_whole = True

    @property
    def waits(self) -> bool:
        """Whether this end waits for the client to send, or to take what was written."""
        return self._waiter is not None

    @property
    def moved(self) -> int:
        """How many bytes the client has sent and taken."""
        return self._received + self._written - self.transport.get_write_buffer_size()

    def cut(self, reason: str) -> None:
        """Reset the connection, for this reason."""
        self._cut_reason = reason
        self.transport.abort()

    # For the connection.

    def start(
        self,
        handler: Callable[[Exchange], Coroutine[Any, Any, None]],
        tasks: set[asyncio.Task[None]] | None,
    ) -> None:
        """Run the handler, in a task that is one of `tasks` meanwhile."""
        self._task = task = asyncio.get_running_loop().create_task(self._run(handler))
        if tasks is not None:
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        task.add_done_callback(self._over)

    @property
    def body_left(self) -> int:
        """Bytes of the body that are still to come."""
        return 0 if self._body.over else self._body.left

    def received(self, size: int) -> None:
        """So many bytes have come into the buffer."""
        self._received += size
        if not self._reads or self._waiter is None or self._waiter.done():
            self.transport.pause_reading()
        self._wake()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._wake()

    def pause(self) -> None:
        """The client has to take what was written first."""
        self._full = True

    def resume(self) -> None:
        """The client has taken it."""
        self._full = False
        self._wake()

    def lose(self) -> NetworkError | None:
        """The connection is gone; returns the reason, None if the owner has cut it."""
        task = self._task
        self._is_lost = True
        self._wake()
        if task is None or task.cancelling():
            return None
        if not self.keeps_on:
            task.cancel()
        return self._gone()

    # Internals.

    async def _run(self, handler: Callable[[Exchange], Coroutine[Any, Any, None]]) -> None:
        await handler(self)
        if not self._is_whole:
            raise RuntimeError("the handler has given no answer")

    def _over(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            if not self._is_lost:
                self.transport.abort()
            return
        error = task.exception()
        assert error is None or isinstance(error, Exception)
        self._connection.answered(self, error)

    def _begin(self, reply: Reply, framing: Framing | None, *, close: bool) -> None:
        request = self.request
        blocked = not self._body.over and (self._body_begun or ends_connection(request))
        self.closes = close or reply.closes or not request.keep_alive or blocked
        self._write(self._connection.encode(reply, request, close=self.closes, framing=framing))
        self.begun = True

    def _write(self, data: bytes) -> None:
        if self._is_lost:
            raise self._gone()
        self._written += len(data)
        self.transport.write(data)

    async def _more(self) -> None:
        """Wait for something to come into the buffer."""
        if self._ended:
            raise NetworkError("the client ended in the middle of a request", cause=Cause.EOF)
        self.transport.resume_reading()
        self._reads = True
        try:
            await self._wait()
        finally:
            self._reads = False

    async def _taken(self) -> None:
        """Wait until the client has taken enough of what was written."""
        if not self._full:
            return
        try:
            async with asyncio.timeout(self._limits.body):
                while self._full:
                    await self._wait()
        except TimeoutError:
            text = f"the client took nothing of its answer within {self._limits.body:g} s"
            raise NetworkError(text, cause=Cause.TIMEOUT) from None

    async def _wait(self) -> None:
        """Wait for something to happen at the client's end."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._is_lost:
            raise self._gone()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _gone(self) -> NetworkError:
        reason = self._cut_reason or "the client left before it was answered"
        return NetworkError(reason, cause=Cause.EOF)


def _too_large(limit: int) -> HttpError:
    return HttpError(413, f"body: it must be smaller than {limit} bytes")


def _expects_continue(request: Request) -> bool:
    return request.version >= (1, 1) and "100-continue" in request.tokens("expect")
