"""The server's HTTP side: everything on a connection until it becomes a WebSocket.

Theory of operation
-------------------
One `HttpServer` is the protocol of one connection, on whatever transport that has (TLS, TCP). The
buffer holds requests that came and were not served yet, at most `MAX_HEAD` and one read. A request
stays in it, byte for byte, until it has been decided whose it is:

    data -> buffer -> head complete? -> router -> a reply: write it, drop the request, go on
                                               -> None: check the handshake, write 101, hand over
                                               -> a handler: see `mtt.http.exchange`

A reply waits for nothing, so requests are answered in their order within the turn in which they
arrive; those behind one that has a handler wait for that. A client that sends requests and does not
read the answers stops it all: when the transport says `pause_writing`, nothing is served and
nothing more is read.

One timer runs except while a handler does: `limits.head` while a request is due or incomplete,
`limits.keepalive` between requests, which includes the rest of a body that nobody wants. The state
ends by handing the transport over, to `on_upgrade` or to a lingering close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from mtt.errors import Cause, MttError, NetworkError, PeerError, describe
from mtt.http import nginx
from mtt.http.date import http_date
from mtt.http.exchange import Exchange, ends_connection
from mtt.http.limits import VISITORS, Limits
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import HttpError, Reply, Request, parse_request
from mtt.wire.upgrade import (
    Upgrade,
    UpgradeRefused,
    check_hidden_request,
    check_request,
    switching_protocols,
)

Handler = Callable[[Exchange], Coroutine[Any, Any, None]]
Router = Callable[[Request], Reply | Handler | None]
Fallback = Callable[[StreamTransport, bytes, bool], None]
OnUpgrade = Callable[[StreamTransport, Request, Upgrade], None]


def _no_upgrade(*_: object) -> None:
    raise AssertionError("every request gets an answer")


class HttpServer(StreamProtocol):
    """Serves HTTP/1.x on one connection and hands it over when a WebSocket was agreed on.

    Args:
        router: the reply to a request, or what is awaited to answer it, or None for a request that
            may become a WebSocket.
        on_upgrade: takes over the transport, with `set_protocol()`, after the 101 was written.
            The client has sent nothing beyond its request by then.
        protocols: WebSocket sub-protocols, the preferred one first.
        on_failure: called with the first thing that goes wrong, for a log: the peer broke a
            protocol, got stuck or vanished, or a handler raised an exception. Not for connections
            that just end, nor for what the router answers.
        refusal: the answer to all that is no proper handshake for a path that has a tunnel. None
            for what Go answers, which tells that there is one.
        fallback: takes over, with what was received and whether that is all there will be, a
            connection that does not ask for a tunnel, instead of any answer of ours.
        fallback_time: seconds after which the fallback gets a connection that has said nothing; an
            unfinished head it gets at once. Both may still ask for a tunnel. With None it gets
            neither before its time is up.
        as_nginx: answer as nginx does, see `mtt.http.nginx`; else as Go's net/http.
        error_reply: the answer to what is no request, if it is neither of these.
        on_end: called once when this is over, by an upgrade or by the end of the connection.
        on_lost: called once when the connection is closed, which may take a while longer.
        limits: how long clients may take.
        tasks: has the tasks of the handlers, for the owner to cancel.
    """

    __slots__ = (
        "_as_nginx", "_body_left", "_buffer", "_closed", "_eof", "_error_reply", "_exchange",
        "_fallback", "_fallback_time", "_in_head", "_limits", "_on_end", "_on_failure", "_on_lost",
        "_on_upgrade", "_paused", "_protocols", "_refusal", "_router", "_tasks", "_timer",
        "_transport",
    )  # fmt: skip

    _transport: StreamTransport

    def __init__(
        self,
        router: Router,
        on_upgrade: OnUpgrade = _no_upgrade,
        *,
        protocols: tuple[str, ...] = (),
        refusal: Reply | None = None,
        fallback: Fallback | None = None,
        fallback_time: float | None = None,
        as_nginx: bool = False,
        error_reply: Callable[[HttpError], Reply] | None = None,
        on_failure: Callable[[Exception], None] | None = None,
        on_end: Callable[[], object] | None = None,
        on_lost: Callable[[], object] | None = None,
        limits: Limits = VISITORS,
        tasks: set[asyncio.Task[None]] | None = None,
    ) -> None:
        self._router = router
        self._on_upgrade = on_upgrade
        self._protocols = protocols
        self._refusal = refusal
        self._fallback = fallback
        self._as_nginx = as_nginx
        self._error_reply = nginx.error_reply if as_nginx else error_reply
        self._fallback_time = fallback_time if fallback is not None else None
        self._on_failure = on_failure
        self._on_end = on_end
        self._on_lost = on_lost
        self._limits = limits
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
        eager = self._fallback_time
        self._arm(self._limits.head if eager is None else eager)

    def data_received(self, data: Data) -> None:
        self._buffer += data
        if self._exchange is not None:
            self._exchange.received(len(data))
        else:
            self._serve()

    def eof_received(self) -> bool:
        self._eof = True
        if self._exchange is not None:
            self._exchange.ended = True
            self._exchange.wake()
        else:
            self._serve()
        return True  # closing is up to us: an answer may still be on its way

    def pause_writing(self) -> None:
        if self._exchange is not None:
            self._exchange.full = True
        elif not self._closed:  # else reading is the business of whoever takes over
            self._paused = True
            if self._timer is not None:  # connected: `set_protocol` of a full transport is earlier
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
            self._tell(exchange.lose())
        elif not self._closed and self._buffer:
            text = f"in the middle of an HTTP request: {describe(exc)}"
            self._tell(NetworkError(text, cause=Cause.EOF))
        self._let_go()
        if self._on_lost is not None:
            self._on_lost()
            self._on_lost = None

    # Requests.

    def _serve(self) -> None:
        """Serve what the buffer holds, as far as the client takes the answers."""
        try:
            while not (self._closed or self._paused or self._exchange) and self._skip_body():
                if self._as_nginx and not nginx.is_begun(self._buffer):
                    break
                is_ended = self._eof and self._as_nginx  # which says nothing to who leaves
                end = self._buffer.head_end(of_request=not is_ended)
                if end < 0:
                    if self._fallback_time is not None and self._fall_back():
                        return
                    self._wait_for_rest()
                    break
                self._decide(parse_request(bytes(self._buffer[:end])), end)
        except HttpError as error:
            if self._fall_back():
                return
            self._refuse(error, error)
        if self._eof and not (self._closed or self._paused or self._exchange):
            self._close()

    def _skip_body(self) -> bool:
        """Drop what has come of the last request's body; whether anything is behind it."""
        if self._body_left:
            gone = min(self._body_left, len(self._buffer))
            self._buffer.drop(gone)
            self._body_left -= gone
        return bool(self._buffer) and not self._body_left

    def _wait_for_rest(self) -> None:
        """A head has begun. Raises HttpError if that is all there will be."""
        if self._eof and self._as_nginx:
            text = "the connection ended in the middle of a request head"
            self._tell(NetworkError(text, cause=Cause.EOF))
        elif self._eof:
            raise HttpError(400, "the connection ended in the middle of a request head")
        elif not self._in_head:
            self._in_head = True
            self._arm(self._limits.head)

    def _decide(self, request: Request, end: int) -> None:
        """Upgrade or answer `request`, whose head is the first `end` bytes of the buffer."""
        reply = self._router(request)
        early = len(self._buffer) > end or request.has_body
        # Whether requests that are no proper handshake must not learn that there are tunnels.
        hidden = self._refusal is not None or self._fallback is not None
        try:
            upgrade: Upgrade | None = None
            if hidden:
                # Whatever it asks for: a check takes microseconds, which would tell paths apart.
                upgrade = check_hidden_request(request, self._protocols, early=early)
            elif reply is None:
                upgrade = check_request(request, self._protocols)
        except UpgradeRefused as refused:
            if reply is None:
                reply = self._refusal or refused.reply
                if not hidden:
                    self._tell(refused)
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
        """Give the connection to the fallback if there is one."""
        fallback, received = self._fallback, bytes(self._buffer)
        if fallback is None:
            return False
        self._let_go()
        self._transport.pause_reading()
        fallback(self._transport, received, self._eof)
        return True

    def _upgrade(self, request: Request, upgrade: Upgrade, early: bool) -> None:
        if early:
            # Bytes before our 101 were not meant for a WebSocket that we agreed on: a proxy in
            # between may have another idea of where the request ends (RFC 6455, 10.3).
            text = "the client sent data before the WebSocket was agreed on"
            self._tell(PeerError(text, cause=Cause.HTTP))
            self._close()
            return
        if self._eof:  # it asks for a conversation, and has said all it had to say
            self._close()
            return
        self._let_go()
        self._transport.write(switching_protocols(upgrade.key, upgrade.protocol))
        self._on_upgrade(self._transport, request, upgrade)

    def _answer(self, request: Request, reply: Reply) -> None:
        close = ends_connection(request) or reply.closes or not request.keep_alive
        self._expect(request.content_length)
        self._transport.write(self.encode(reply, request, close=close))
        if close:
            self._close()

    def _expect(self, body_left: int) -> None:
        """A further request may follow, behind so many bytes of the body of the last one."""
        self._body_left = body_left
        self._in_head = False
        self._arm(self._limits.keepalive)

    def _refuse(self, error: Exception, answer: HttpError) -> None:
        """End the connection with an answer to what is not served, because of `error`."""
        self._tell(error)
        if self._error_reply is None:
            self._transport.write(answer.answer)
        else:
            self._transport.write(self.encode(self._error_reply(answer), None, close=True))
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

    def answered(self, exchange: Exchange, error: Exception | None) -> None:
        self._exchange = None
        if self._closed:
            return
        if error is None and not exchange.closes:
            self._expect(exchange.unread.left)
            self._transport.resume_reading()
            self._serve()
        elif error is None:
            self._close()
        elif exchange.begun:  # it must not look complete
            self._tell(error)
            self._let_go()
            self._transport.cut()
        elif isinstance(error, HttpError):
            self._refuse(error, error)
        elif isinstance(error, MttError):  # of the network
            self._tell(error)
            self._close()
        else:
            self._refuse(error, HttpError(500, "internal error"))

    # Ends.

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expired)

    def _expired(self) -> None:
        self._timer = None
        is_due = bool(self._buffer) or self._fallback_time is not None
        if self._in_head and is_due and self._fall_back():
            return
        is_slow = bool(self._buffer) and self._in_head
        if is_slow:
            text = f"no complete HTTP request within {self._limits.head:g} s"
            self._tell(NetworkError(text, cause=Cause.TIMEOUT))
        self._close(silent=is_slow)

    def _tell(self, error: Exception | None) -> None:
        if self._on_failure is not None and error is not None:
            self._on_failure(error)
            self._on_failure = None

    def _close(self, *, silent: bool = False) -> None:
        """Close after all answers were delivered, whatever else the client may be sending."""
        self._let_go()
        if self._as_nginx and (self._eof or silent):
            # nginx says no close_notify to a client that has ended first, or was too slow.
            self._transport.close_silently()
        else:
            self._transport.close()

    def _let_go(self) -> None:
        """Be done with this connection: whatever happens to it now is none of our business."""
        self._closed = True
        self._buffer.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._on_end is not None:
            self._on_end()
        self._on_end = self._on_failure = None
