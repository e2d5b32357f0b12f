"""The server's HTTP side: everything on a connection until it becomes a WebSocket.

Theory of operation
-------------------
One `HttpServer` is the protocol of one connection, on whatever transport that has (TLS, TCP). The
buffer holds requests that came and were not served yet, at most `MAX_HEAD` and one read. A request
stays in it, byte for byte, until it has been decided whose it is:

    data -> buffer -> head complete? -> router -> a reply: write it, drop the request, go on
                                               -> none: check the handshake, write 101, hand over

Serving never waits for anything, so requests are answered in their order within the turn in which
they arrive. A client that sends requests and does not read the answers stops that: when the
transport says `pause_writing`, nothing is served and nothing more is read.

One timer runs from the first to the last moment: `head_timeout` while a request is due or
incomplete, `keepalive_timeout` between requests, which includes the rest of a body that nobody
wants. The state ends by handing the transport over, to `on_upgrade` or to a lingering close.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from typing import Any

from mtt.errors import Cause, NetworkError, PeerError, describe
from mtt.http import nginx
from mtt.layers import linger
from mtt.layers.base import Data, StreamProtocol
from mtt.wire.heads import HeadBuffer
from mtt.wire.http1 import HttpError, Reply, Request, parse_request
from mtt.wire.upgrade import (
    MAX_LINE,
    Upgrade,
    UpgradeRefused,
    check_hidden_request,
    check_request,
    switching_protocols,
)

# From accept, or from the first byte of a further request, until its head is complete; and between
# requests. Both as nginx has it. Who waits is limited in number elsewhere (mtt.admission).
HEAD_TIMEOUT = 60.0
KEEPALIVE_TIMEOUT = 75.0

# A body up to this size is read and dropped to keep the connection, as by Go's net/http: this
# much is under way in any case when the answer gets there.
MAX_DISCARD = 256 * 1024

Router = Callable[[Request], Reply | None]
Fallback = Callable[[asyncio.Transport, bytes, bool], None]
OnUpgrade = Callable[[asyncio.Transport, Request, Upgrade], None]


class HttpServer(StreamProtocol):
    """Serves HTTP/1.x on one connection and hands it over when a WebSocket was agreed on.

    Args:
        router: the reply to a request, or None for a request that may become a WebSocket.
        on_upgrade: takes over the transport, with `set_protocol()`, after the 101 was written.
            The client has sent nothing beyond its request by then.
        protocols: WebSocket sub-protocols, the preferred one first.
        on_failure: called with the first thing that goes wrong, for a log: the peer broke a
            protocol, got stuck or vanished. Not for connections that just end, nor for what the
            router answers.
        refusal: the answer to all that is no proper handshake for a path that has a tunnel. None
            for what Go answers, which tells that there is one.
        fallback: takes over, with what was received and whether that is all there will be, a
            connection that does not ask for a tunnel, instead of any answer of ours.
        fallback_time: seconds after which the fallback gets a connection that has said nothing; an
            unfinished head it gets at once. Both may still ask for a tunnel. With None it gets
            neither before its time is up.
        as_nginx: answer as nginx does, see `mtt.http.nginx`; else as Go's net/http.
        on_end: called once when this is over, by an upgrade or by the end of the connection.
        head_timeout: seconds for one request head, see `HEAD_TIMEOUT`.
        keepalive_timeout: seconds between requests, see `KEEPALIVE_TIMEOUT`.
    """

    __slots__ = (
        "_as_nginx", "_body_left", "_buffer", "_closed", "_eof", "_fallback", "_fallback_time",
        "_head_timeout", "_in_head", "_keepalive_timeout", "_on_end", "_on_failure", "_on_upgrade",
        "_paused", "_protocols", "_refusal", "_router", "_timer", "_transport",
    )  # fmt: skip

    _transport: asyncio.Transport

    def __init__(
        self,
        router: Router,
        on_upgrade: OnUpgrade,
        *,
        protocols: tuple[str, ...] = (),
        refusal: Reply | None = None,
        fallback: Fallback | None = None,
        fallback_time: float | None = None,
        as_nginx: bool = False,
        on_failure: Callable[[Exception], None] | None = None,
        on_end: Callable[[], object] | None = None,
        head_timeout: float = HEAD_TIMEOUT,
        keepalive_timeout: float = KEEPALIVE_TIMEOUT,
    ) -> None:
        self._router = router
        self._on_upgrade = on_upgrade
        self._protocols = protocols
        self._refusal = refusal
        self._fallback = fallback
        self._as_nginx = as_nginx
        self._fallback_time = fallback_time if fallback is not None else None
        self._on_failure = on_failure
        self._on_end = on_end
        self._head_timeout = head_timeout
        self._keepalive_timeout = keepalive_timeout
        self._timer: asyncio.TimerHandle | None = None
        self._buffer = HeadBuffer()
        self._body_left = 0  # bytes of a body still to drop
        self._in_head = True  # a request is due or incomplete
        self._paused = False
        self._eof = False
        self._closed = False

    # The protocol of the transport.

    @property
    def wants_rest(self) -> bool:
        return False

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        eager = self._fallback_time
        self._arm(self._head_timeout if eager is None else eager)

    def data_received(self, data: Data) -> None:
        self._buffer += data
        self._serve()

    def eof_received(self) -> bool:
        self._eof = True
        self._serve()
        return True  # closing is up to us: an answer may still be on its way

    def pause_writing(self) -> None:
        if not self._closed:  # else reading is the business of whoever takes over
            self._paused = True
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._paused and not self._closed:
            self._paused = False
            self._transport.resume_reading()
            self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._closed and self._buffer:
            text = f"in the middle of an HTTP request: {describe(exc)}"
            self._tell(NetworkError(text, cause=Cause.EOF))
        self._let_go()

    # Requests.

    def _serve(self) -> None:
        """Serve what the buffer holds, as far as the client takes the answers."""
        try:
            while not (self._closed or self._paused) and self._skip_body() and self._buffer:
                if self._as_nginx and not self._is_begun():
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
            self._tell(error)
            if self._as_nginx:
                self._transport.write(nginx.error_response(error, date=http_date()))
            else:
                self._transport.write(error.answer)
            self._close()
        if self._eof and not (self._closed or self._paused):
            self._close()

    def _skip_body(self) -> bool:
        """Drop what has come of the last request's body; whether that is all of it."""
        if self._body_left:
            gone = min(self._body_left, len(self._buffer))
            self._buffer.drop(gone)
            self._body_left -= gone
        return not self._body_left

    def _is_begun(self) -> bool:
        """Whether there is anything of a request, as nginx sees it. Raises HttpError."""
        if self._buffer.startswith((b"\r", b"\n")):
            self._buffer.drop(len(self._buffer) - len(self._buffer.lstrip(b"\r\n")))
        if self._buffer and not nginx.may_be_request(self._buffer[:MAX_LINE]):
            raise HttpError(400, "no HTTP request")
        return bool(self._buffer)

    def _wait_for_rest(self) -> None:
        """A head has begun. Raises HttpError if that is all there will be."""
        if self._eof and self._as_nginx:
            text = "the connection ended in the middle of a request head"
            self._tell(NetworkError(text, cause=Cause.EOF))
        elif self._eof:
            raise HttpError(400, "the connection ended in the middle of a request head")
        elif not self._in_head:
            self._in_head = True
            self._arm(self._head_timeout)

    def _decide(self, request: Request, end: int) -> None:
        """Upgrade or answer `request`, whose head is the first `end` bytes of the buffer."""
        reply = self._router(request)
        early = len(self._buffer) > end or request.has_body
        try:
            # Where nobody may learn which paths exist, also when there is nothing to upgrade to:
            # a check of the handshake takes a few microseconds, and would tell them apart.
            upgrade = self._check(request, early) if reply is None or self._hidden else None
        except UpgradeRefused as refused:
            if reply is None:
                reply = self._refusal or refused.reply
                if not self._hidden:
                    self._tell(refused)
        else:
            if reply is None and upgrade is not None:
                self._upgrade(request, upgrade, early)
                return
        if self._fall_back():
            return
        assert reply is not None
        self._buffer.drop(end)
        self._answer(request, reply)

    @property
    def _hidden(self) -> bool:
        """Whether a request that is no proper handshake must not learn that there are tunnels."""
        return self._refusal is not None or self._fallback is not None

    def _check(self, request: Request, early: bool) -> Upgrade:
        """The upgrade that `request` asks for. Raises UpgradeRefused."""
        if self._hidden:
            return check_hidden_request(request, self._protocols, early=early)
        return check_request(request, self._protocols)

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
        # With Expect the client may or may not send the body after our answer, so what follows
        # cannot be told from a request (RFC 9110, 10.1.1).
        unclear = request.chunked or request.first("expect") is not None
        too_much = request.content_length > MAX_DISCARD
        close = unclear or too_much or reply.closes or not request.keep_alive
        self._body_left = request.content_length
        self._in_head = False
        self._arm(self._keepalive_timeout)
        if self._as_nginx:
            self._transport.write(nginx.encode(reply, request, date=http_date(), close=close))
        else:
            self._transport.write(reply.encode(request, date=http_date(), close=close))
        if close:
            self._close()

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
            text = f"no complete HTTP request within {self._head_timeout:g} s"
            self._tell(NetworkError(text, cause=Cause.TIMEOUT))
        self._close(silent=is_slow)

    def _tell(self, error: Exception) -> None:
        if self._on_failure is not None:
            self._on_failure(error)
            self._on_failure = None

    def _close(self, *, silent: bool = False) -> None:
        """Close after all answers were delivered, whatever else the client may be sending."""
        self._let_go()
        linger.close(
            self._transport,
            self.connection_lost,
            eof_seen=self._eof,
            # nginx says no close_notify to who has ended first, and to who was too slow.
            silent=self._as_nginx and (self._eof or silent),
        )

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


def http_date() -> str:
    """The value of the Date header."""
    return _text_of(int(time.time()))


# Requests come many in a second, so the text is made once in each.
@lru_cache(maxsize=1)
def _text_of(now: int) -> str:
    return formatdate(now, usegmt=True)
