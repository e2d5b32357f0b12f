"""Connections that begin with a WebSocket request, which says where they lead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from mtt.address import peer_name
from mtt.http.fallback import SITE_TIME
from mtt.http.server import HttpServer
from mtt.http.watch import RequestWatch
from mtt.inbound.site import WebSite
from mtt.inbound.stream_reader import TunnelReader
from mtt.layers.base import StreamTransport
from mtt.layers.foreign import ForeignWebSocketLayer
from mtt.layers.parked import Parked, hand_over, park
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


class WebSocketReader(TunnelReader[Place]):
    """Turns connections into tunnels over WebSocket.

    Args:
        serve: see TunnelReader.
        route: where a request leads.
        mux: streams are multiplexed if the client does not say.
        refusal: see HttpServer.
    """

    site: WebSite

    def __init__(
        self,
        serve: Callable[[StreamTransport, Place], None],
        route: Route[Place],
        *,
        mux: bool,
        refusal: Reply | None = None,
    ) -> None:
        super().__init__(serve, mux=mux)
        self.site = WebSite(self, alpn.SITE)
        self.route = route
        self.refusal = refusal
        self._foreign = Throttle()

    def read(self, transport: StreamTransport) -> None:
        _HttpHead(self).wait(transport)

    def upgraded(self, transport: StreamTransport, place: Place, upgrade: Upgrade) -> None:
        """Begin the tunnel on a connection that has been upgraded."""
        mux = upgrade.protocol == SMUX_ON if upgrade.protocol else self._mux
        upper: Any = (
            self._session(place) if mux else Parked(lambda layer: self._serve(layer, place))
        )
        ours = is_own_key(upgrade.key)
        if ours or mux or upgrade.protocol:
            layer = WebSocketLayer(upper, client=False, half_close=ours, ping=not mux)
        else:
            layer = ForeignWebSocketLayer(upper, partial(self._look, peer_name(transport)))
        layer.start(transport)

    def _look(self, peer: str, first: bytes) -> None:
        """Name a client in the log whose bytes cannot mean anything to the destination."""
        if is_v2ray_plugin_mux(first):
            self._foreign.warning("%s: %s", peer, V2RAY_PLUGIN_MUX)


class _HttpHead(Generic[Place]):
    """Waits on one connection for the request that makes it a tunnel."""

    __slots__ = ("_is_refused", "_place", "_reader", "_transport")

    _place: Place
    _transport: StreamTransport

    def __init__(self, reader: WebSocketReader[Place]) -> None:
        self._reader = reader
        self._is_refused = False  # the fallback site could not be reached

    def wait(self, transport: StreamTransport, *, is_refused: bool = False) -> None:
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
        hand_over(transport, http)

    def _find(self, request: Request) -> Reply | None:
        found = self._reader.route(request)
        if not isinstance(found, Reply):
            self._place = found
            return None
        if self._reader.front.fallback is None:
            self._reader.site.answers(self._transport, "no tunnel", found)
        return found

    def _upgraded(self, transport: StreamTransport, _: Request, upgrade: Upgrade) -> None:
        # The route is not asked again: a place may close to newcomers at any moment.
        self._reader.upgraded(transport, self._place, upgrade)

    def _is_tunnel(self, request: Request, early: bool) -> bool:
        try:
            check_hidden_request(request, PREFERENCE, early=early or request.has_body)
        except UpgradeRefused:
            return False
        return not isinstance(self._reader.route(request), Reply)

    def _fall_back(self, transport: StreamTransport, received: bytes, eof: bool) -> None:
        watch = RequestWatch(self._is_tunnel)
        refused = None if self._is_refused else partial(self.wait, is_refused=True)
        park(transport, received, eof=eof)
        self._reader.site.visit(transport, watch, self.wait, refused).start(transport)
