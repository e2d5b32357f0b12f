"""The connection of an HTTP proxy client.

Theory of operation
-------------------
An `HttpConnection` is the protocol of one client until it requests a tunnel (CONNECT, Upgrade).
It serves requests one after another, each in an `Exchange` with an `Origin`:

    buffer -> head -> an idle origin connection, or a new one -> answer -> the next request
      `-> body --------------------^

Pipelined requests wait in the buffer; while it is full, reading is paused. Bodies are not stored:
back-pressure from one side pauses the other.

Every request gets an answer. An idle origin connection may end while a request is in flight. If no
byte of an answer has arrived, the request is retried on a new connection, provided that it is
idempotent or its body has not begun. Other requests use only connections that the origin is known
to keep. Otherwise the answer is 502; if part of the answer has been passed on, the client's
connection is cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mtt.address import peer_name
from mtt.errors import MttError, PeerError, describe
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.kernel import silent_seconds
from mtt.layers.parked import park
from mtt.log import logger
from mtt.outcome import Outcome
from mtt.proxy.exchange import MAX_AHEAD, Exchange, encoded
from mtt.proxy.origin import IdleOrigins
from mtt.proxy.port import HANDSHAKE_TIME, ProxyPort, Route
from mtt.tunnels.relay import DEAD_TIME, IDLE_CHECKS, MAX_CHECK_INTERVAL
from mtt.wire import httpproxy
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import HttpError
from mtt.wire.httpproxy import ProxyRequest

# Idle timeout between requests, seconds. Clients keep connections for a minute or two (curl 118 s).
# They should close first: a close by the proxy may cross a new request.
KEEPALIVE_TIME = 150.0


class HttpConnection(StreamProtocol):
    """One client's connection.

    Args:
        port: the proxy port.
        near: the connection; `start()` takes it over.
        deadline: loop time by which the first request must be complete.

    Attributes:
        started, reason, error, sent, received: see `open_tunnels.Carrier`.
    """

    borrows = True

    __slots__ = (
        "_buffer", "_check_interval", "_counted", "_deadline", "_done", "_eof", "_exchange",
        "_idle_since", "_takes_views", "_timer", "_tracked", "error", "full", "near", "origins",
        "over", "port", "reason", "received", "route", "sent", "started",
    )  # fmt: skip

    def __init__(self, port: ProxyPort, near: StreamTransport, deadline: float) -> None:
        self.port = port
        self.near = near
        self.route: Route | None = None  # of the last request
        self._takes_views = near.borrows
        self._buffer = HeadBuffer()  # pipelined requests
        self._exchange: Exchange | None = None
        self._eof = False  # the client has half-closed
        self.over = False  # this object no longer handles the connection
        self._tracked = False  # has had a request; the tunnels include it
        self._deadline = deadline  # for a request head; 0: none has begun
        self._check_interval = min(port.idle_time / IDLE_CHECKS, MAX_CHECK_INTERVAL)
        self._timer: asyncio.TimerHandle | None = None
        self.started = self._idle_since = asyncio.get_running_loop().time()
        self._counted = 0  # bytes delivered at `_idle_since`
        self.origins = IdleOrigins()
        self.full = False
        self._done: Callable[[HttpConnection], None] | None = None  # called at the end
        self.error: Exception | None = None
        self.reason = ""
        self.sent = self.received = 0

    def start(self, received: bytes) -> None:
        """Take over the connection, which has sent `received` already."""
        self.near.set_protocol(self)
        self.port.idle(self, self.near)
        self._arm(max(0.0, self._deadline - self.started), self._expired)
        self.data_received(received)

    def retire(self) -> None:
        if self._exchange is None and not self._buffer:
            self._finish("shutting down")

    def abort(self, reason: str) -> None:
        if not self.over:
            self._end(reason)
            self.near.abort()

    # Protocol of the client's transport.

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
        if not (self.over or self._tracked):
            self.port.log_lost(peer_name(self.near), exc, begun=bool(self._buffer))
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
        """Serve the next request if its head is complete."""
        try:
            # `full` bounds the proxy's own answers if the client does not read them.
            while self._exchange is None and not (self.over or self.full) and self._buffer:
                if self._tracked and self._buffer.startswith(b"\r\n"):
                    self._buffer.drop(2)  # some clients send it behind a body (RFC 9112, 2.2)
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
            if not self._tracked:
                self.port.log_lost(peer_name(self.near), None, begun=bool(self._buffer))
            self._finish("done")

    def _wait_for_rest(self) -> None:
        """Start the deadline of a request head that has begun."""
        if not self._deadline:
            self._deadline = asyncio.get_running_loop().time() + HANDSHAKE_TIME
            self._arm(HANDSHAKE_TIME, self._expired)

    def _begin(self, asked: ProxyRequest) -> None:
        shown = httpproxy.login(asked.request) if self.port.login is not None else None
        route = self.port.route
        if self.port.login is not None and shown is not None:
            route = self.port.login(self.near, *shown)
        if route is None:
            # Browsers send the first request without a login.
            text = "wrong user or password" if shown else "the request has no login"
            error = PeerError(text) if shown else MttError(text)
            answer = encoded(asked.request, httpproxy.login_wanted(), close=True)
            self._refuse(error, answer)
            return
        if route is not self.route:  # another user
            self.origins.close()
            self.route = route
        if asked.body is None:
            self._connect(asked)
            return
        exchange = Exchange(self, asked)
        size = exchange.body.take(self._buffer)
        if self._eof and not exchange.body.over:
            raise HttpError(400, "the connection ended in the middle of a request")
        exchange.send(self._buffer.take(size))
        self._exchange = exchange
        self.port.busy(self, self.near)
        if not self._tracked:
            self._tracked = True
            self.port.tunnels.track(self.near, self._track)
        self._idle_since = asyncio.get_running_loop().time()
        self._deadline = 0.0
        self._arm(self._check_interval, self._check)
        exchange.start()
        self.flow()

    def _connect(self, asked: ProxyRequest) -> None:
        """Hand over the connection to a tunnel."""

        def failure(outcome: Outcome) -> bytes:
            return encoded(asked.request, httpproxy.failure(outcome), close=True)

        near, rest, eof = self.near, bytes(self._buffer), self._eof
        self._end("a tunnel was asked for")
        park(near, rest, eof=eof)
        port, route, target = self.port, self.route, (asked.host, asked.port)
        assert route is not None
        port.tunnels.spawn(near, port.connect(route, near, target, httpproxy.CONNECTED, failure))

    def _track(self, done: Callable[[HttpConnection], None]) -> HttpConnection:
        self._done = done
        return self

    # Called by the exchange.

    @property
    def has_ended(self) -> bool:
        return self._eof and not self._buffer

    def write(self, data: Data) -> None:
        self.received += len(data)
        self.near.write(data if self._takes_views else bytes(data))

    def flow(self) -> None:
        exchange = self._exchange
        if self.over:
            return
        if len(self._buffer) > MAX_AHEAD or (exchange is not None and exchange.full):
            self.near.pause_reading()
        else:
            self.near.resume_reading()

    def completed(self, *, closes: bool) -> None:
        self._exchange = None
        if closes or self.near.is_closing():
            self._finish("done")
            return
        self.port.idle(self, self.near)
        self._idle_since = asyncio.get_running_loop().time()
        self.flow()
        self._serve()

    def cut(self, error: Exception) -> None:
        self.error = error
        if not self.over:
            self._end(describe(error))
            self.near.cut()  # after the received part of the answer

    def upgraded(self, far: StreamTransport, rest: bytes, eof: bool) -> None:
        near, ahead, near_eof = self.near, bytes(self._buffer), self._eof
        self._exchange = None
        self._end("upgraded")
        park(near, ahead, eof=near_eof)
        park(far, rest, eof=eof)
        self.port.tunnels.relay(near, far)

    # End.

    def _refuse(self, error: Exception, answer: bytes) -> None:
        """Close the connection because of a client error, with `answer` if none has begun."""
        self.port.report(peer_name(self.near), error)
        if self._exchange is not None and self._exchange.answered:
            self.cut(error)
            return
        self.near.write(answer)
        self._finish(describe(error))

    def _finish(self, reason: str) -> None:
        """Deliver written data and close the connection."""
        if not self.over:
            self._end(reason)
            self.near.close()

    def _end(self, reason: str) -> None:
        """Release everything except the client's connection."""
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
        self.port.busy(self, self.near)
        done, self._done = self._done, None
        if done is not None:
            done(self)

    # Timers.

    def _arm(self, seconds: float, callback: Callable[[], object]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, callback)

    def _expired(self) -> None:
        reason = f"no complete request within {HANDSHAKE_TIME:g} s"
        logger.debug("%s: %s", peer_name(self.near), reason)
        self._finish(reason)

    def _check(self) -> None:
        """Check for progress of the exchange, or for the idle timeout."""
        now = asyncio.get_running_loop().time()
        self.origins.drop_stale()
        exchange = self._exchange
        if exchange is not None:
            self._check_progress(exchange, now)
        elif now - self._idle_since >= KEEPALIVE_TIME:
            self._finish("idle")
        if not self.over:
            self._arm(self._check_interval, self._check)

    def _check_progress(self, exchange: Exchange, now: float) -> None:
        ends = [self.near]
        if exchange.origin is not None:
            ends.append(exchange.origin.transport)
        waiting = sum(end.unsent() + end.throttled_bytes() for end in ends)
        # Delivered bytes count as well: a slow reader may drain the buffers for a long time.
        count = self.sent + self.received - waiting
        if count != self._counted:
            self._counted = count
            self._idle_since = now
        elif now - self._idle_since >= self.port.idle_time:
            logger.debug("%s: idle for %g s", peer_name(self.near), self.port.idle_time)
            exchange.time_out()
            return
        if waiting and any(silent_seconds(end) >= DEAD_TIME for end in ends):
            logger.debug("%s: no sign of life for %g s", peer_name(self.near), DEAD_TIME)
            exchange.time_out()
