"""One request of a client of the HTTP proxy, and the answer to it. See `http`."""

from __future__ import annotations

from typing import Protocol

from mtt.address import host_port
from mtt.errors import StuckError, describe
from mtt.http.date import http_date
from mtt.layers.base import Data, StreamTransport
from mtt.log import logger
from mtt.outcome import Outcome
from mtt.proxy.origin import IdleOrigins, Origin
from mtt.wire import httphop, httpproxy
from mtt.wire.http1 import Reply, Request
from mtt.wire.httphop import Answer
from mtt.wire.httpproxy import ProxyRequest

# What may wait here of a request's body while the origin is dialled.
MAX_AHEAD = 64 * 1024
# Of a body that may have to be sent again.
MAX_REPLAY = 64 * 1024


class Client(Protocol):
    """What an exchange needs of the client's connection."""

    full: bool  # it takes nothing more for now
    sent: int  # bytes for origins
    origins: IdleOrigins

    @property
    def has_ended(self) -> bool:
        """Whether the client sends nothing more."""

    @property
    def is_ending(self) -> bool:
        """Whether no further request will be served."""

    @property
    def name(self) -> str:
        """For logs."""

    def write(self, data: Data) -> None:
        """Send something to the client."""

    def open(self, host: str, port: int) -> None:
        """Open a connection, and tell the exchange by `opened` or `not_opened`."""

    def attached(self, transport: StreamTransport) -> None:
        """The request goes there."""

    def flow(self) -> None:
        """Stop reading while the exchange is `full`, or go on."""

    def completed(self, *, closes: bool) -> None:
        """The answer is complete; whether the client's connection ends with it."""

    def cut(self, error: Exception) -> None:
        """The answer was cut."""

    def upgraded(self, far: StreamTransport, rest: bytes, eof: bool) -> None:
        """The answer was 101: join the client to `far`, from which `rest` has come already."""


class Exchange:
    """A request and its answer.

    Attributes:
        body: finds the end of the request.
        answered: a part of the final answer has been passed on.
        origin: the connection that is asked, if it is there.
    """

    __slots__ = (
        "_asked", "_client", "_closes", "_replay", "_reused", "_unsent", "answered", "body",
        "origin",
    )  # fmt: skip

    def __init__(self, client: Client, asked: ProxyRequest) -> None:
        assert asked.body is not None
        self._client = client
        self._asked = asked
        self._closes = not httphop.is_persistent(asked.request)  # the client's connection ends
        self._unsent = bytearray()  # of the body, while there is no connection
        self._reused = False  # the origin connection was idle before
        self._replay: bytearray | None = None  # what would be sent again of the body, if it may be
        self.body = asked.body
        self.answered = False
        self.origin: Origin | None = None

    @property
    def full(self) -> bool:
        """Whether no more of the body is wanted for now."""
        if self.origin is None:
            return len(self._unsent) > MAX_AHEAD
        return self.origin.full and not self.body.over

    def start(self) -> None:
        """Send the request, of whose body `send` may have got a part."""
        asked = self._asked
        key = asked.host, asked.port
        origin = self._client.origins.take(key, idempotent=asked.is_idempotent)
        if origin is None:
            self._client.open(*key)
        else:
            self._reused = True
            self._ask(origin)

    def send(self, data: Data) -> None:
        """Send a part of the body."""
        if self.origin is None:
            self._unsent += data
        else:
            self._keep(data)
            self._client.sent += len(data)
            self.origin.send(data)

    def client_ended(self) -> None:
        """The client has half-closed its connection, or closed it: both look the same.

        The origin is told, as it would be without a proxy between them. So it is for the origin to
        decide whether there is still somebody to answer.
        """
        self._closes = True
        if self.origin is not None and self.origin.transport.half_closes():
            self.origin.transport.write_eof()

    def abort(self) -> None:
        """Cut the request."""
        if self.origin is not None:
            self.origin.abort()
            self.origin = None

    def give_up(self) -> None:
        """Answer, if that is possible, that the origin takes too long."""
        self.abort()
        if self.answered:
            self._client.cut(StuckError("the answer does not get on"))
        else:
            self._closes = True
            self._refuse(Outcome.TIMED_OUT)

    def _ask(self, origin: Origin) -> None:
        asked, body = self._asked, bytes(self._unsent)
        self._unsent.clear()
        self.origin = origin
        self._replay = None
        if self._reused and (asked.is_idempotent or not self.body.over):
            self._replay = bytearray()
            self._keep(body)
        if self._client.full:
            origin.transport.pause_reading()
        self._client.attached(origin.transport)
        self._client.sent += len(asked.head) + len(body)
        origin.ask(
            self,
            asked.request.method,
            asked.head + body,
            upgrade=asked.upgrade,
            unchunked=asked.request.version < (1, 1),
        )
        if self._client.has_ended:
            self.client_ended()
        self._client.flow()

    def _keep(self, data: Data) -> None:
        """Keep a part of the body for as long as it may have to be sent again."""
        if self._replay is not None:
            limit = MAX_REPLAY if self._asked.is_idempotent else 0
            if len(self._replay) + len(data) > limit:
                self._replay = None
            else:
                self._replay += data

    # The connection that was asked for.

    def opened(self, transport: StreamTransport) -> None:
        """It is there, held."""
        self._reused = False
        origin = Origin(transport, (self._asked.host, self._asked.port))
        origin.take_over()
        if origin.usable:
            self._ask(origin)
        else:
            self.failed(ConnectionError("the connection was closed at once"), silent=True)

    def not_opened(self, outcome: Outcome) -> None:
        """It could not be opened."""
        self._refuse(outcome)

    # Told by the origin.

    def origin_changed(self) -> None:
        self._client.flow()

    def interim(self, answer: Answer) -> None:
        if self._asked.request.version >= (1, 1):  # unknown to HTTP/1.0 (RFC 9110, 15.2)
            self._client.write(httphop.forwarded_answer(answer, close=False))

    def switched(self, answer: Answer, rest: bytes, eof: bool) -> None:
        origin, self.origin = self.origin, None
        assert origin is not None
        self._client.write(httphop.forwarded_answer(answer, close=False))
        self._client.upgraded(origin.transport, rest, eof)

    def answered_with(self, answer: Answer, data: Data) -> None:
        unchunked = answer.body.chunked and self._asked.request.version < (1, 1)
        # An origin that answers early may never read the rest of the request. It is passed on as
        # long as the answer lasts.
        self._closes = (
            self._closes
            or answer.body.ends_with_connection
            or not self.body.over
            or self._client.is_ending
        )
        self.answered = True
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
        name = host_port(self._asked.host, self._asked.port)
        logger.debug("%s: %s: %s", self._client.name, name, describe(error))
        if silent and self._reused and self._replay is not None:
            self._unsent, self._replay = self._replay, None
            self._client.open(self._asked.host, self._asked.port)
        elif self.answered:
            self._client.cut(error)
        else:
            self._refuse(Outcome.GENERAL_FAILURE)

    def _refuse(self, outcome: Outcome) -> None:
        """Answer that the origin does not."""
        closes = self._closes or not self.body.over or self._client.is_ending
        reply = httpproxy.failure(outcome)
        self._client.write(encoded(self._asked.request, reply, close=closes))
        self._client.completed(closes=closes)


def encoded(request: Request, reply: Reply, *, close: bool) -> bytes:
    """An answer of the proxy itself."""
    return reply.encode(request, date=http_date(), close=close)
