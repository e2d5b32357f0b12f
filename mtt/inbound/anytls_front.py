"""The front of an AnyTLS server: from an accepted connection to streams and where they lead.

    TCP -> TLS (unless a proxy in front does it) -> preamble -> session -> stream -> destination
                    `-> a stranger: to the web site of -fallback, or to a small one of our own

Each stream is handed to `serve` with its user and its destination. What becomes of those is the
business of the owner: a proxy goes there, a tunnel goes where it always does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Collection
from typing import Generic, TypeVar

from mtt.address import peer_name
from mtt.errors import Cause, NetworkError, PeerError
from mtt.http import entrance, nginx
from mtt.http.date import http_date
from mtt.http.entrance import Entrance
from mtt.http.fallback import SITE_TIME, Visit
from mtt.http.limits import VISITORS
from mtt.http.plain import visit_in_clear
from mtt.http.server import HttpServer
from mtt.http.watch import PreambleWatch, RequestWatch
from mtt.layers.anytls_heads import ConnectionHead, StreamHead
from mtt.layers.anytls_server import ServerSession
from mtt.layers.anytls_stream import ServerStream
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.holding import Holding, hand_over, hold
from mtt.layers.tls import TlsLayer
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.net.admission import Pending
from mtt.observe.metrics import Counters
from mtt.wire.anytls import HASH_SIZE
from mtt.wire.http1 import HttpError, Reply, Request, may_be_request
from mtt.wire.padding import Scheme
from mtt.wire.servemux import NOT_FOUND

# The reference client gives up a whole session, with all that is in it, when 3 s after the
# beginning of a stream it has not heard how that went. So a destination that takes longer is
# reported as reached (the protocol allows that), with a second left for the way there and back; if
# it is not in the end, the client sees a stream that ends without a byte.
ANSWER_TIME = 2.0

Who = TypeVar("Who")


class AnyTlsFrontend(Generic[Who]):
    """Turns accepted connections into streams.

    Args:
        serve: gets every stream, held, with its user, host and port; owns it from then on.
        find: the user with a password hash, see `mtt.trust.passwords`.
        counters: where failures, sessions and streams are counted.
        context: called for the TLS context of each connection, None to go without.
        scheme: the padding scheme that clients are to use.
        alpn: the ALPN names of the context; clients that have others only are refused.
        fallback: gets the stream of every connection that does not begin with the password of a
            user, held, to be relayed to a web site. Without it they find a web server of ours that
            has no page.
        on_session: called with the user of every session when it begins and once more when it is
            over (`session.lost`).
    """

    def __init__(
        self,
        serve: Callable[[ServerStream, Who, str, int], None],
        *,
        find: Callable[[bytes], Who | None],
        counters: Counters,
        context: Callable[[], ssl.SSLContext] | None,
        scheme: Scheme,
        alpn: Collection[str] = (),
        fallback: Callable[[StreamTransport], None] | None = None,
        on_session: Callable[[Who, ServerSession], None] | None = None,
    ) -> None:
        self._serve = serve
        self._find = find
        self._counters = counters
        self._context = context
        self._scheme = scheme
        self._alpn = [name.encode() for name in alpn]
        self._fallback = fallback
        self._on_session = on_session
        self._pending = Pending(on_cut=self._count_cut)
        self._failures = Throttle(FAILURE_BURST)
        self._sessions: dict[ServerSession, Who] = {}

    @property
    def pending(self) -> int:
        """How many connections have not shown who they are."""
        return len(self._pending)

    @property
    def sessions(self) -> Collection[ServerSession]:
        """The sessions that are up."""
        return self._sessions.keys()

    @property
    def idle(self) -> int:
        """How many of those carry no stream."""
        return sum(not session.open_streams for session in self._sessions)

    def accept(self) -> StreamProtocol:
        """The protocol for a new connection (a protocol factory of asyncio)."""
        carrier: StreamTransport

        def connected(transport: StreamTransport) -> None:
            nonlocal carrier
            carrier = transport
            self._pending.add(transport)

        head = self._head(
            lambda error: self._failed(carrier, error),
            connected=connected if self._context is None else None,
            silence_time=VISITORS.head if self._fallback is None else SITE_TIME,
        )
        if self._context is None:
            return head
        tls = TlsLayer(
            head, self._context(), server_side=True, handshake_time=entrance.HANDSHAKE_TIME
        )
        carrier = tls
        self._pending.add(tls)
        return Entrance(tls, alpn=self._alpn, on_plain=self._visit_in_clear)

    def _visit_in_clear(self, transport: StreamTransport, received: bytes) -> None:
        visit_in_clear(transport, received, self._pending, self._fallback)

    def _head(
        self,
        failed: Callable[[Exception], None],
        *,
        connected: Callable[[StreamTransport], None] | None = None,
        silence_time: float | None = None,
    ) -> ConnectionHead[Who]:
        return ConnectionHead(
            self._find,
            known=self._known,
            stranger=self._stranger,
            failed=failed,
            connected=connected,
            silence_time=silence_time,
        )

    def cut(self, is_unwanted: Callable[[Who], bool]) -> int:
        """Cut the sessions of some users, with all their streams; returns how many."""
        cut = [session for session, who in self._sessions.items() if is_unwanted(who)]
        for session in cut:
            session.abort()
        return len(cut)

    def close(self) -> None:
        """Cut what is no session yet, and all sessions."""
        self._pending.close()
        for session in list(self._sessions):
            session.abort()

    def _known(self, transport: StreamTransport, who: Who, rest: bytes) -> None:
        self._pending.discard(transport)
        session = ServerSession(
            lambda: self._accept_stream(who),
            scheme=self._scheme,
            on_lost=lambda session, error: self._session_lost(session, who, error),
        )
        self._sessions[session] = who
        self._counters.sessions += 1
        if self._on_session is not None:
            self._on_session(who, session)
        transport.set_protocol(session)
        session.connection_made(transport)
        if rest:
            session.data_received(rest)

    def _stranger(
        self, transport: StreamTransport, received: bytes, eof: bool, error: Exception
    ) -> None:
        if self._fallback is not None and (received or not eof):
            logger.debug("%s: to the web site: %s", peer_name(transport), error)
            self._visit(self._fallback, transport, received, eof)
        elif received and (not (text := received.lstrip(b"\r\n")) or may_be_request(text)):
            hold(transport, received, eof=eof)
            self._serve_http(transport)
        else:
            self._failed(transport, error)
            if received:
                # At once, as nginx does at the first byte that cannot be in a method. To a client
                # with a wrong password, too, whose user should not have to wait to hear of it.
                refusal = nginx.error_reply(HttpError(400, str(error)))
                transport.write(nginx.encode(refusal, None, date=http_date(), close=True))
            if eof:
                transport.close_silently()
            else:
                transport.close()

    def _visit(
        self,
        fallback: Callable[[StreamTransport], None],
        transport: StreamTransport,
        received: bytes,
        eof: bool,
    ) -> None:
        """Let a stranger visit the web site. Who has said nothing yet may still be a user."""

        def is_user(data: bytes) -> bool:
            return len(data) >= HASH_SIZE and self._find(data[:HASH_SIZE]) is not None

        def resume(transport: StreamTransport, received: bytes) -> None:
            head = self._head(lambda error: self._failed(transport, error))
            self._pending.add(transport)
            hold(transport, received)
            hand_over(transport, head)

        Visit(
            Holding(fallback),
            RequestWatch(None) if received else PreambleWatch(is_user),
            on_tunnel=resume,
            on_refused=resume,
            on_settled=lambda: self._pending.discard(transport),
        ).start(transport, received, eof)

    def _serve_http(self, transport: StreamTransport) -> None:
        """Be a web server without a page, as with -wss to paths that lead nowhere."""

        def router(request: Request) -> Reply:
            self._counters.handshake_failures[Cause.PATH] += 1
            logger.debug("%s: a web visitor, answered %d", peer_name(transport), NOT_FOUND.status)
            return NOT_FOUND

        http = HttpServer(
            router,
            as_nginx=True,
            on_failure=lambda error: self._failed(transport, error),
            on_end=lambda: self._pending.discard(transport),
        )
        hand_over(transport, http)

    def _accept_stream(self, who: Who) -> StreamHead:
        self._counters.streams += 1

        def ready(stream: StreamTransport, host: str, port: int) -> None:
            assert isinstance(stream, ServerStream)
            held = stream.get_protocol()
            if stream.is_over and isinstance(held, Holding) and not held.early:
                stream.close()  # there is nothing to go there for
            else:
                self._serve(stream, who, host, port)

        return StreamHead(ready, _no_destination)

    def _session_lost(self, session: ServerSession, who: Who, error: Exception | None) -> None:
        self._sessions.pop(session, None)
        if self._on_session is not None:
            self._on_session(who, session)
        self._counters.session_over(error)
        if isinstance(error, PeerError):
            self._failures.failure(session.lower, error)
        elif error is not None:
            logger.debug("%s: %s", peer_name(session.lower), error)

    def _failed(self, transport: StreamTransport, error: Exception) -> None:
        if self._pending.discard(transport):  # not if we cut it
            self._counters.failed(error)
            self._failures.failure(transport, error)

    def _count_cut(self) -> None:
        self._counters.handshake_failures[Cause.OVERLOAD] += 1


def _no_destination(stream: StreamTransport, reason: str) -> None:
    logger.debug("%s: a stream was closed: %s", peer_name(stream), reason)


async def answered(
    stream: ServerStream, connecting: Awaitable[StreamTransport]
) -> StreamTransport:
    """Wait for the connection to a stream's destination, and tell the client how it goes.

    Raises what `connecting` raises; the client knows then, and the stream is closed.
    """
    early = asyncio.get_running_loop().call_later(ANSWER_TIME, stream.acknowledge)
    try:
        far = await connecting
    except NetworkError as error:
        stream.acknowledge(error.outcome)
        stream.close()
        raise
    finally:
        early.cancel()
    stream.acknowledge()
    return far


def answered_at_once(
    stream: ServerStream, far: StreamTransport | None
) -> StreamTransport | None:
    """Tell the client that its destination is reached, if it is."""
    if far is not None:
        stream.acknowledge()
    return far
