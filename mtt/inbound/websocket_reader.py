"""Connections that begin with a WebSocket request, whose path selects the target."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

from mtt.address import peer_name, user_name
from mtt.http.fallback import SITE_TIME
from mtt.http.inspector import RequestInspector
from mtt.http.server import HttpServer
from mtt.inbound.site import WebSite
from mtt.inbound.stream_reader import Serve, TunnelReader
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.layers.websocket import WebSocketLayer
from mtt.log import Throttle
from mtt.wire import alpn
from mtt.wire.foreign import LATE_V2RAY_PLUGIN
from mtt.wire.http1 import Reply, Request
from mtt.wire.upgrade import (
    DATAGRAMS,
    PREFERENCE,
    SMUX_ON,
    Upgrade,
    UpgradeRefused,
    check_hidden_request,
    is_own_key,
    read_own_key,
)

Target = TypeVar("Target")
# Returns the target of a WebSocket request, or the reply to a request that has none.
Route = Callable[[Request], Target | Reply]


class WebSocketReader(TunnelReader[Target]):
    """Turns connections into tunnels over WebSocket, multiplexed as the client chooses.

    A client chooses by its subprotocol. A client without one is v2ray-plugin or another program;
    its first data shows whether it multiplexes.

    Args:
        serve, datagrams: see TunnelReader.
        mux: whether clients without a subprotocol multiplex.
        v2ray: whether they come from V2Ray or Xray: with `mux` they always speak Mux.Cool, and
            otherwise it is recognised for any destination. Early data may be short.
        refused: called with requests that `route` answers with a reply.
        refusal: see HttpServer.
    """

    site: WebSite
    reads_http = True

    def __init__(
        self,
        serve: Serve[Target],
        route: Route[Target],
        *,
        mux: bool,
        v2ray: bool = False,
        datagrams: Serve[Target] | None = None,
        refused: Callable[[StreamTransport, Request], None] | None = None,
        refusal: Reply | None = None,
    ) -> None:
        super().__init__(serve, mux=mux, datagrams=datagrams)
        self.protocols = PREFERENCE if datagrams is None else (*PREFERENCE, DATAGRAMS)
        self.site = WebSite(self, alpn.SITE)
        self.route = route
        self.refused = refused
        self.refusal = refusal
        self._v2ray = v2ray
        self._foreign = Throttle()

    def read(self, transport: StreamTransport) -> None:
        _RequestReader(self).read(transport)

    def upgraded(self, transport: StreamTransport, target: Target, upgrade: Upgrade) -> None:
        """Begin the tunnel on an upgraded connection."""
        ours = read_own_key(upgrade.key)
        upper: StreamProtocol
        if upgrade.protocol is not None and not upgrade.early_data:
            mux = upgrade.protocol == SMUX_ON
            if upgrade.protocol == DATAGRAMS:
                assert self._datagrams is not None
                upper = _parked(self._datagrams, target)
            else:
                upper = self._session(target) if mux else _parked(self._serve, target)
        elif ours is not None or (self._v2ray and self._mux):
            mux = ours.mux_cool if ours is not None else True
            upper = self._mux_cool_session(target) if mux else _parked(self._serve, target)
        else:
            self._begin_foreign(transport, target, upgrade.early_data)
            return
        layer = WebSocketLayer(upper, client=False, half_close=ours is not None, ping=not mux)
        layer.start(transport)
        if upgrade.early_data:
            layer.receive_early(upgrade.early_data)

    def agree(self, request: Request, upgrade: Upgrade) -> Upgrade:
        """Take early data, if the client has put some where the subprotocol belongs."""
        offers = request.elements("sec-websocket-protocol")
        if upgrade.protocol is not None or len(offers) != 1 or offers[0] == DATAGRAMS:
            return upgrade
        from mtt.wire import early_data

        data = early_data.decode(offers[0], sure=self._v2ray or is_own_key(upgrade.key))
        return Upgrade(upgrade.key, offers[0], data) if data else upgrade

    def _mux_cool_session(self, target: Target) -> StreamProtocol:
        from mtt.layers.mux_cool import MuxCoolSession  # only if needed, like all of V2Ray

        return self._session(target, MuxCoolSession)

    def _begin_foreign(self, transport: StreamTransport, target: Target, early: bytes) -> None:
        """Detect whether a client without a subprotocol multiplexes, and begin its tunnel."""
        from mtt.inbound.mux_cool_detector import MuxCoolDetector
        from mtt.layers.foreign_websocket import ForeignWebSocketLayer
        from mtt.wire.mux_cool import is_head, is_plugin_head

        peer = peer_name(transport)
        handshakes = self.front.handshakes

        def known(layer: StreamTransport, is_mux: bool) -> None:
            handshakes.discard(layer)
            if is_mux:
                hand_over(layer, self._mux_cool_session(target))
            elif self._mux:
                hand_over(layer, self._session(target))
            else:
                self._serve(layer, target)

        def check(first: bytes) -> None:
            if detector.is_settled and is_plugin_head(first):
                self._foreign.warning("%s: %s", peer, LATE_V2RAY_PLUGIN)

        detector = MuxCoolDetector(
            is_head if self._v2ray else is_plugin_head,
            waiting=handshakes.add,
            known=known,
            lost=handshakes.discard,
        )
        layer = ForeignWebSocketLayer(detector, check)
        layer.start(transport)
        if early:
            layer.receive_early(early)


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
            protocols=self._reader.protocols,
            agree=self._reader.agree,
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
        if self._reader.refused is not None:
            self._reader.refused(self._transport, request)
        if self._reader.front.fallback is None:
            user = self._reader.front.named_user(self._transport, request)
            address = user_name(*user) if user is not None else ""
            self._reader.site.log_answer(self._transport, "no tunnel", found, address)
        return found

    def _upgraded(
        self, transport: StreamTransport, request: Request, upgrade: Upgrade
    ) -> None:
        user = self._reader.front.named_user(transport, request)
        if user is not None:
            # Not earlier, because a proxy may have sent requests of other users before.
            transport.bottom.set_peer(user)
        # The route is not asked again: its answer may have changed.
        self._reader.upgraded(transport, self._target, upgrade)

    def _is_tunnel(self, request: Request, early: bool) -> bool:
        try:
            protocols = self._reader.protocols
            check_hidden_request(request, protocols, early=early or request.has_body)
        except UpgradeRefused:
            return False
        return not isinstance(self._reader.route(request), Reply)

    def _fall_back(self, transport: StreamTransport, received: bytes, eof: bool) -> None:
        inspector = RequestInspector(self._is_tunnel)
        refused = None if self._is_refused else partial(self.read, is_refused=True)
        self._reader.site.visit(transport, received, eof, inspector, self.read, refused)


def _parked(serve: Serve[Target], target: Target) -> StreamProtocol:
    """The protocol of a stream that `serve` takes over."""
    return Parked(lambda layer: serve(layer, target))
