"""Reads what connections of tunnels begin with: a WebSocket request, or nothing at all.

Each stream is handed to `serve` together with the *place* it leads to. What a place is (an
address, a user) is the business of the server.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from mtt.address import peer_name
from mtt.http.fallback import SITE_TIME
from mtt.http.server import HttpServer
from mtt.http.watch import RequestWatch
from mtt.inbound.front import HeadReader
from mtt.layers.base import StreamTransport
from mtt.layers.foreign import ForeignWebSocketLayer
from mtt.layers.holding import Holding, hand_over, hold
from mtt.layers.smux import SmuxSession
from mtt.layers.websocket import WebSocketLayer
from mtt.log import Throttle
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

Place = TypeVar("Place")
# Where a WebSocket request leads, or the reply to a request that leads nowhere.
Route = Callable[[Request], Place | Reply]


class TunnelReader(HeadReader[Place, SmuxSession]):
    """Turns connections into tunnels, over WebSocket if there is a `route`.

    Args:
        serve: gets every stream, held, with its place; owns it from then on.
        route: with WebSocket, where a request leads.
        place: without WebSocket, where all streams lead.
        mux: streams are multiplexed; with WebSocket only if the client does not say.
        refusal: see HttpServer.
    """

    counts_sessions = True

    def __init__(
        self,
        serve: Callable[[StreamTransport, Place], None],
        *,
        route: Route[Place] | None = None,
        place: Place | None = None,
        mux: bool = False,
        refusal: Reply | None = None,
    ) -> None:
        self._serve = serve
        self._route = route
        self._place = place
        self._mux = mux
        self.refusal = refusal
        self._foreign = Throttle()
        self.alpn = alpn.SITE if route is not None else None

    def read(self, transport: StreamTransport) -> None:
        if self._route is not None:
            _HttpHead(self, self._route).wait(transport)
        else:
            self.front.handshakes.discard(transport)
            assert self._place is not None
            if self._mux:
                hand_over(transport, self._session(self._place))
            else:
                self._serve(transport, self._place)

    def upgraded(self, transport: StreamTransport, place: Place, upgrade: Upgrade) -> None:
        """Begin the tunnel on a connection that has been upgraded."""
        mux = upgrade.protocol == SMUX_ON if upgrade.protocol else self._mux
        upper: Any = (
            self._session(place) if mux else Holding(lambda layer: self._serve(layer, place))
        )
        ours = is_own_key(upgrade.key)
        if ours or mux or upgrade.protocol:
            layer = WebSocketLayer(upper, client=False, half_close=ours, ping=not mux)
        else:
            layer = ForeignWebSocketLayer(upper, partial(self._look, peer_name(transport)))
        layer.start(transport)

    def _session(self, place: Place) -> SmuxSession:
        session = SmuxSession(accept=partial(self._accept, place), on_lost=self.front.session_lost)
        self.front.begin(session, place)
        return session

    def _accept(self, place: Place) -> Holding:
        self.front.counters.streams += 1
        return Holding(lambda stream: self._serve(stream, place))

    def _look(self, peer: str, first: bytes) -> None:
        """Name a client in the log whose bytes cannot mean anything to the destination."""
        if is_v2ray_plugin_mux(first):
            self._foreign.warning("%s: %s", peer, V2RAY_PLUGIN_MUX)


class _HttpHead(Generic[Place]):
    """Waits on one connection for the request that makes it a tunnel."""

    __slots__ = ("_is_refused", "_place", "_reader", "_route", "_transport")

    _place: Place
    _transport: StreamTransport

    def __init__(self, reader: TunnelReader[Place], route: Route[Place]) -> None:
        self._reader = reader
        self._route = route
        self._is_refused = False  # the fallback site could not be reached

    def wait(
        self, transport: StreamTransport, received: bytes = b"", *, is_refused: bool = False
    ) -> None:
        self._transport = transport
        self._is_refused = is_refused
        front = self._reader.front
        front.handshakes.add(transport)
        http = HttpServer(
            self._find,
            self._upgraded,
            protocols=PREFERENCE,
            refusal=self._reader.refusal,
            fallback=self._fall_back if front.fallback is not None else None,
            fallback_time=None if is_refused else SITE_TIME,
            as_nginx=True,
            on_failure=partial(front.failed, transport),
            on_end=partial(front.handshakes.discard, transport),
        )
        if received:
            hold(transport, received)
        hand_over(transport, http)

    def _find(self, request: Request) -> Reply | None:
        found = self._route(request)
        if not isinstance(found, Reply):
            self._place = found
            return None
        if self._reader.front.fallback is None:
            self._reader.front.answers(self._transport, "no tunnel", found)
        return found

    def _upgraded(self, transport: StreamTransport, _: Request, upgrade: Upgrade) -> None:
        # The route is not asked again: a place may close to newcomers at any moment.
        self._reader.upgraded(transport, self._place, upgrade)

    def _is_tunnel(self, request: Request, early: bool) -> bool:
        try:
            check_hidden_request(request, PREFERENCE, early=early or request.has_body)
        except UpgradeRefused:
            return False
        return not isinstance(self._route(request), Reply)

    def _fall_back(self, transport: StreamTransport, received: bytes, eof: bool) -> None:
        watch = RequestWatch(self._is_tunnel)
        refused = None if self._is_refused else partial(self.wait, is_refused=True)
        hold(transport, received, eof=eof)
        self._reader.front.visit(transport, watch, self.wait, refused).start(transport)
