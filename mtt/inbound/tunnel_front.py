"""The server's front: everything from an accepted connection to the byte streams of tunnels.

    TCP -> TLS (unless a proxy in front does it) -> HTTP upgrade -> WebSocket -> smux -> stream
                                                 `----- as the mode has it -----'

Each stream that comes out is handed to `serve` together with the *place* it leads to. What a place
is (an address, a user) is the business of the owner.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Generic, TypeVar

from mtt.address import peer_name
from mtt.errors import Cause, PeerError
from mtt.http import entrance
from mtt.http.entrance import Entrance
from mtt.http.fallback import SITE_TIME, Visit
from mtt.http.plain import visit_in_clear
from mtt.http.server import HttpServer
from mtt.http.watch import RequestWatch
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.foreign import ForeignWebSocketLayer
from mtt.layers.holding import Holding, hand_over
from mtt.layers.smux import SmuxSession
from mtt.layers.tls import TlsLayer
from mtt.layers.websocket import WebSocketLayer
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.net.admission import Pending
from mtt.observe.metrics import Counters
from mtt.wire import alpn
from mtt.wire.foreign import V2RAY_PLUGIN_MUX, is_v2ray_plugin_mux
from mtt.wire.http1 import Reply, Request
from mtt.wire.upgrade import (
    PREFERENCE,
    SMUX_ON,
    Upgrade,
    UpgradeRefused,
    check_hidden_request,
    is_own_key,
)

_ALPN = [name.encode() for name in alpn.SITE]

Place = TypeVar("Place")
# Where a WebSocket request leads, or the reply to a request that leads nowhere.
Route = Callable[[Request], Place | Reply]


class Frontend(Generic[Place]):
    """Turns accepted connections into streams.

    Args:
        serve: gets every stream, held, with its place; owns it from then on.
        counters: where failures, sessions and streams are counted.
        context: called for the TLS context of each connection, None to go without.
        route: with WebSocket, where a request leads.
        place: without WebSocket, where all streams lead.
        mux: streams are multiplexed; with WebSocket only if the client does not say.
        refusal: see HttpServer.
        fallback: with WebSocket, gets the stream of every visitor who does not ask for a tunnel,
            held, to be relayed to a web site.
        on_session: called with the place of every mux session when it begins and once more when
            it is over (`session.lost`).
    """

    def __init__(
        self,
        serve: Callable[[StreamTransport, Place], None],
        *,
        counters: Counters,
        context: Callable[[], ssl.SSLContext] | None,
        route: Route[Place] | None = None,
        place: Place | None = None,
        mux: bool = False,
        refusal: Reply | None = None,
        fallback: Callable[[StreamTransport], None] | None = None,
        on_session: Callable[[Place, SmuxSession], None] | None = None,
    ) -> None:
        self._serve = serve
        self._context = context
        self._route = route
        self._place = place
        self._mux = mux
        self._refusal = refusal
        self._fallback = fallback
        self._on_session = on_session
        self._counters = counters
        self._pending = Pending(on_cut=self._count_cut)
        self._failures = Throttle(FAILURE_BURST)
        self._sessions: set[SmuxSession] = set()
        self._foreign = Throttle()

    @property
    def pending(self) -> int:
        """How many connections are no tunnel yet."""
        return len(self._pending)

    @property
    def sessions(self) -> Collection[SmuxSession]:
        """The mux sessions that are up."""
        return self._sessions

    @property
    def idle(self) -> int:
        """All of those: each may be idle, and costs something."""
        return len(self._sessions)

    def accept(self) -> StreamProtocol:
        """The protocol for a new connection (a protocol factory of asyncio)."""
        holding = Holding(self._opened)
        if self._context is None:
            return holding
        if self._route is None:
            tls = TlsLayer(holding, self._context(), server_side=True, half_close=True)
        else:
            tls = TlsLayer(
                holding,
                self._context(),
                server_side=True,
                handshake_time=entrance.HANDSHAKE_TIME,
            )
        self._pending.add(tls)

        def failed(error: Exception) -> None:
            if self._pending.discard(tls):
                self._failed(tls, error)

        holding.failed = failed
        if self._route is None:
            return tls
        return Entrance(tls, alpn=_ALPN, on_plain=self._visit_in_clear)

    def _visit_in_clear(self, transport: StreamTransport, received: bytes) -> None:
        visit_in_clear(transport, received, self._pending, self._fallback)

    def close(self) -> None:
        """Cut what has not become a stream, and all sessions."""
        self._pending.close()
        for session in list(self._sessions):
            session.abort()

    def _opened(self, transport: StreamTransport) -> None:
        """The byte stream at the bottom is up."""
        if self._route is None:
            self._pending.discard(transport)
            assert self._place is not None
            self._start(transport, self._mux, self._place)
        else:
            self._serve_http(transport, self._route)

    def _serve_http(
        self,
        transport: StreamTransport,
        route: Route[Place],
        received: bytes = b"",
        *,
        is_refused: bool = False,
    ) -> None:
        """Wait for a request. `is_refused`: the fallback site could not be reached before."""
        self._pending.add(transport)
        found: list[Place] = []

        def router(request: Request) -> Reply | None:
            answer = route(request)
            if isinstance(answer, Reply):
                if self._fallback is None:
                    self._counters.handshake_failures[Cause.PATH] += 1
                    # Without the path: it may be somebody's secret with a typing error.
                    logger.debug("%s: no tunnel, answered %d", peer_name(transport), answer.status)
                return answer
            found[:] = [answer]
            return None

        def upgraded(transport: StreamTransport, request: Request, upgrade: Upgrade) -> None:
            # Not asked for again: a place may be closed to newcomers from one moment to the next.
            (place,) = found
            mux = upgrade.protocol == SMUX_ON if upgrade.protocol else self._mux
            self._start(transport, mux, place, upgrade)

        def is_tunnel(request: Request, early: bool) -> bool:
            try:
                check_hidden_request(request, PREFERENCE, early=early or request.has_body)
            except UpgradeRefused:
                return False
            return not isinstance(route(request), Reply)

        def fall_back(transport: StreamTransport, received: bytes, eof: bool) -> None:
            assert self._fallback is not None
            self._pending.add(transport)
            Visit(
                Holding(self._fallback),
                RequestWatch(is_tunnel),
                on_tunnel=go_on,
                on_refused=None if is_refused else refused,
                on_settled=lambda: self._pending.discard(transport),
            ).start(transport, received, eof)

        def http_failed(error: Exception) -> None:
            if transport in self._pending:  # not if we cut it
                self._failed(transport, error)

        def go_on(transport: StreamTransport, received: bytes) -> None:
            self._serve_http(transport, route, received)

        def refused(transport: StreamTransport, received: bytes) -> None:
            self._serve_http(transport, route, received, is_refused=True)

        http = HttpServer(
            router,
            upgraded,
            protocols=PREFERENCE,
            refusal=self._refusal,
            fallback=fall_back if self._fallback is not None else None,
            fallback_time=None if is_refused else SITE_TIME,
            as_nginx=True,
            on_failure=http_failed,
            on_end=lambda: self._pending.discard(transport),
        )
        hand_over(transport, http)
        if received:
            http.data_received(received)

    def _start(
        self,
        transport: StreamTransport,
        mux: bool,
        place: Place,
        upgrade: Upgrade | None = None,
    ) -> None:
        """All handshakes are over: the tunnel begins."""
        upper: Any
        if mux:
            upper = SmuxSession(
                accept=lambda: self._accept_stream(place),
                on_lost=lambda session, error: self._session_lost(session, place, error),
            )
            self._sessions.add(upper)
            self._counters.sessions += 1
            if self._on_session is not None:
                self._on_session(place, upper)
        elif upgrade is not None:
            upper = Holding(lambda layer: self._serve(layer, place))
        else:
            self._serve(transport, place)
            return
        if upgrade is not None:
            ours = is_own_key(upgrade.key)
            if ours or mux or upgrade.protocol:
                layer = WebSocketLayer(upper, client=False, half_close=ours, ping=not mux)
            else:
                layer = ForeignWebSocketLayer(upper, partial(self._look, peer_name(transport)))
            layer.start(transport)
        else:
            hand_over(transport, upper)

    def _look(self, peer: str, first: bytes) -> None:
        """Name a client in the log whose bytes cannot mean anything to the destination."""
        if is_v2ray_plugin_mux(first):
            self._foreign.warning("%s: %s", peer, V2RAY_PLUGIN_MUX)

    def _accept_stream(self, place: Place) -> Holding:
        self._counters.streams += 1
        return Holding(lambda stream: self._serve(stream, place))

    def _session_lost(self, session: SmuxSession, place: Place, error: Exception | None) -> None:
        self._sessions.discard(session)
        if self._on_session is not None:
            self._on_session(place, session)
        self._counters.session_over(error)
        if isinstance(error, PeerError):
            self._failures.failure(session.lower, error)
        elif error is not None:
            # Go clients close the connection under their last stream: nothing to report.
            logger.debug("%s: %s", peer_name(session.lower), error)

    def _failed(self, transport: StreamTransport, error: Exception) -> None:
        self._counters.failed(error)
        self._failures.failure(transport, error)

    def _count_cut(self) -> None:
        self._counters.handshake_failures[Cause.OVERLOAD] += 1
