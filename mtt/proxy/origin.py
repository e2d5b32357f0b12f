"""Connections to origin servers: parsing of answers, and reuse while idle."""

from __future__ import annotations

import asyncio
from typing import Protocol

from mtt.errors import PeerError
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.parked import Parked
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import HttpError
from mtt.wire.httpbody import Body
from mtt.wire.httphop import Answer, parse_answer
from mtt.wire.httpproxy import ProxyRequest

# Idle timeout, seconds: the origin closes soon after (nginx: 75 s), and each idle connection
# occupies a stream. An origin's own timeout (Keep-Alive: timeout=5) applies if shorter, minus a
# margin for the request's way.
KEEP_TIME = 60.0
KEEP_MARGIN = 1.0
# An origin that has kept a connection open this long after an answer, seconds, is known to keep it.
# Through a tunnel to a server without half-close, an end arrives up to 1 s late.
PROOF_TIME = 1.5
# Idle connections per client; each is a stream of the tunnel.
MAX_IDLE = 4


class AnswerReceiver(Protocol):
    """A request, and the callbacks of its origin."""

    asked: ProxyRequest
    unchunked: bool  # remove the framing of chunks from the answer

    def interim(self, answer: Answer) -> None:
        """Called with a 1xx response; another one follows."""

    def switched(self, answer: Answer, rest: bytes, eof: bool) -> None:
        """Called with 101; `rest` begins the new protocol. The receiver owns the transport."""

    def head_received(self, answer: Answer, data: Data) -> None:
        """Called with the head of the answer and the first part of its body."""

    def body_received(self, data: Data) -> None:
        """Called with a further part of the body."""

    def completed(self) -> None:
        """Called when the answer is complete."""

    def failed(self, error: Exception, *, silent: bool) -> None:
        """Called when the answer stays incomplete; `silent`: not a byte of it has arrived."""

    def origin_changed(self) -> None:
        """Called when `full` changes."""


class Origin(StreamProtocol):
    """Protocol of a connection to an origin server.

    Args:
        transport: the connection, parked. It is not usable if it has ended or sent early data.
        key: host and port.

    Attributes:
        eof: whether the origin has half-closed.
        full: whether writing is paused.
        usable: whether the connection may carry another request.
    """

    borrows = True

    __slots__ = (
        "_answer", "_answer_begun", "_answers", "_buffer", "_idle_since", "_keep_time", "_lost",
        "_proven", "_receiver", "_takes_views", "eof", "full", "key", "transport", "usable",
    )  # fmt: skip

    def __init__(self, transport: StreamTransport, key: tuple[str, int]) -> None:
        self.transport = transport
        self.key = key
        self.eof = False
        self.full = False
        self.usable = not transport.is_closing()
        self._lost = False
        self._receiver: AnswerReceiver | None = None
        self._answer_begun = False  # a byte of the answer has arrived
        self._answers = 0  # number of complete answers
        self._buffer = HeadBuffer()  # an incomplete head
        self._answer: Answer | None = None  # the answer whose body is being received
        self._idle_since = 0.0
        self._keep_time = KEEP_TIME
        self._proven = False
        self._takes_views = transport.borrows
        held = transport.get_protocol()
        transport.set_protocol(self)
        transport.resume_reading()
        if isinstance(held, Parked) and (held.early or held.eof):
            self.eof = held.eof
            self.abort()

    # Requests.

    def ask(self, receiver: AnswerReceiver, data: bytes) -> None:
        """Send a request, or its beginning, and report the answer to `receiver`."""
        self._receiver = receiver
        self._answer_begun = False
        self.transport.write(data)

    def send(self, data: Data) -> None:
        """Send more of the request's body."""
        self.transport.write(data if self._takes_views else bytes(data))

    def is_persistent(self, now: float) -> bool:
        """Whether the origin is known to keep connections open.

        A request that must not be retried needs such a connection. If an idle connection ends while
        the request is in flight, it is unknown whether the origin has processed the request.
        """
        return self._proven or self._answers > 1 or now - self._idle_since >= PROOF_TIME

    def is_stale(self, now: float) -> bool:
        """Whether the idle timeout has passed."""
        return now - self._idle_since >= self._keep_time

    def close(self) -> None:
        """Deliver written data and close the connection."""
        self._detach()
        self.transport.close()

    def abort(self) -> None:
        """Abort the connection, so that an incomplete request does not look complete."""
        self._detach()
        self.transport.abort()

    def _detach(self) -> None:
        self.usable = False
        self._receiver = None
        self._buffer.clear()

    # Protocol of the transport.

    def data_received(self, data: Data) -> None:
        self._answer_begun = True
        if self._answer is not None:
            self._take(self._answer, data)
        elif self._receiver is not None:
            self._buffer += data
            self._read_heads(self._receiver)
        elif self.usable:  # an unsolicited answer
            self.abort()

    def eof_received(self) -> bool:
        self.eof = True
        self.usable = False
        receiver, answer = self._receiver, self._answer
        if receiver is None:
            self.close()
        elif answer is not None and answer.body.ends_with_connection:
            self._complete(receiver)
        else:
            where = "in the middle of" if answer is not None or self._buffer else "without"
            self._fail(ConnectionError(f"the connection was closed {where} an answer"))
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self.usable = False
        if self._receiver is not None:
            self._fail(exc or ConnectionError("the connection was closed without an end"))

    def pause_writing(self) -> None:
        self.full = True
        if self._receiver is not None:
            self._receiver.origin_changed()

    def resume_writing(self) -> None:
        self.full = False
        if self._receiver is not None:
            self._receiver.origin_changed()

    # Answers.

    def _read_heads(self, receiver: AnswerReceiver) -> None:
        try:
            while self._receiver is receiver and self._buffer:
                end = self._buffer.head_end()
                if end < 0:
                    return
                method = receiver.asked.request.method
                answer = parse_answer(self._buffer.take(end), method)
                if answer.interim:
                    receiver.interim(answer)
                    continue
                self._begin(receiver, answer)
                return
        except HttpError as error:
            self._fail(_bad_answer(error))

    def _begin(self, receiver: AnswerReceiver, answer: Answer) -> None:
        rest = self._buffer.take(len(self._buffer))
        if answer.status == 101:
            if not receiver.asked.upgrade:
                raise HttpError(502, "101 without an upgrade request")
            self._detach()
            receiver.switched(answer, rest, self.eof)
            return
        self._answer = answer
        size, data = _part(receiver, answer.body, rest)
        receiver.head_received(answer, data)
        self._check_end(receiver, answer, more=size < len(rest))

    def _take(self, answer: Answer, data: Data) -> None:
        receiver = self._receiver
        if receiver is None:
            return
        try:
            size, part = _part(receiver, answer.body, data)
        except HttpError as error:
            self._fail(_bad_answer(error))
            return
        receiver.body_received(part)
        self._check_end(receiver, answer, more=size < len(data))

    def _check_end(self, receiver: AnswerReceiver, answer: Answer, *, more: bool) -> None:
        """Complete the answer if its body is complete; `more`: other bytes follow."""
        if not answer.body.over or self._receiver is not receiver:
            return
        if more or not answer.reusable:
            self.usable = False
        else:
            self._proven = self._proven or answer.says_so
            if answer.keep_time is not None:
                self._keep_time = min(KEEP_TIME, answer.keep_time - KEEP_MARGIN)
        self._complete(receiver)

    def _complete(self, receiver: AnswerReceiver) -> None:
        self._receiver = self._answer = None
        self._answers += 1
        self._idle_since = asyncio.get_running_loop().time()
        receiver.completed()

    def _fail(self, error: Exception) -> None:
        receiver = self._receiver
        self._detach()
        self._answer = None
        if not self._lost:
            self.transport.abort()
        if receiver is not None:
            receiver.failed(error, silent=not self._answer_begun)


def _part(receiver: AnswerReceiver, body: Body, data: Data) -> tuple[int, Data]:
    """How much of `data` belongs to the body, and the part to pass on."""
    if receiver.unchunked and body.chunked:
        content = bytearray()
        return body.take(data, content), bytes(content)
    size = body.take(data)
    return size, data if size == len(data) else data[:size]


def _bad_answer(error: HttpError) -> PeerError:
    return PeerError(f"the origin server's answer: {error.reason}", cause=error.cause)


class IdleOrigins:
    """The idle origin connections of one client.

    Clients do not share them: an origin may attach a login to a connection (NTLM).
    """

    __slots__ = ("_origins",)

    def __init__(self) -> None:
        self._origins: list[Origin] = []  # oldest first

    def take(self, key: tuple[str, int], *, idempotent: bool) -> Origin | None:
        """Take a connection to `key` for a request; None if there is none."""
        self.drop_stale()
        now = asyncio.get_running_loop().time()
        for origin in reversed(self._origins):
            if origin.key == key and (idempotent or origin.is_persistent(now)):
                self._origins.remove(origin)
                return origin
        return None

    def keep(self, origin: Origin) -> None:
        """Keep a connection for a later request."""
        origin.transport.resume_reading()  # only a reader notices the end
        self._origins.append(origin)
        if len(self._origins) > MAX_IDLE:
            self._origins.pop(0).close()

    def drop_stale(self) -> None:
        """Close connections past their idle timeout."""
        now = asyncio.get_running_loop().time()
        for origin in self._origins:
            if origin.usable and origin.is_stale(now):
                origin.close()
        self._origins = [origin for origin in self._origins if origin.usable]

    def close(self) -> None:
        """Close all connections."""
        for origin in self._origins:
            if origin.usable:
                origin.close()
        self._origins.clear()
