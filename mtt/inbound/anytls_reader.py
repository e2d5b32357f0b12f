"""Reads what connections of AnyTLS begin with.

    preamble -> session -> stream -> destination
       `-> a stranger: to the fallback site, or to a small web server of our own

Each stream is handed to `serve` with its user and its destination. What becomes of those is the
business of the server: a proxy goes there, a tunnel goes where it always does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TypeVar

from mtt.address import peer_name
from mtt.http import nginx
from mtt.http.date import http_date
from mtt.http.fallback import SITE_TIME
from mtt.http.limits import VISITORS
from mtt.http.server import HttpServer
from mtt.http.watch import PreambleWatch, RequestWatch
from mtt.inbound.front import HeadReader
from mtt.inbound.site import WebSite
from mtt.layers.anytls_heads import ConnectionHead, StreamHead
from mtt.layers.anytls_server import ServerSession, ServerStream
from mtt.layers.base import StreamTransport
from mtt.layers.parked import hand_over, park
from mtt.log import logger
from mtt.wire.anytls import HASH_SIZE
from mtt.wire.http1 import HttpError, Reply, Request, may_be_request
from mtt.wire.padding import Scheme
from mtt.wire.servemux import NOT_FOUND

Who = TypeVar("Who")


class AnyTlsReader(HeadReader[Who, ServerSession]):
    """Turns connections into AnyTLS sessions.

    Args:
        serve: gets every stream, held, with its user, host and port; owns it from then on.
        find: the user with a password hash, see `mtt.trust.passwords`.
        scheme: the padding scheme that clients are to use.
        alpn: the ALPN names of the TLS context.
    """

    site: WebSite
    counts_sessions = False  # each is for one stream at a time

    def __init__(
        self,
        serve: Callable[[ServerStream, Who, str, int], None],
        *,
        find: Callable[[bytes], Who | None],
        scheme: Scheme,
        alpn: Collection[str] = (),
    ) -> None:
        self._serve = serve
        self._find = find
        self._scheme = scheme
        self.site = WebSite(self, alpn)

    def read(self, transport: StreamTransport) -> None:
        self._read(transport, VISITORS.head if self.front.fallback is None else SITE_TIME)

    def _read(self, transport: StreamTransport, silence_time: float | None = None) -> None:
        self.front.handshakes.add(transport)
        head = ConnectionHead(
            self._find,
            known=self._known,
            stranger=self._stranger,
            failed=self.front.give_up,
            silence_time=silence_time,
        )
        hand_over(transport, head)

    def _known(self, transport: StreamTransport, who: Who, rest: bytes) -> None:
        self.front.handshakes.discard(transport)
        session = ServerSession(
            partial(self._accept, who), scheme=self._scheme, on_lost=self.front.session_lost
        )
        self.front.begin(session, who)
        transport.set_protocol(session)
        session.connection_made(transport)
        if rest:
            session.data_received(rest)

    def _accept(self, who: Who) -> StreamHead:
        self.front.counters.streams += 1
        return StreamHead(partial(self._ready, who), _no_destination)

    def _ready(self, who: Who, stream: StreamTransport, host: str, port: int) -> None:
        assert isinstance(stream, ServerStream)
        if stream.is_over and not stream.get_protocol().early:
            stream.close()  # there is nothing to go there for
        else:
            self._serve(stream, who, host, port)

    # Strangers.

    def _stranger(
        self, transport: StreamTransport, received: bytes, eof: bool, error: Exception
    ) -> None:
        front = self.front
        if front.fallback is not None and (received or not eof):
            logger.debug("%s: to the web site: %s", peer_name(transport), error)
            # Who has said nothing yet may still be a user.
            watch = RequestWatch(None) if received else PreambleWatch(self._is_user)
            park(transport, received, eof=eof)
            self.site.visit(transport, watch, self._read, self._read).start(transport)
        elif received and (not (text := received.lstrip(b"\r\n")) or may_be_request(text)):
            park(transport, received, eof=eof)
            self._serve_http(transport)
        else:
            front.give_up(transport, error)
            if received:
                # At once, as nginx does at the first byte that cannot be in a method. To a client
                # with a wrong password, too, whose user should not have to wait to hear of it.
                refusal = nginx.error_reply(HttpError(400, str(error)))
                transport.write(nginx.encode(refusal, None, date=http_date(), close=True))
            if eof:
                transport.close_silently()
            else:
                transport.close()

    def _is_user(self, data: bytes) -> bool:
        return len(data) >= HASH_SIZE and self._find(data[:HASH_SIZE]) is not None

    def _serve_http(self, transport: StreamTransport) -> None:
        """Be a web server without a page, as with -wss to paths that lead nowhere."""

        def router(request: Request) -> Reply:
            self.site.answers(transport, "a web visitor", NOT_FOUND)
            return NOT_FOUND

        http = HttpServer(
            router,
            as_nginx=True,
            on_failure=partial(self.front.failed, transport),
            on_end=partial(self.front.handshakes.discard, transport),
        )
        hand_over(transport, http)


def _no_destination(stream: StreamTransport, reason: str) -> None:
    logger.debug("%s: a stream was closed: %s", peer_name(stream), reason)
