"""The HTTP server: everything on a connection until it becomes a WebSocket.

The buffer of a connection holds requests that are not served yet, at most `MAX_HEAD` and one read.
A request stays in it unchanged until the router has decided:

    data -> buffer -> head complete? -> router -> a reply: write it, drop the request, go on
                                               -> None: check the handshake, write 101, hand over
                                               -> a handler: see `mtt.http.exchange`

Requests are answered in order. While a handler works, or the client does not take the answers
(`pause_writing`), later requests wait and reading pauses.

One timer runs except during handlers: `limits.head` while a request is due or incomplete,
`limits.keepalive` between requests, unwanted bodies included. At the end, the transport goes to
`on_upgrade`, to `fallback`, or into a lingering close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mtt.errors import Cause, MttError, NetworkError, PeerError, describe
from mtt.http import nginx
from mtt.http.date import http_date
from mtt.http.exchange import Exchange, Handler, ends_connection
from mtt.http.limits import VISITORS, Limits
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import HttpError, Reply, Request, parse_request
from mtt.wire.upgrade import (
    PREFERENCE,
    Upgrade,
    UpgradeRefused,
    check_hidden_request,
    check_request,
    switching_protocols,
)

Router = Callable[[Request], Reply | Handler | None]
Fallback = Callable[[StreamTransport, bytes, bool], None]
OnUpgrade = Callable[[StreamTransport, Request, Upgrade], None]


class HttpServer(StreamProtocol):
    """Serves HTTP/1.x on one connection, with or without TLS.

    Args:
        router: returns the reply to a request, its handler, or None for a request that may become a
            WebSocket.
        on_upgrade: takes over the transport, with `set_protocol()`, after the 101. The client has
            sent nothing beyond its request by then.
        refusal: the reply to an invalid handshake for a path with a tunnel. None for Go's replies,
            which reveal the tunnel.
        fallback: takes over connections that are not for a tunnel, instead of an answer. Gets the
            received bytes, and whether the client has ended.
        fallback_time: seconds after which the fallback gets a silent connection, and unfinished
            heads immediately; both may still become tunnels. None: after the head's time limit.
        protocols: the subprotocols of WebSockets, the preferred one first.
        agree: gets the request and what is agreed on, before the 101; returns what to use instead.
        as_nginx: answer as nginx does, see `mtt.http.nginx`; otherwise as Go's net/http.
        error_reply: makes the reply to an invalid request from status and reason, instead of Go's.
        on_failure: called with the transport and its first failure: the peer broke the protocol,
            was too slow or vanished, or a handler raised an exception.
        on_end: called once with the transport when HTTP ends: by a handover, or the start of the
            close.
        on_lost: called once with the transport when the connection is closed.
        tasks: collects the tasks of handlers, for the owner to cancel.
    """

    __slots__ = (
        "_agree", "_as_nginx", "_body_left", "_buffer", "_closed", "_eof", "_error_reply",
        "_exchange", "_fallback", "_fallback_time", "_in_head", "_limits", "_on_end", "_on_failure",
        "_on_lost", "_on_upgrade", "_paused", "_protocols", "_refusal", "_router", "_tasks",
        "_timer", "_transport",
    )  # fmt: skip

    _transport: StreamTransport

    def __init__(
        self,
        router: Router,
        on_upgrade: OnUpgrade | None = None,
        *,
        refusal: Reply | None = None,
        fallback: Fallback | None = None,
        fallback_time: float | None = None,
        protocols: tuple[str, ...] = PREFERENCE,
        agree: Callable[[Request, Upgrade], Upgrade] | None = None,
        as_nginx: bool = False,
        error_reply: Callable[[int, str], Reply] | None = None,
        on_failure: Callable[[StreamTransport, Exception], None] | None = None,
        on_end: Callable[[StreamTransport], object] | None = None,
        on_lost: Callable[[StreamTransport], object] | None = None,
        limits: Limits = VISITORS,
        tasks: set[asyncio.Task[None]] | None = None,
    ) -> None:
        self._router = router
        self._on_upgrade = on_upgrade
        self._refusal = refusal
        self._fallback = fallback
        self._as_nginx = as_nginx
        self._error_reply = nginx.error_reply if as_nginx else error_reply
        self._fallback_time = fallback_time if fallback is not None else None
        self._on_failure = on_failure
        self._on_end = on_end
        self._on_lost = on_lost
        self._limits = limits
        self._protocols = protocols
        self._agree = agree
        self._tasks = tasks
        self._exchange: Exchange | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._buffer = HeadBuffer()
        self._body_left = 0  # bytes of a body still to drop
        self._in_head = True  # a request is due or incomplete
        self._paused = False
        self._eof = False
        self._closed = False

    # The protocol of the transport.

    @property
    def reads_after_send_error(self) -> bool:
        return False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if self._paused:
            transport.pause_reading()
        self._start_timer(self._limits.head if self._fallback_time is None else self._fallback_time)

    def data_received(self, data: Data) -> None:
        self._buffer += data
        if self._exchange is not None:
            self._exchange.received(len(data))
        else:
            self._serve()

    def eof_received(self) -> bool:
        self._eof = True
        if self._exchange is not None:
            self._exchange.end()
        else:
            self._serve()
        return True  # keeps the transport open: an answer may be in flight

    def pause_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.full = True
        elif not self._closed:  # otherwise, the next protocol decides about reading
            self._paused = True
            if self._timer is not None:  # not before connection_made, by `set_protocol`
                self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.full = False
            self._exchange.wake()
        elif self._paused and not self._closed:
            self._paused = False
            self._transport.resume_reading()
            self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._report(exchange.lose())
        elif not self._closed and self._buffer:
            text = f"in the middle of an HTTP request: {describe(exc)}"
            self._report(NetworkError(text, cause=Cause.EOF))
        self._detach()
        if self._on_lost is not None:
            self._on_lost(self._transport)
            self._on_lost = None

    # Requests.

    def _serve(self) -> None:
        """Serve requests in the buffer while the client takes the answers."""
        try:
            while not (self._closed or self._paused or self._exchange) and self._skip_body():
                if self._as_nginx and not nginx.has_begun(self._buffer):
                    break
                is_ended = self._eof and self._as_nginx  # nginx answers no ended client
                end = self._buffer.head_end(of_request=not is_ended)
                if end < 0:
                    if self._fallback_time is not None and self._fall_back():
                        return
                    self._wait_for_rest()
                    break
                self._dispatch(parse_request(bytes(self._buffer[:end])), end)
        except HttpError as error:
            if self._fall_back():
                return
            self._refuse(error, error)
        if self._eof and not (self._closed or self._paused or self._exchange):
            self._close()

    def _skip_body(self) -> bool:
        """Drop the last request's body so far. Returns whether bytes follow it."""
        if self._body_left:
            gone = min(self._body_left, len(self._buffer))
            self._buffer.drop(gone)
            self._body_left -= gone
        return bool(self._buffer) and not self._body_left

    def _wait_for_rest(self) -> None:
        """Wait for the rest of a head. Raises HttpError if the client has ended."""
        if self._eof:
            text = "the connection ended in the middle of a request head"
            if not self._as_nginx:
                raise HttpError(400, text)
            self._report(NetworkError(text, cause=Cause.EOF))
        elif not self._in_head:
            self._in_head = True
            self._start_timer(self._limits.head)

    def _dispatch(self, request: Request, end: int) -> None:
        """Upgrade or answer `request`, whose head is the first `end` bytes of the buffer."""
        reply = self._router(request)
        early = len(self._buffer) > end or request.has_body
        # Whether invalid handshakes must not reveal tunnels.
        hidden = self._refusal is not None or self._fallback is not None
        try:
            upgrade: Upgrade | None = None
            if hidden:
                # For every path: the check takes microseconds, which would reveal valid paths.
                upgrade = check_hidden_request(request, self._protocols, early=early)
            elif reply is None:
                upgrade = check_request(request, self._protocols)
        except UpgradeRefused as refused:
            if reply is None:
                reply = self._refusal or refused.reply
                if not hidden:
                    self._report(refused)
        else:
            if reply is None and upgrade is not None:
                self._upgrade(request, upgrade, early)
                return
        if self._fall_back():
            return
        assert reply is not None
        self._buffer.drop(end)
        if isinstance(reply, Reply):
            self._answer(request, reply)
        else:
            self._handle(request, reply)

    def _fall_back(self) -> bool:
        """Hand the connection over to the fallback, if there is one."""
        if self._fallback is None:
            return False
        received = bytes(self._buffer)
        self._detach()
        self._transport.pause_reading()
        self._fallback(self._transport, received, self._eof)
        return True

    def _upgrade(self, request: Request, upgrade: Upgrade, early: bool) -> None:
        if early:
            # Bytes before the 101 are not WebSocket data: a proxy on the path may disagree about
            # the end of the request (RFC 6455, 10.3).
            text = "the client sent data before the 101 response"
            self._report(PeerError(text, cause=Cause.HTTP))
            self._close()
            return
        if self._eof:  # a tunnel without anything to carry
            self._close()
            return
        assert self._on_upgrade is not None
        if self._agree is not None:
            upgrade = self._agree(request, upgrade)
        self.switch(upgrade)
        self._on_upgrade(self._transport, request, upgrade)

    def _answer(self, request: Request, reply: Reply) -> None:
        close = ends_connection(request) or reply.closes or not request.keep_alive
        self._await_request(request.content_length)
        self._transport.write(self.encode(reply, request, close=close))
        if close:
            self._close()

    def _await_request(self, body_left: int) -> None:
        """Wait for a further request, after `body_left` bytes of the last one's body."""
        self._body_left = body_left
        self._in_head = False
        self._start_timer(self._limits.keepalive)

    def _refuse(self, error: Exception, answer: HttpError) -> None:
        """Report `error`, send `answer`, and close the connection."""
        self._report(error)
        if self._error_reply is None:
            self._transport.write(answer.answer)
        else:
            reply = self._error_reply(answer.status, answer.reason)
            self._transport.write(self.encode(reply, None, close=True))
        self._close()

    # Handlers.

    def _handle(self, request: Request, handler: Handler) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._exchange = Exchange(
            self, self._transport, request, self._buffer, ended=self._eof, limits=self._limits
        )
        self._exchange.start(handler, self._tasks)

    def encode(
        self, reply: Reply, request: Request | None, *, close: bool, follows: int | None = 0
    ) -> bytes:
        encode = nginx.encode if self._as_nginx else Reply.encode
        return encode(reply, request, date=http_date(), close=close, follows=follows)

    def switch(self, upgrade: Upgrade) -> None:
        self._detach()
        self._transport.write(switching_protocols(upgrade.key, upgrade.protocol))

    def answered(self, exchange: Exchange, error: Exception | None) -> None:
        self._exchange = None
        if self._closed:
            return
        if error is None and not exchange.closes:
            self._await_request(exchange.unread.left)
            self._transport.resume_reading()
            self._serve()
        elif error is None:
            self._close()
        elif exchange.begun:  # a partial answer must not look complete
            self._report(error)
            self._detach()
            self._transport.cut()
        elif isinstance(error, HttpError):
            self._refuse(error, error)
        elif isinstance(error, MttError):  # a network error
            self._report(error)
            self._close()
        else:
            self._refuse(error, HttpError(500, "internal error"))

    # Ends.

    def _start_timer(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expired)

    def _expired(self) -> None:
        self._timer = None
        is_slow = bool(self._buffer) and self._in_head
        is_silent = self._in_head and self._fallback_time is not None
        if (is_slow or is_silent) and self._fall_back():
            return
        if is_slow:
            text = f"no complete HTTP request within {self._limits.head:g} s"
            self._report(NetworkError(text, cause=Cause.TIMEOUT))
        self._close(silent=is_slow)

    def _report(self, error: Exception | None) -> None:
        if self._on_failure is not None and error is not None:
            self._on_failure(self._transport, error)
            self._on_failure = None

    def _close(self, *, silent: bool = False) -> None:
        """Close after all answers are delivered, even if the client is still sending."""
        self._detach()
        if self._as_nginx and (self._eof or silent):
            # nginx sends no close_notify to a client that has ended first, or was too slow.
            self._transport.close_silently()
        else:
            self._transport.close()

    def _detach(self) -> None:
        """End HTTP on this connection, and release what refers to it."""
        self._closed = True
        self._buffer.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._on_end is not None:
            self._on_end(self._transport)
        self._on_end = self._on_failure = None
