"""The connection to an origin server: one answer after the other is found in what it sends."""

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

# A connection that has been idle for so long is closed: the origin will do so soon (nginx: 75 s),
# and each one occupies a stream. What the origin says itself (Keep-Alive: timeout=5) counts, less
# the time that a request needs to get there.
KEEP_TIME = 60.0
KEEP_MARGIN = 1.0
# An origin that has kept a connection for so long after an answer means to keep it. Ends arrive
# late through tunnels to servers without half-close, by up to 1 s.
PROOF_TIME = 1.5
# Idle connections of one client, each of which is a stream of the tunnel.
MAX_IDLE = 4


class Asking(Protocol):
    """What an origin tells of the answer to the request that it was given."""

    def interim(self, answer: Answer) -> None:
        """A 1xx response; another one follows."""

    def switched(self, answer: Answer, rest: bytes, eof: bool) -> None:
        """101: `rest`, and all that follows, is of another protocol. The connection is yours."""

    def answered_with(self, answer: Answer, data: Data) -> None:
        """The head of the answer, and what came of its body with it."""

    def body_received(self, data: Data) -> None:
        """A part of its body."""

    def completed(self) -> None:
        """The answer is complete."""

    def failed(self, error: Exception, *, silent: bool) -> None:
        """There will be no complete answer. `silent`: not a byte of it has come."""

    def origin_changed(self) -> None:
        """The origin has become `full`, or is so no longer."""


class Origin(StreamProtocol):
    """The protocol of a connection to an origin server, which it takes over.

    Args:
        transport: the connection, held.
        key: host and port.
    """

    borrows = True

    __slots__ = (
        "_answer", "_answers", "_asking", "_body", "_buffer", "_heard", "_idle_since", "_keep_time",
        "_lost", "_method", "_proven", "_takes_views", "_unchunked", "_upgrade", "eof",
        "full", "key", "transport", "usable",
    )  # fmt: skip

    def __init__(self, transport: StreamTransport, key: tuple[str, int]) -> None:
        self.transport = transport
        self.key = key
        self.eof = False
        self.full = False  # it takes nothing more for now
        self.usable = not transport.is_closing()  # for one more request
        self._lost = False
        self._asking: Asking | None = None
        self._method = ""
        self._upgrade = self._unchunked = False
        self._heard = False  # a byte of the answer has come
        self._answers = 0  # complete ones
        self._buffer = HeadBuffer()  # an incomplete head
        self._body: Body | None = None
        self._answer: Answer | None = None  # the one whose body is coming
        self._idle_since = 0.0
        self._keep_time = KEEP_TIME
        self._proven = False
        self._takes_views = transport.borrows

    def take_over(self) -> None:
        """Begin to be its protocol. It is not `usable` if it has ended, or spoke first."""
        held = self.transport.get_protocol()
        self.transport.set_protocol(self)
        self.transport.resume_reading()
        if isinstance(held, Parked) and (held.early or held.eof):
            self.eof = held.eof
            self.abort()

    # What is asked of it.

    def ask(
        self, asking: Asking, method: str, data: bytes, *, upgrade: bool, unchunked: bool
    ) -> None:
        """Send a request, or its beginning, and tell `asking` of the answer.

        `upgrade`: it may be 101. `unchunked`: its body is wanted without the framing of chunks.
        """
        self._asking = asking
        self._method = method
        self._upgrade = upgrade
        self._unchunked = unchunked
        self._heard = False
        self.transport.write(data)

    def send(self, data: Data) -> None:
        """Send more of the request's body."""
        self.transport.write(data if self._takes_views else bytes(data))

    def is_persistent(self, now: float) -> bool:
        """Whether the origin is known to keep connections that it has not said it would close.

        A request that cannot be repeated goes on no other: if the end of an idle connection is on
        its way, there is no telling whether the request was taken.
        """
        return self._proven or self._answers > 1 or now - self._idle_since >= PROOF_TIME

    def is_stale(self, now: float) -> bool:
        """Whether it has been idle for too long."""
        return now - self._idle_since >= self._keep_time

    def close(self) -> None:
        """End it; what was sent is delivered."""
        self._let_go()
        self.transport.close()

    def abort(self) -> None:
        """Cut it, so that an incomplete request does not look complete."""
        self._let_go()
        self.transport.abort()

    def _let_go(self) -> None:
        self.usable = False
        self._asking = None
        self._buffer.clear()

    # The protocol of the transport.

    def data_received(self, data: Data) -> None:
        self._heard = True
        if self._body is not None:
            self._take(self._body, data)
        elif self._asking is not None:
            self._buffer += data
            self._read_heads(self._asking)
        elif self.usable:  # an answer that nothing asked for
            self.abort()

    def eof_received(self) -> bool:
        self.eof = True
        self.usable = False
        asking, body = self._asking, self._body
        if asking is None:
            self.close()
        elif body is not None and body.ends_with_connection:
            self._complete(asking)
        else:
            where = "in the middle of" if body is not None or self._buffer else "without"
            self._fail(ConnectionError(f"the connection was closed {where} an answer"))
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self.usable = False
        if self._asking is not None:
            self._fail(exc or ConnectionError("the connection was closed without an end"))

    def pause_writing(self) -> None:
        self.full = True
        if self._asking is not None:
            self._asking.origin_changed()

    def resume_writing(self) -> None:
        self.full = False
        if self._asking is not None:
            self._asking.origin_changed()

    # Answers.

    def _read_heads(self, asking: Asking) -> None:
        try:
            while self._asking is asking and self._buffer:
                end = self._buffer.head_end()
                if end < 0:
                    return
                answer = parse_answer(self._buffer.take(end), self._method)
                if answer.interim:
                    asking.interim(answer)
                    continue
                self._begin(asking, answer)
                return
        except HttpError as error:
            self._fail(_bad_answer(error))

    def _begin(self, asking: Asking, answer: Answer) -> None:
        rest = self._buffer.take(len(self._buffer))
        if answer.status == 101:
            if not self._upgrade:
                raise HttpError(502, "101 to a request for no upgrade")
            self._let_go()
            asking.switched(answer, rest, self.eof)
            return
        self._answer = answer
        self._body = answer.body
        size, data = self._part(answer.body, rest)
        asking.answered_with(answer, data)
        self._look_for_end(asking, answer.body, more=size < len(rest))

    def _take(self, body: Body, data: Data) -> None:
        asking = self._asking
        if asking is None:
            return
        try:
            size, part = self._part(body, data)
        except HttpError as error:
            self._fail(_bad_answer(error))
            return
        asking.body_received(part)
        self._look_for_end(asking, body, more=size < len(data))

    def _part(self, body: Body, data: Data) -> tuple[int, Data]:
        """How much of `data` belongs to the body, and what is passed on of that."""
        if self._unchunked and body.chunked:
            content = bytearray()
            return body.take(data, content), bytes(content)
        size = body.take(data)
        return size, data if size == len(data) else data[:size]

    def _look_for_end(self, asking: Asking, body: Body, *, more: bool) -> None:
        """Complete the answer if its body is over; `more`: other bytes follow."""
        if not body.over or self._asking is not asking:
            return
        answer = self._answer
        if answer is None or more or not answer.reusable:
            self.usable = False
        else:
            self._proven = self._proven or answer.says_so
            if answer.keep_time is not None:
                self._keep_time = min(KEEP_TIME, answer.keep_time - KEEP_MARGIN)
        self._complete(asking)

    def _complete(self, asking: Asking) -> None:
        self._asking = self._body = self._answer = None
        self._answers += 1
        self._idle_since = asyncio.get_running_loop().time()
        asking.completed()

    def _fail(self, error: Exception) -> None:
        asking = self._asking
        self._let_go()
        self._body = self._answer = None
        if not self._lost:
            self.transport.abort()
        if asking is not None:
            asking.failed(error, silent=not self._heard)


def _bad_answer(error: HttpError) -> PeerError:
    return PeerError(f"the origin server's answer: {error.reason}", cause=error.cause)


class IdleOrigins:
    """The idle connections of one client. Not of all clients: what a server has attached to a
    connection, such as a login (NTLM), must not become another client's."""

    __slots__ = ("_origins",)

    def __init__(self) -> None:
        self._origins: list[Origin] = []  # the newest last

    def __len__(self) -> int:
        return len(self._origins)

    def take(self, key: tuple[str, int], *, idempotent: bool) -> Origin | None:
        """A connection to `key` for a request, if there is one."""
        self.drop_stale()
        now = asyncio.get_running_loop().time()
        for origin in reversed(self._origins):
            if origin.key == key and (idempotent or origin.is_persistent(now)):
                self._origins.remove(origin)
                return origin
        return None

    def keep(self, origin: Origin) -> None:
        """Keep a connection for a later request."""
        origin.transport.resume_reading()  # its end must be noticed
        self._origins.append(origin)
        if len(self._origins) > MAX_IDLE:
            self._origins.pop(0).close()

    def drop_stale(self) -> None:
        """Close what has been idle for too long."""
        now = asyncio.get_running_loop().time()
        kept: list[Origin] = []
        for origin in self._origins:
            if origin.usable and not origin.is_stale(now):
                kept.append(origin)
            elif origin.usable:
                origin.close()
        self._origins = kept

    def close(self) -> None:
        """Close all of them."""
        for origin in self._origins:
            if origin.usable:
                origin.close()
        self._origins.clear()
