"""The connection of a client that speaks HTTP to the proxy port.

Theory of operation
-------------------
One `HttpConnection` is the protocol of one client until that asks for a tunnel (CONNECT, Upgrade).
Its requests are answered one after the other, each in an `Exchange` with an `Origin`:

    buffer -> head -> an idle origin connection, or a new one -> answer -> the next request
      `-> body --------------------^

What the client sends ahead waits in the buffer; when that is full, nothing more is read. Bodies go
through without being stored, and either side that takes no more stops the reading of the other.

No request goes without an answer. An idle connection may end while a request is on its way to it.
If nothing of an answer has come then, the request is sent again on a new one, provided it is
idempotent, or its body has not been begun; other requests take only connections that the origin is
known to keep. Else the answer is 502, or, when a part of the answer has been passed on, the
connection with the client ends so that it looks cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from mtt.address import peer_name
from mtt.errors import Cause, MttError, NetworkError, NothingSaidError, PeerError, describe
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.kernel import silent_seconds
from mtt.layers.parked import park
from mtt.log import logger
from mtt.outcome import Outcome
from mtt.proxy.exchange import MAX_AHEAD, Exchange, encoded
from mtt.proxy.origin import IdleOrigins
from mtt.tunnels.relay import DEAD_TIME, IDLE_CHECKS, MAX_CHECK_INTERVAL
from mtt.wire import httpproxy
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import HttpError, Request
from mtt.wire.httpproxy import ProxyRequest

# Between requests. Clients keep connections for a minute or two (curl 118 s), and it is better that
# they end them: a client may send a request in the moment in which we do.
KEEPALIVE_TIME = 150.0

# What a client is answered when the destination was not reached.
Failure = Callable[[Outcome], bytes]


class Owner(Protocol):
    """What the connection needs of its proxy port."""

    handshake_time: float
    idle_time: float
    has_login: bool
    draining: bool

    def idle(self, connection: HttpConnection, transport: StreamTransport) -> None: ...
    def busy(self, connection: HttpConnection, transport: StreamTransport) -> None: ...
    def accepts(self, user: bytes, password: bytes) -> bool: ...
    def carry(self, connection: HttpConnection, transport: StreamTransport) -> None: ...
    def open(
        self, connection: HttpConnection, transport: StreamTransport, host: str, port: int
    ) -> None: ...
    def connect(
        self, near: StreamTransport, host: str, port: int, success: bytes, failure: Failure
    ) -> None: ...
    def join(self, near: StreamTransport, far: StreamTransport) -> None: ...
    def tell(self, name: str, error: Exception) -> None: ...


class HttpConnection(StreamProtocol):
    """One client.

    Args:
        owner: the proxy port.
        transport: the connection, which is taken over by `start()`.
        deadline: loop time at which the first request must be complete.

    Attributes:
        task: opens a connection for this one.
        started, reason, error, sent, received: see `open_tunnels.Carrier`.
        done: called when it is over, if the owner carries it.
    """

    borrows = True

    __slots__ = (
        "_buffer", "_carried", "_counted", "_deadline", "_eof", "_exchange", "_idle_since",
        "_look_time", "_near", "_owner", "_takes_views", "_timer", "done",
        "error", "full", "origins", "over", "reason", "received", "sent", "started", "task",
    )  # fmt: skip

    def __init__(self, owner: Owner, transport: StreamTransport, deadline: float) -> None:
        self._owner = owner
        self._near = transport
        self._takes_views = bool(getattr(transport, "borrows", False))
        self._buffer = HeadBuffer()  # requests that are not served yet
        self._exchange: Exchange | None = None
        self._eof = False  # the client has sent its end
        self.over = False  # it is done with the connection
        self._carried = False  # the owner knows of us: a request has come
        self._deadline = deadline  # for the head of a request, 0 if none is due
        self._look_time = min(owner.idle_time / IDLE_CHECKS, MAX_CHECK_INTERVAL)
        self._timer: asyncio.TimerHandle | None = None
        self.started = self._idle_since = asyncio.get_running_loop().time()
        self._counted = 0  # bytes that had passed then
        self.origins = IdleOrigins()
        self.full = False
        self.task: asyncio.Task[Any] | None = None
        self.done: Callable[[HttpConnection], None] = _ignore
        self.error: Exception | None = None
        self.reason = ""
        self.sent = self.received = 0

    def start(self, received: bytes) -> None:
        """Take over the connection, of which `received` has come already."""
        self._near.set_protocol(self)
        self._owner.idle(self, self._near)
        self._arm(max(0.0, self._deadline - self.started), self._expired)
        self.data_received(received)

    def retire(self) -> None:
        """End the connection if it waits for a request; else it ends with the answer."""
        if self._exchange is None and not self._buffer:
            self._finish("shutting down")

    def abort(self, reason: str) -> None:
        """Cut it."""
        if not self.over:
            self._end(reason)
            self._near.abort()

    # The protocol of the client's connection.

    def data_received(self, data: Data) -> None:
        exchange = self._exchange
        if self.over:
            return
        if exchange is not None and not exchange.body.over:
            try:
                size = exchange.body.take(data)
            except HttpError as error:
                self._refuse(error, error.answer)
                return
            exchange.send(data if size == len(data) else data[:size])
            self._buffer += data[size:]
        else:
            self._buffer += data
        if self._exchange is None:
            self._serve()
        if self._buffer or (self._exchange is not None and self._exchange.origin is None):
            self.flow()

    def eof_received(self) -> bool:
        self._eof = True
        exchange = self._exchange
        if exchange is None:
            self._serve()
        elif exchange.body.over:
            if not self._buffer:
                exchange.client_ended()
        else:
            error = HttpError(400, "the connection ended in the middle of a request")
            self._refuse(error, error.answer)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if not (self.over or self._carried):
            self._tell_of_end(exc)
        self._end(describe(exc))

    def pause_writing(self) -> None:
        self.full = True
        if self._exchange is not None and self._exchange.origin is not None:
            self._exchange.origin.transport.pause_reading()

    def resume_writing(self) -> None:
        self.full = False
        if self._exchange is not None and self._exchange.origin is not None:
            self._exchange.origin.transport.resume_reading()
        elif self._exchange is None and not self.over:
            self._serve()
            self.flow()

    # Requests.

    def _serve(self) -> None:
        """Serve the next request if it has come."""
        try:
            # Answers of our own pile up if the client reads none of them.
            while self._exchange is None and not (self.over or self.full) and self._buffer:
                if self._carried and self._buffer.startswith(b"\r\n"):
                    self._buffer.drop(2)  # some send that behind a body (RFC 9112, 2.2)
                    continue
                end = self._buffer.head_end(of_request=True)
                if end < 0:
                    self._wait_for_rest()
                    break
                self._begin(httpproxy.parse(self._buffer.take(end)))
        except HttpError as error:
            self._refuse(error, error.answer)
            return
        if self._eof and self._exchange is None and not (self.over or self.full):
            if not self._carried:
                self._tell_of_end(None)
            self._finish("done")

    def _wait_for_rest(self) -> None:
        """A head has begun."""
        if not self._deadline:
            seconds = self._owner.handshake_time
            self._deadline = asyncio.get_running_loop().time() + seconds
            self._arm(seconds, self._expired)

    def _begin(self, asked: ProxyRequest) -> None:
        if self._owner.has_login:
            shown = httpproxy.login(asked.request)
            if shown is None or not self._owner.accepts(*shown):
                # Browsers ask without at first, and show it when they are told to.
                text = "wrong user or password" if shown else "no user and password yet"
                error = PeerError(text) if shown else MttError(text)
                answer = encoded(asked.request, httpproxy.login_wanted(), close=True)
                self._refuse(error, answer)
                return
        if asked.body is None:
            near, rest, eof = self._near, bytes(self._buffer), self._eof
            self._end("a tunnel was asked for")
            park(near, rest, eof=eof)
            failure = partial(_failure, asked.request)
            self._owner.connect(near, asked.host, asked.port, httpproxy.CONNECTED, failure)
            return
        exchange = Exchange(self, asked)
        size = exchange.body.take(self._buffer)
        if self._eof and not exchange.body.over:
            raise HttpError(400, "the connection ended in the middle of a request")
        exchange.send(self._buffer.take(size))
        self._exchange = exchange
        self._owner.busy(self, self._near)
        if not self._carried:
            self._carried = True
            self._owner.carry(self, self._near)
        self._idle_since = asyncio.get_running_loop().time()
        self._deadline = 0.0
        self._arm(self._look_time, self._look)
        exchange.start()
        self.flow()

    # For the owner, about the connection that was asked for.

    def opened(self, transport: StreamTransport) -> None:
        """It is there, held."""
        self.task = None
        if self._exchange is None:
            transport.abort()
        else:
            self._exchange.opened(transport)

    def not_opened(self, outcome: Outcome) -> None:
        """It could not be opened."""
        self.task = None
        if self._exchange is not None:
            self._exchange.not_opened(outcome)

    # For the exchange.

    @property
    def name(self) -> str:
        return peer_name(self._near)

    @property
    def has_ended(self) -> bool:
        return self._eof and not self._buffer

    @property
    def is_ending(self) -> bool:
        return self._owner.draining or self.has_ended

    def write(self, data: Data) -> None:
        self.received += len(data)
        self._near.write(data if self._takes_views else bytes(data))

    def open(self, host: str, port: int) -> None:
        self._owner.open(self, self._near, host, port)

    def attached(self, transport: StreamTransport) -> None:
        if transport.shares:
            self._near.limit_reads()

    def flow(self) -> None:
        exchange = self._exchange
        if self.over:
            return
        if len(self._buffer) > MAX_AHEAD or (exchange is not None and exchange.full):
            self._near.pause_reading()
        else:
            self._near.resume_reading()

    def completed(self, *, closes: bool) -> None:
        self._exchange = None
        if closes or self._near.is_closing():
            self._finish("done")
            return
        self._owner.idle(self, self._near)
        self._idle_since = asyncio.get_running_loop().time()
        self.flow()
        self._serve()

    def cut(self, error: Exception) -> None:
        self.error = error
        if not self.over:
            self._end(describe(error))
            self._near.cut()  # behind what has come of the answer

    def upgraded(self, far: StreamTransport, rest: bytes, eof: bool) -> None:
        near, ahead, near_eof = self._near, bytes(self._buffer), self._eof
        self._exchange = None
        self._end("upgraded")
        park(near, ahead, eof=near_eof)
        park(far, rest, eof=eof)
        self._owner.join(near, far)

    # Ends.

    def _refuse(self, error: Exception, answer: bytes) -> None:
        """End the connection because of what the client has sent; say so if that is possible."""
        self._tell(error)
        if self._exchange is not None and self._exchange.answered:
            self.cut(error)
            return
        self._near.write(answer)
        self._finish(describe(error))

    def _finish(self, reason: str) -> None:
        """End the connection after all that was written."""
        if not self.over:
            self._end(reason)
            self._near.close()

    def _end(self, reason: str) -> None:
        """Let go of everything but the client's connection."""
        if self.over:
            return
        self.over = True
        self.reason = reason
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.abort()
        self.origins.close()
        self._buffer.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.task is not None:
            self.task.cancel()
            self.task = None
        self._owner.busy(self, self._near)
        done, self.done = self.done, _ignore
        done(self)

    def _tell(self, error: Exception) -> None:
        self._owner.tell(self.name, error)

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
        """End what does not get on, and what has been idle for too long."""
        now = asyncio.get_running_loop().time()
        self.origins.drop_stale()
        exchange = self._exchange
        if exchange is not None:
            self._check_progress(exchange, now)
        elif now - self._idle_since >= KEEPALIVE_TIME:
            self._finish("idle")
        if not self.over:
            self._arm(self._look_time, self._look)

    def _check_progress(self, exchange: Exchange, now: float) -> None:
        ends = [self._near]
        if exchange.origin is not None:
            ends.append(exchange.origin.transport)
        waiting = sum(end.unsent() + end.held_back() for end in ends)
        # What leaves counts as well: a slow reader may live on our buffers for a long time.
        count = self.sent + self.received - waiting
        if count != self._counted:
            self._counted = count
            self._idle_since = now
        elif now - self._idle_since >= self._owner.idle_time:
            logger.debug("%s: idle for %g s", self.name, self._owner.idle_time)
            exchange.give_up()
            return
        if waiting and any(silent_seconds(end) >= DEAD_TIME for end in ends):
            logger.debug("%s: no sign of life for %g s", self.name, DEAD_TIME)
            exchange.give_up()


def _ignore(connection: HttpConnection) -> None:
    """Nothing is left to be told."""


def _failure(request: Request, outcome: Outcome) -> bytes:
    return encoded(request, httpproxy.failure(outcome), close=True)
