"""Connections that begin with a WebSocket request, whose path selects the target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

from mtt.address import host_port, peer_name
from mtt.http.fallback import SITE_TIME
from mtt.http.inspector import RequestInspector
from mtt.http.server import HttpServer
from mtt.inbound.site import WebSite
from mtt.inbound.stream_reader import TunnelReader
from mtt.layers.base import StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.layers.websocket import ForeignWebSocketLayer, WebSocketLayer
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

Target = TypeVar("Target")
# Returns the target of a WebSocket request, or the reply to a request that has none.
Route = Callable[[Request], Target | Reply]


class WebSocketReader(TunnelReader[Target]):
    """Turns connections into tunnels over WebSocket, multiplexed if `mux` or as the client chooses.

    `serve`: see TunnelReader. `refusal`: see HttpServer.
    """

    site: WebSite
    reads_http = True

    def __init__(
        self,
        serve: Callable[[StreamTransport, Target], None],
        route: Route[Target],
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
        _RequestReader(self).read(transport)

    def upgraded(self, transport: StreamTransport, target: Target, upgrade: Upgrade) -> None:
        """Begin the tunnel on an upgraded connection."""
        mux = upgrade.protocol == SMUX_ON if upgrade.protocol else self._mux
        upper: Any
        upper = self._session(target) if mux else Parked(lambda layer: self._serve(layer, target))
        ours = is_own_key(upgrade.key)
        if ours or mux or upgrade.protocol:
            layer = WebSocketLayer(upper, client=False, half_close=ours, ping=not mux)
        else:
            layer = ForeignWebSocketLayer(upper, partial(self._check, peer_name(transport)))
        layer.start(transport)

    def _check(self, peer: str, first: bytes) -> None:
        """Log a client whose protocol the destination cannot understand."""
        if is_v2ray_plugin_mux(first):
            self._foreign.warning("%s: %s", peer, V2RAY_PLUGIN_MUX)


class _RequestReader(Generic[Target]):
    """Waits on one connection for the request for a tunnel."""

    __slots__ = ("_is_refused", "_reader", "_target", "_transport")

    _is_refused: bool  # the fallback site could not be reached
    _target: Target
    _transport: StreamTransport

    def __init__(self, reader: WebSocketReader[Target]) -> None:
        self._reader = reader

    def read(self, transport: StreamTransport, *, is_refused: bool = False) -> None:
        self._transport = transport
        self._is_refused = is_refused
        front = self._reader.front
        front.handshakes.add(transport)
        http = HttpServer(
            self._find,
            self._upgraded,
            refusal=self._reader.refusal,
            fallback=self._fall_back if front.fallback is not None else None,
            fallback_time=None if is_refused else SITE_TIME,
            as_nginx=True,
            on_failure=front.report_failure,
            on_end=front.handshakes.discard,
        )
        hand_over(transport, http)

    def _find(self, request: Request) -> Reply | None:
        found = self._reader.route(request)
        if not isinstance(found, Reply):
            self._target = found
            return None
        if self._reader.front.fallback is None:
            user = self._user(request)
            address = host_port(*user) if user is not None else ""
            self._reader.site.log_answer(self._transport, "no tunnel", found, address)
        return found

    def _upgraded(
        self, transport: StreamTransport, request: Request, upgrade: Upgrade
    ) -> None:
        user = self._user(request)
        if user is not None:
            # Only now, because a proxy may have sent requests of other users before.
            transport.bottom.set_peer(user)
        # The route is not asked again: its answer may have changed.
        self._reader.upgraded(transport, self._target, upgrade)

    def _user(self, request: Request) -> tuple[str, int] | None:
        """The address that trusted proxies name in the request."""
        proxies = self._reader.front.proxies
        if proxies is None:
            return None
        return proxies.user(self._transport.get_extra_info("peername"), request.headers)

    def _is_tunnel(self, request: Request, early: bool) -> bool:
        try:
            check_hidden_request(request, PREFERENCE, early=early or request.has_body)
        except UpgradeRefused:
            return False
        return not isinstance(self._reader.route(request), Reply)

    def _fall_back(self, transport: StreamTransport, received: bytes, eof: bool) -> None:
        inspector = RequestInspector(self._is_tunnel)
        refused = None if self._is_refused else partial(self.read, is_refused=True)
        self._reader.site.visit(transport, received, eof, inspector, self.read, refused)
