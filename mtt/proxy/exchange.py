"""One request of an HTTP proxy client, and its answer. See `http`."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from mtt.address import host_port, peer_name
from mtt.errors import MttError, StuckError, describe
from mtt.http.date import http_date
from mtt.layers.base import Data, StreamTransport
from mtt.log import logger
from mtt.outcome import Outcome
from mtt.proxy.origin import IdleOrigins, Origin
from mtt.proxy.port import ProxyPort, Route
from mtt.wire import httphop, httpproxy
from mtt.wire.http1 import Reply, Request
from mtt.wire.httphop import Answer
from mtt.wire.httpproxy import ProxyRequest

# Bytes of a request's body that are buffered while the origin is dialled.
MAX_AHEAD = 64 * 1024
# Bytes of a request's body that are kept for a retry.
MAX_REPLAY = 64 * 1024


class Client(Protocol):
    """The client's connection, as an exchange uses it."""

    port: ProxyPort
    near: StreamTransport
    route: Route | None
    full: bool  # whether writing is paused
    sent: int  # bytes sent to origins
    origins: IdleOrigins

    @property
    def has_ended(self) -> bool:
        """Whether the client has sent its last byte."""

    def write(self, data: Data) -> None:
        """Send data to the client."""

    def flow(self) -> None:
        """Pause reading while the exchange is `full`; else resume it."""

    def completed(self, *, closes: bool) -> None:
        """Called when the answer is complete; `closes`: close the client's connection."""

    def cut(self, error: Exception) -> None:
        """Called when the answer was cut."""

    def upgraded(self, far: StreamTransport, rest: bytes, eof: bool) -> None:
        """Called after a 101 answer: relay the client to `far`, which has sent `rest` already."""


class Exchange:
    """A request and its answer.

    Attributes:
        asked, unchunked: see `AnswerReceiver`.
        body: finds the end of the request.
        answered: whether part of the final answer has been passed on.
        origin: the connection that has the request; None before it is open.
    """

    __slots__ = (
        "_client", "_closes", "_is_over", "_replay", "_reused", "_task", "_unsent", "answered",
        "asked", "body", "origin", "unchunked",
    )  # fmt: skip

    def __init__(self, client: Client, asked: ProxyRequest) -> None:
        assert asked.body is not None
        self._client = client
        self.asked = asked
        self.unchunked = asked.request.version < (1, 1)
        self._closes = not httphop.is_persistent(asked.request)  # close the client's connection
        self._unsent = bytearray()  # body received before the connection
        self._reused = False  # the origin's connection was idle
        self._replay: bytearray | None = None  # body for a retry; None: no retry
        self._task: asyncio.Task[Any] | None = None  # opens the connection
        self._is_over = False
        self.body = asked.body
        self.answered = False
        self.origin: Origin | None = None

    @property
    def full(self) -> bool:
        """Whether to pause the client's body."""
        if self.origin is None:
            return len(self._unsent) > MAX_AHEAD
        return self.origin.full and not self.body.over

    def start(self) -> None:
        """Send the request, with the part of its body that `send` has received."""
        asked = self.asked
        key = asked.host, asked.port
        origin = self._client.origins.take(key, idempotent=asked.is_idempotent)
        if origin is None:
            self._spawn_open()
        else:
            self._reused = True
            self._send_request(origin)

    def send(self, data: Data) -> None:
        """Send part of the body."""
        if self.origin is None:
            self._unsent += data
        else:
            self._keep_for_retry(data)
            self._client.sent += len(data)
            self.origin.send(data)

    def client_ended(self) -> None:
        """Called when the client has half-closed or closed its connection: both look the same.

        Half-close the origin's connection, as if there were no proxy. The origin decides whether to
        answer.
        """
        self._closes = True
        if self.origin is not None and self.origin.transport.half_closes():
            self.origin.transport.write_eof()

    def abort(self) -> None:
        """Cut the request."""
        self._is_over = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        if self.origin is not None:
            self.origin.abort()
            self.origin = None

    def time_out(self) -> None:
        """Answer that the origin timed out, or cut the answer that has begun."""
        self.abort()
        if self.answered:
            self._client.cut(StuckError("the answer made no progress"))
        else:
            self._closes = True
            self._refuse(Outcome.TIMED_OUT)

    def _send_request(self, origin: Origin) -> None:
        asked, body = self.asked, bytes(self._unsent)
        self._unsent.clear()
        self.origin = origin
        self._replay = None
        if self._reused and (asked.is_idempotent or not self.body.over):
            self._replay = bytearray()
            self._keep_for_retry(body)
        if self._client.full:
            origin.transport.pause_reading()
        if origin.transport.shares_connection:
            self._client.near.limit_reads()
        self._client.sent += len(asked.head) + len(body)
        origin.ask(self, asked.head + body)
        if self._client.has_ended:
            self.client_ended()
        self._client.flow()

    def _keep_for_retry(self, data: Data) -> None:
        """Keep part of the body for a retry, while one is possible."""
        if self._replay is not None:
            limit = MAX_REPLAY if self.asked.is_idempotent else 0
            if len(self._replay) + len(data) > limit:
                self._replay = None
            else:
                self._replay += data

    # A new connection.

    def _spawn_open(self) -> None:
        self._client.port.tunnels.spawn(self._client.near, self._open())

    async def _open(self) -> None:
        if self._is_over:
            return
        self._task = asyncio.current_task()
        client = self._client
        assert client.route is not None
        try:
            transport = await client.route.open(client.near, self.asked.host, self.asked.port)
        except MttError as error:
            self._task = None
            self._refuse(client.port.outcome(client.near, error))
        except asyncio.CancelledError:
            if self._task is not None:
                raise
            # Cancelled by abort().
        else:
            self._task = None
            self._opened(transport)

    def _opened(self, transport: StreamTransport) -> None:
        self._reused = False
        origin = Origin(transport, (self.asked.host, self.asked.port))
        if origin.usable:
            self._send_request(origin)
        else:
            self.failed(ConnectionError("the connection was closed at once"), silent=True)

    # Called by the origin.

    def origin_changed(self) -> None:
        self._client.flow()

    def interim(self, answer: Answer) -> None:
        if self.asked.request.version >= (1, 1):  # unknown to HTTP/1.0 (RFC 9110, 15.2)
            self._client.write(httphop.forwarded_answer(answer, close=False))

    def switched(self, answer: Answer, rest: bytes, eof: bool) -> None:
        origin, self.origin = self.origin, None
        assert origin is not None
        self._client.write(httphop.forwarded_answer(answer, close=False))
        self._client.upgraded(origin.transport, rest, eof)

    def head_received(self, answer: Answer, data: Data) -> None:
        self._closes = self._must_close() or answer.body.ends_with_connection
        self.answered = True
        unchunked = self.unchunked and answer.body.chunked
        head = httphop.forwarded_answer(answer, close=self._closes, unchunked=unchunked)
        self._client.write(b"".join((head, data)))

    def body_received(self, data: Data) -> None:
        self._client.write(data)

    def completed(self) -> None:
        origin, self.origin = self.origin, None
        assert origin is not None
        if not self.body.over:
            origin.abort()
        elif origin.usable and not self._closes:
            self._client.origins.keep(origin)
        else:
            origin.close()
        self._client.completed(closes=self._closes)

    def failed(self, error: Exception, *, silent: bool) -> None:
        self.origin = None
        name = host_port(self.asked.host, self.asked.port)
        logger.debug("%s: %s: %s", peer_name(self._client.near), name, describe(error))
        if silent and self._reused and self._replay is not None:
            self._unsent, self._replay = self._replay, None
            self._spawn_open()
        elif self.answered:
            self._client.cut(error)
        else:
            self._refuse(Outcome.GENERAL_FAILURE)

    def _must_close(self) -> bool:
        """Whether the client's connection closes with an answer that begins now."""
        # An origin that answers early may never read the rest of the request. Until the end of its
        # answer the request is passed on.
        ending = self._client.port.draining or self._client.has_ended
        return self._closes or not self.body.over or ending

    def _refuse(self, outcome: Outcome) -> None:
        """Answer with the proxy's own error."""
        closes = self._must_close()
        reply = httpproxy.failure(outcome)
        self._client.write(encoded(self.asked.request, reply, close=closes))
        self._client.completed(closes=closes)


def encoded(request: Request, reply: Reply, *, close: bool) -> bytes:
    """The proxy's own answer."""
    return reply.encode(request, date=http_date(), close=close)
