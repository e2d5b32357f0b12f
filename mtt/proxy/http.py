"""The connection of a client that speaks HTTP to the proxy port.

Theory of operation
-------------------
One `HttpConnection` is the protocol of one client until that asks for a tunnel (CONNECT, Upgrade).
Its requests are answered one after the other, each by an `Origin`:

    buffer -> head -> an idle origin connection, or a new one -> answer -> the next request
      `-> body --------------------^

What the client sends ahead waits in the buffer; when that is full, nothing more is read. Bodies go
through without being stored, and either side that takes no more stops the reading of the other.

Origin connections are kept for the next requests of the same client only: what a server has
attached to a connection, such as a login (NTLM), must not become another client's.

No request goes without an answer. An idle connection may end while a request is on its way to it.
If nothing of an answer has come then, the request is sent again on a new one, provided it is
idempotent, or its body has not been begun; other requests take only connections that the origin is
known to keep. Else the answer is 502, or, when a part of the answer has been passed on, the
connection with the client ends so that it looks cut.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import partial
from typing import Any, Protocol, Self

from mtt.errors import Cause, MttError, NetworkError, NothingSaidError, PeerError, describe
from mtt.layers import linger
from mtt.layers.base import Data, StreamProtocol, silent_seconds, unsent
from mtt.layers.holding import hold
from mtt.layers.tcp import SocketTransport
from mtt.log import logger
from mtt.net.address import host_port
from mtt.proxy.origin import Origin
from mtt.relay import DEAD_TIME, IDLE_LOOKS, LOOK_TIME
from mtt.service import peer_name
from mtt.wire import httphop, httpproxy
from mtt.wire.http1 import HttpError, Reply, Request, complete_head, parse_request_line
from mtt.wire.httphop import Answer
from mtt.wire.httpproxy import ProxyRequest
from mtt.wire.socks import Outcome

# Between requests. Clients keep connections for a minute or two (curl 118 s); who closes first
# may do so in the moment in which the other one uses it.
KEEPALIVE_TIME = 150.0
# What may wait here of a body while the origin is dialled, and of requests that were sent ahead.
MAX_AHEAD = 64 * 1024
# Of a body that may have to be sent again.
MAX_REPLAY = 64 * 1024
# Idle origin connections of one client, each of which is a stream of the tunnel.
MAX_IDLE = 4

# What a client is answered when the destination was not reached.
Failure = Callable[[Outcome], bytes]


class Owner(Protocol):
    """What the connection needs of its proxy port."""

    handshake_time: float
    idle_time: float
    has_login: bool
    draining: bool

    def idle(self, connection: HttpConnection) -> None: ...
    def busy(self, connection: HttpConnection) -> None: ...
    def accepts(self, user: bytes, password: bytes) -> bool: ...
    def carry(self, connection: HttpConnection) -> None: ...
    def open(self, connection: HttpConnection, host: str, port: int) -> None: ...
    def connect(
        self, near: asyncio.Transport, host: str, port: int, success: bytes, failure: Failure
    ) -> None: ...
    def relay(self, near: asyncio.Transport, far: asyncio.Transport) -> object: ...


class _Exchange:
    """A request, and the answer to it."""

    __slots__ = ("answered", "asked", "body", "closes", "origin", "replay", "reused", "unsent")

    def __init__(self, asked: ProxyRequest) -> None:
        assert asked.body is not None
        self.asked = asked
        self.body = asked.body
        self.unsent = bytearray()  # of the body, while there is no connection
        self.replay: bytearray | None = None  # what would have to be sent again of it, if it could
        self.origin: Origin | None = None
        self.reused = False  # the origin connection was idle before
        self.answered = False  # a part of the final answer has been passed on
        self.closes = not httphop.is_persistent(asked.request)  # the client's connection ends

    def keep(self, data: Data) -> None:
        """Keep a part of the body that is sent, as long as it may have to be sent again."""
        if self.replay is not None:
            limit = MAX_REPLAY if self.asked.is_idempotent else 0
            if len(self.replay) + len(data) > limit:
                self.replay = None
            else:
                self.replay += data


class HttpConnection(StreamProtocol):
    """One client.

    Args:
        owner: the proxy port.
        transport: the connection, which is taken over by `start()`.
        deadline: loop time at which the first request must be complete.

    Attributes:
        task: opens a connection for this one.
        started, reason, error, sent, received: see `service.Carried`.
        done: called when it is over, if the owner carries it.
    """

    borrows = True

    __slots__ = (
        "_buffer", "_carried", "_counted", "_deadline", "_eof", "_exchange", "_idle", "_idle_since",
        "_look_time", "_near", "_near_full", "_over", "_owner", "_scanned", "_takes_views",
        "_timer", "done", "error", "reason", "received", "sent", "started", "task",
    )  # fmt: skip

    def __init__(self, owner: Owner, transport: asyncio.Transport, deadline: float) -> None:
        self._owner = owner
        self._near = transport
        self._takes_views = bool(getattr(transport, "borrows", False))
        self._buffer = bytearray()  # requests that are not served yet
        self._scanned = 0  # bytes of it that hold no end of a head
        self._exchange: _Exchange | None = None
        self._idle: list[Origin] = []  # the newest last
        self._near_full = False  # the client takes nothing more for now
        self._eof = False  # the client has sent its end
        self._over = False
        self._carried = False
        self._deadline = deadline
        self._look_time = min(owner.idle_time / IDLE_LOOKS, LOOK_TIME)
        self._timer: asyncio.TimerHandle | None = None
        self.started = self._idle_since = asyncio.get_running_loop().time()
        self._counted = 0
        self.task: asyncio.Task[Any] | None = None
        self.done: Callable[[Self], None] = _ignore
        self.error: Exception | None = None
        self.reason = ""
        self.sent = self.received = 0

    def start(self, received: bytes) -> None:
        """Take over the connection, of which `received` has come already."""
        self._near.set_protocol(self)
        self._wait()
        self.data_received(received)

    def retire(self) -> None:
        """End the connection unless it is in use; else it ends with the answer."""
        if self._exchange is None and not self._buffer:
            self._finish("shutting down")

    def abort(self, reason: str) -> None:
        """Cut it."""
        if not self._over:
            self._end(reason)
            linger.reset(self._near)

    # The protocol of the client's connection.

    def data_received(self, data: Data) -> None:
        exchange = self._exchange
        if self._over:
            return
        if exchange is not None and not exchange.body.over:
            try:
                size = exchange.body.take(data)
            except HttpError as error:
                self._refuse(error)
                return
            self._pass_on(exchange, data if size == len(data) else data[:size])
            if size == len(data):
                return
            data = data[size:]
        self._buffer += data
        if self._exchange is None:
            self._serve()
        else:
            self._flow()

    def eof_received(self) -> bool:
        self._eof = True
        exchange = self._exchange
        if exchange is not None and not exchange.body.over:
            self._refuse(HttpError(400, "the connection ended in the middle of a request"))
        elif exchange is None:
            self._serve()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._over:
            return
        if not self._carried:
            self._tell_of_end(exc)
        elif self._exchange is not None:
            self.error = exc
        self._end(describe(exc))

    def pause_writing(self) -> None:
        self._near_full = True
        if self._exchange is not None and self._exchange.origin is not None:
            self._exchange.origin.transport.pause_reading()

    def resume_writing(self) -> None:
        self._near_full = False
        if self._exchange is not None and self._exchange.origin is not None:
            self._exchange.origin.transport.resume_reading()

    # Requests.

    def _serve(self) -> None:
        """Serve the next request if it has come."""
        try:
            while self._exchange is None and not self._over and self._buffer:
                if self._carried and self._buffer.startswith(b"\r\n"):
                    del self._buffer[:2]  # some send that behind a body (RFC 9112, 2.2)
                    continue
                end = complete_head(self._buffer, self._scanned)
                if end < 0:
                    self._check_unfinished()
                    break
                asked = httpproxy.parse(bytes(self._buffer[:end]))
                del self._buffer[:end]
                self._scanned = 0
                self._begin(asked)
        except HttpError as error:
            self._refuse(error)
            return
        if self._eof and self._exchange is None and not self._over:
            if not self._carried:
                self._tell_of_end(None)
            self._finish("done")

    def _check_unfinished(self) -> None:
        """Judge the beginning of a head. Raises HttpError if it cannot become a request."""
        line_end = self._buffer.find(b"\n")
        if line_end >= self._scanned:  # another protocol is refused at once
            parse_request_line(bytes(self._buffer[:line_end]).removesuffix(b"\r"))
        self._scanned = len(self._buffer)
        if not self._deadline:
            loop = asyncio.get_running_loop()
            self._deadline = loop.time() + self._owner.handshake_time
            self._arm(self._owner.handshake_time, self._expired)

    def _begin(self, asked: ProxyRequest) -> None:
        if self._owner.has_login:
            shown = httpproxy.login(asked.request)
            if shown is None or not self._owner.accepts(*shown):
                # Browsers ask without at first, and show it when they are told to.
                text = "wrong user or password" if shown else "no user and password yet"
                error = PeerError(text) if shown else MttError(text)
                self._refuse(error, _encode(asked.request, httpproxy.login_wanted(), close=True))
                return
        if asked.body is None:
            near, rest, eof = self._near, bytes(self._buffer), self._eof
            self._end("a tunnel was asked for")
            hold(near, rest, eof=eof)
            failure = partial(_failure, asked.request)
            self._owner.connect(near, asked.host, asked.port, httpproxy.CONNECTED, failure)
            return
        exchange = _Exchange(asked)
        ahead = bytes(self._buffer)
        size = exchange.body.take(ahead)
        exchange.unsent += ahead[:size]
        del self._buffer[:size]
        if self._eof and not exchange.body.over:
            raise HttpError(400, "the connection ended in the middle of a request")
        self._exchange = exchange
        self._owner.busy(self)
        if not self._carried:
            self._carried = True
            self._owner.carry(self)
        self._idle_since = asyncio.get_running_loop().time()
        self._deadline = 0.0
        self._arm(self._look_time, self._look)
        origin = self._idle_origin(asked)
        if origin is not None:
            exchange.reused = True
            self._ask(exchange, origin)
        else:
            self._open(asked)

    def _open(self, asked: ProxyRequest) -> None:
        self._owner.open(self, asked.host, asked.port)
        self._flow()

    def _idle_origin(self, asked: ProxyRequest) -> Origin | None:
        """An idle connection that `asked` may use."""
        self._drop_stale()
        now = asyncio.get_running_loop().time()
        for origin in reversed(self._idle):
            if origin.key == (asked.host, asked.port) and (
                asked.is_idempotent or origin.is_persistent(now)
            ):
                self._idle.remove(origin)
                return origin
        return None

    def _ask(self, exchange: _Exchange, origin: Origin) -> None:
        """Send what there is of the request."""
        asked, unsent = exchange.asked, bytes(exchange.unsent)
        exchange.origin = origin
        exchange.unsent.clear()
        if exchange.reused and (asked.is_idempotent or not exchange.body.over):
            exchange.replay = bytearray()
            exchange.keep(unsent)
        if self._near_full:
            origin.transport.pause_reading()
        near = self._near
        if isinstance(near, SocketTransport) and getattr(origin.transport, "shares", False):
            near.limit_reads()
        self.sent += len(asked.head) + len(unsent)
        origin.ask(
            self,
            asked.request.method,
            asked.head + unsent,
            upgrade=asked.upgrade,
            unchunked=asked.request.version < (1, 1),
        )
        self._flow()

    def _pass_on(self, exchange: _Exchange, data: Data) -> None:
        """Pass on a part of the request's body."""
        if exchange.origin is None:
            exchange.unsent += data
            self._flow()
            return
        exchange.keep(data)
        self.sent += len(data)
        exchange.origin.send(data)

    def _flow(self) -> None:
        """Read from the client, or not."""
        exchange = self._exchange
        full = False
        if exchange is not None:
            full = max(len(exchange.unsent), len(self._buffer)) > MAX_AHEAD
            if exchange.origin is not None and not exchange.body.over:
                full = full or exchange.origin.full
        if full:
            self._near.pause_reading()
        else:
            self._near.resume_reading()

    # Called by the owner, about the connection that was asked for.

    def opened(self, transport: asyncio.Transport) -> None:
        """It is there, held."""
        self.task = None
        exchange = self._exchange
        if self._over or exchange is None:
            linger.reset(transport)
            return
        exchange.reused = False
        exchange.replay = None
        key = exchange.asked.host, exchange.asked.port
        origin = Origin(transport, key)
        origin.take_over()
        if not origin.usable:
            self.failed(NetworkError("the connection was closed"), silent=True)
        else:
            self._ask(exchange, origin)

    def not_opened(self, outcome: Outcome) -> None:
        """It could not be opened."""
        self.task = None
        if not self._over:
            self._answer_for_origin(outcome)

    # Called by the origin.

    def origin_changed(self) -> None:
        self._flow()

    def interim(self, answer: Answer) -> None:
        exchange = self._exchange
        if exchange is not None and exchange.asked.request.version >= (1, 1):
            self._write(httphop.forwarded_answer(answer, close=False))

    def switched(self, answer: Answer, rest: bytes, eof: bool) -> None:
        exchange = self._exchange
        if exchange is None or exchange.origin is None:
            return
        near, far = self._near, exchange.origin.transport
        exchange.origin = None
        self._write(httphop.forwarded_answer(answer, close=False))
        ahead, near_eof = bytes(self._buffer), self._eof
        self._end("upgraded")
        hold(near, ahead, eof=near_eof)
        hold(far, rest, eof=eof)
        self._owner.relay(near, far)

    def answered(self, answer: Answer, data: Data) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        unchunked = answer.body.chunked and exchange.asked.request.version < (1, 1)
        if (
            answer.body.ends_with_connection
            or not exchange.body.over  # what is still to come of it has no reader then
            or self._owner.draining
            or (self._eof and not self._buffer)
        ):
            exchange.closes = True
        exchange.answered = True
        head = httphop.forwarded_answer(answer, close=exchange.closes, unchunked=unchunked)
        self._write(b"".join((head, data)))

    def body_received(self, data: Data) -> None:
        self._write(data)

    def completed(self) -> None:
        exchange = self._exchange
        if exchange is None or exchange.origin is None:
            return
        origin, exchange.origin = exchange.origin, None
        self._exchange = None
        if not exchange.body.over:
            origin.abort()
        elif origin.usable and not exchange.closes:
            self._keep(origin)
        else:
            origin.close()
        self._next(exchange.closes)

    def failed(self, error: Exception, *, silent: bool) -> None:
        exchange = self._exchange
        if exchange is None:
            return
        exchange.origin = None
        asked = exchange.asked
        name = host_port(asked.host, asked.port)
        logger.debug("%s: %s: %s", peer_name(self._near), name, describe(error))
        if silent and exchange.reused and exchange.replay is not None:
            exchange.unsent, exchange.replay = exchange.replay, None
            self._open(asked)
        elif exchange.answered:
            self._cut(error)
        else:
            self._answer_for_origin(Outcome.GENERAL_FAILURE)

    # Answers.

    def _write(self, data: Data) -> None:
        self.received += len(data)
        self._near.write(data if self._takes_views else bytes(data))

    def _answer_for_origin(self, outcome: Outcome) -> None:
        """Answer that there is no answer."""
        exchange = self._exchange
        if exchange is None:
            return
        self._exchange = None
        closes = exchange.closes or not exchange.body.over
        reply = httpproxy.failure(outcome)
        self._write(_encode(exchange.asked.request, reply, close=closes))
        self._next(closes)

    def _next(self, closes: bool) -> None:
        """Wait for the next request, or end."""
        if closes or self._near.is_closing():
            self._finish("done")
            return
        self._wait()
        self._flow()
        self._serve()

    def _wait(self) -> None:
        """Wait for a request."""
        self._owner.idle(self)
        loop = asyncio.get_running_loop()
        self._idle_since = loop.time()
        if self._carried:
            self._arm(self._look_time, self._look)
        else:
            self._arm(max(0.0, self._deadline - self._idle_since), self._expired)

    def _refuse(self, error: Exception, answer: bytes = b"") -> None:
        """End the connection because of what the client has sent, and say so if that is possible.

        `answer`: by default that of an HttpError.
        """
        self._tell(error)
        exchange = self._exchange
        if exchange is not None and exchange.answered:
            self._cut(error)
            return
        self._near.write(answer or (error.answer if isinstance(error, HttpError) else b""))
        self._finish(describe(error))

    # Ends.

    def _cut(self, error: Exception) -> None:
        """End the connection in the middle of an answer."""
        self.error = error
        self.abort(describe(error))

    def _finish(self, reason: str) -> None:
        """End the connection after all that was written."""
        near, eof = self._near, self._eof
        self._end(reason)
        linger.close(near, eof_seen=eof)

    def _end(self, reason: str) -> None:
        """Let go of everything but the client's connection."""
        if self._over:
            return
        self._over = True
        self.reason = reason
        exchange, self._exchange = self._exchange, None
        if exchange is not None and exchange.origin is not None:
            exchange.origin.abort()
        for origin in self._idle:
            if origin.usable:
                origin.close()
        self._idle.clear()
        self._buffer.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.task is not None:
            self.task.cancel()
            self.task = None
        self._owner.busy(self)
        done, self.done = self.done, _ignore
        done(self)

    def _tell(self, error: Exception) -> None:
        # What a client breaks is for its user to know; others come and go.
        log = logger.warning if isinstance(error, PeerError) else logger.debug
        log("%s: %s", peer_name(self._near), describe(error))

    def _tell_of_end(self, exc: Exception | None) -> None:
        if self._buffer:
            text = f"left in the middle of its request: {describe(exc)}"
            self._tell(NetworkError(text, cause=Cause.EOF))
        else:
            self._tell(NothingSaidError("closed without a byte"))

    # Time.

    def _arm(self, seconds: float, callback: Callable[[], object]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, callback)

    def _expired(self) -> None:
        seconds = self._owner.handshake_time
        error = NetworkError(f"no complete request within {seconds:g} s", cause=Cause.TIMEOUT)
        self._tell(error)
        self._finish(describe(error))

    def _look(self) -> None:
        """Look after idle connections, and those that do not get on."""
        now = asyncio.get_running_loop().time()
        self._drop_stale()
        exchange = self._exchange
        if exchange is None:
            if now - self._idle_since >= KEEPALIVE_TIME:
                self._finish("idle")
                return
        else:
            ends = [self._near]
            if exchange.origin is not None:
                ends.append(exchange.origin.transport)
            waiting = sum(map(unsent, ends))
            count = self.sent + self.received - waiting
            if count != self._counted:
                self._counted = count
                self._idle_since = now
            elif now - self._idle_since >= self._owner.idle_time:
                self._give_up(exchange, f"idle for {self._owner.idle_time:g} s")
                return
            if waiting and any(silent_seconds(end) >= DEAD_TIME for end in ends):
                self._give_up(exchange, f"no sign of life for {DEAD_TIME:g} s")
                return
        self._arm(self._look_time, self._look)

    def _give_up(self, exchange: _Exchange, why: str) -> None:
        if exchange.answered:
            self._cut(NetworkError(why, cause=Cause.TIMEOUT))
            return
        if exchange.origin is not None:
            exchange.origin.abort()
            exchange.origin = None
        if self.task is not None:
            self.task.cancel()
            self.task = None
        exchange.closes = True
        self._answer_for_origin(Outcome.TIMED_OUT)

    def _keep(self, origin: Origin) -> None:
        """Keep an origin connection for a later request."""
        if self._near_full:
            origin.transport.resume_reading()  # its end must be noticed
        self._idle.append(origin)
        if len(self._idle) > MAX_IDLE:
            self._idle.pop(0).close()

    def _drop_stale(self) -> None:
        """Close the origin connections that have been idle for too long."""
        now = asyncio.get_running_loop().time()
        kept = []
        for origin in self._idle:
            if origin.usable and not origin.is_stale(now):
                kept.append(origin)
            elif origin.usable:
                origin.close()
        self._idle = kept


def _ignore(connection: HttpConnection) -> None:
    """Nothing is left to be told."""


def _failure(request: Request, outcome: Outcome) -> bytes:
    return _encode(request, httpproxy.failure(outcome), close=True)


def _encode(request: Request, reply: Reply, *, close: bool) -> bytes:
    return reply.encode(request, date=formatdate(time.time(), usegmt=True), close=close)
