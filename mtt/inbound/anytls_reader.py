"""Reads the heads of AnyTLS connections.

    preamble -> session -> stream -> destination
       `-> not a user's: the fallback site, or a small web server

`serve` gets each stream with its user and its destination. A proxy connects to that destination, a
tunnel to its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TypeVar

from mtt.address import peer_name
from mtt.errors import describe
from mtt.http import nginx
from mtt.http.date import http_date
from mtt.http.fallback import SITE_TIME
from mtt.http.inspector import PreambleInspector, RequestInspector
from mtt.http.limits import VISITORS
from mtt.http.server import HttpServer
from mtt.inbound.front import HeadReader
from mtt.inbound.site import WebSite
from mtt.layers.anytls_heads import ConnectionHead, destination_reader
from mtt.layers.anytls_server import ServerSession, ServerStream
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.parked import hand_over, park
from mtt.log import logger
from mtt.wire.anytls import HASH_SIZE
from mtt.wire.http1 import Reply, Request, may_be_request
from mtt.wire.padding import Scheme
from mtt.wire.servemux import NOT_FOUND

User = TypeVar("User")


class AnyTlsReader(HeadReader[User, ServerSession]):
    """Turns connections into AnyTLS sessions.

    Args:
        serve: takes over every stream, parked, with its user, host and port.
        find: returns the user with a password hash, see `mtt.trust.passwords`.
        scheme: the padding scheme for clients.
        alpn: the ALPN names of the TLS context.
    """

    site: WebSite
    counts_sessions = False  # a client uses a session for one stream at a time

    def __init__(
        self,
        serve: Callable[[ServerStream, User, str, int], None],
        *,
        find: Callable[[bytes], User | None],
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
            known=self._begin_session,
            stranger=self._serve_visitor,
            failed=self.front.give_up,
            silence_time=silence_time,
        )
        hand_over(transport, head)

    def _begin_session(self, transport: StreamTransport, user: User, rest: bytes) -> None:
        self.front.handshakes.discard(transport)
        session = ServerSession(
            partial(self._accept, user), scheme=self._scheme, on_lost=self.front.session_lost
        )
        self.front.register(session, user)
        # Not park() and hand_over(), which would pause and resume the transport.
        transport.set_protocol(session)
        session.connection_made(transport)
        if rest:
            session.data_received(rest)

    def _accept(self, user: User) -> StreamProtocol:
        self.front.counters.streams += 1
        return destination_reader(partial(self._serve_stream, user), _log_closed)

    def _serve_stream(
        self, user: User, stream: StreamTransport, destination: tuple[str, int]
    ) -> None:
        assert isinstance(stream, ServerStream)
        if stream.is_over and not stream.get_protocol().early:
            stream.close()  # there is nothing to carry
        else:
            self._serve(stream, user, *destination)

    # Connections without the password of a user.

    def _serve_visitor(
        self, transport: StreamTransport, received: bytes, eof: bool, error: Exception
    ) -> None:
        front = self.front
        if front.fallback is not None and (received or not eof):
            logger.debug("%s: to the web site: %s", peer_name(transport), error)
            # A client that has sent nothing may still be a user.
            inspector = RequestInspector(None) if received else PreambleInspector(self._is_user)
            self.site.visit(transport, received, eof, inspector, self._read, self._read)
        elif received and (not (text := received.lstrip(b"\r\n")) or may_be_request(text)):
            park(transport, received, eof=eof)
            self._serve_http(transport)
        else:
            front.give_up(transport, error)
            if received:
                # Immediately, as nginx answers the first byte that no method has. A user with a
                # wrong password learns of it without a wait.
                refusal = nginx.error_reply(400)
                transport.write(nginx.encode(refusal, None, date=http_date(), close=True))
            if eof:
                transport.close_silently()
            else:
                transport.close()

    def _is_user(self, data: bytes) -> bool:
        return len(data) >= HASH_SIZE and self._find(data[:HASH_SIZE]) is not None

    def _serve_http(self, transport: StreamTransport) -> None:
        """Answer as a web server without pages, as with -wss outside the tunnel's path."""

        def router(request: Request) -> Reply:
            self.site.log_answer(transport, "a web visitor", NOT_FOUND)
            return NOT_FOUND

        http = HttpServer(
            router,
            as_nginx=True,
            on_failure=self.front.report_failure,
            on_end=self.front.handshakes.discard,
        )
        hand_over(transport, http)


def _log_closed(stream: StreamTransport, error: Exception) -> None:
    logger.debug("%s: stream closed: %s", peer_name(stream), describe(error))
