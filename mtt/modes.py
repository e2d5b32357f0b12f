"""The table of tunnel modes: the client's upstream and the server's reader of each.

A new mode needs a codec in `wire`, a layer or session in `layers`, and a row here. Each mode
imports only what it needs, because a plugin must listen quickly.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from mtt.wire import alpn

if TYPE_CHECKING:
    from mtt.address import Endpoint
    from mtt.inbound.front import HeadReader
    from mtt.layers.base import StreamTransport
    from mtt.layers.mux_tunnel import TunnelSession
    from mtt.observe.metrics import Counters
    from mtt.options.tunnel import ClientOptions, ServerOptions
    from mtt.outbound.connector import Connector, Finish
    from mtt.outbound.upstream import Upstream
    from mtt.tunnels.open_tunnels import OpenTunnels
    from mtt.wire.http1 import Reply, Request


class Owner(Protocol):
    """The server, as the reader of its connections uses it."""

    open_tunnels: OpenTunnels

    def relay(self, stream: StreamTransport, destination: Endpoint) -> None:
        """Relay a parked stream to its destination."""

    def route(self, request: Request) -> Endpoint | Reply:
        """Return the destination of a WebSocket request, or the reply that refuses it."""

    async def connect(self, destination: Endpoint, stream: StreamTransport) -> StreamTransport:
        """Connect to the destination of `stream`. Returns a parked connection."""

    def connect_at_once(
        self, destination: Endpoint, stream: StreamTransport
    ) -> StreamTransport | None:
        """Like `connect`, without waiting; None if that is impossible."""

    def serve_datagrams(self, stream: StreamTransport, destination: Endpoint) -> None:
        """Serve a parked stream for datagrams; only with -udp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """One mode, and what makes its parts."""

    name: str  # in logs, tests and benchmarks
    options: tuple[str, ...]  # select it, on client and server
    has_password: bool = False  # both ends need a password (-p)
    is_original: bool = True  # the Go programs support it
    has_sessions: bool = False  # streams share connections
    client_alpn: tuple[str, ...]  # ALPN names that the client offers
    server_alpn: tuple[str, ...]  # ALPN names that the server supports
    half_close: bool  # see TlsLayer
    # The client's upgrade on top of TLS, if there is one; its upstream; the server's reader of
    # connection heads.
    upgrade: Callable[[ClientOptions], Finish | None] = lambda _: None
    upstream: Callable[[ClientOptions, Connector, Counters], Upstream]
    reader: Callable[[ServerOptions, Owner], HeadReader[Endpoint, Any]]
    # How the client opens a stream for datagrams, and whether it then knows that the server carries
    # them.
    agrees_to_datagrams: bool = True
    open_datagrams: Callable[[ClientOptions, Connector, Upstream], Awaitable[StreamTransport]]

    def command_line(self, password: str) -> tuple[str, ...]:
        """The command-line arguments that select the mode, for either end."""
        arguments = tuple(f"-{option}" for option in self.options)
        return (*arguments, "-p", password) if self.has_password else arguments


def _websocket(
    options: ClientOptions,
    protocols: tuple[str, ...],
    *,
    needs: str = "",
    mux_cool: bool = False,
    ping: bool = True,
) -> Finish:
    """The upgrade to a WebSocket.

    Args:
        protocols: subprotocols that the request names.
        needs: the error if the server does not agree to the first of them; empty: it need not.
        mux_cool: see UpgradeClient.
        ping: see WebSocketLayer.
    """
    from mtt.layers.parked import Parked
    from mtt.layers.upgrade import UpgradeClient
    from mtt.layers.websocket import WebSocketLayer

    async def upgrade(transport: StreamTransport) -> StreamTransport:
        client = UpgradeClient(
            transport, options.wss_path, options.tls.server_name, protocols, mux_cool=mux_cool
        )
        await client.answered()
        if needs and client.protocol != protocols[0]:
            from mtt.errors import PeerError

            raise PeerError(needs)
        layer = WebSocketLayer(
            Parked(), client=True, random_mask=options.wss_mask, half_close=True, ping=ping
        )
        layer.start(transport)
        return layer

    return upgrade


def _original_websocket(options: ClientOptions) -> Finish:
    from mtt.wire.upgrade import SMUX_OFF, SMUX_ON

    protocol = SMUX_ON if options.mux else SMUX_OFF
    return _websocket(options, (protocol,), ping=not options.mux)


def _v2ray_websocket(options: ClientOptions) -> Finish:
    # Without a subprotocol: Xray takes any for early data.
    return _websocket(options, (), mux_cool=options.mux, ping=not options.mux)


def _early_websocket(options: ClientOptions, data: bytes) -> Finish:
    """The upgrade with early data, if there is any."""
    if not data:
        return _v2ray_websocket(options)
    from mtt.wire.early_data import NOT_TAKEN, encode

    return _websocket(options, (encode(data),), needs=NOT_TAKEN)


def _connections(options: ClientOptions, connector: Connector, counters: Counters) -> Upstream:
    from mtt.outbound.preconnect import PreconnectPool

    return PreconnectPool(
        connector.connect,
        options.preconnect,
        timeout=options.timeout,
        on_lost=counters.connection_over,
    )


def _v2ray(options: ClientOptions, connector: Connector, counters: Counters) -> Upstream:
    if not options.early_data:
        return _connections(options, connector, counters)
    from mtt.outbound.early_data import EarlyDataUpstream

    return EarlyDataUpstream(
        connector,
        partial(_early_websocket, options),
        options.early_data,
        on_lost=counters.connection_over,
    )


def _smux(options: ClientOptions, connector: Connector, counters: Counters) -> Upstream:
    from mtt.layers.smux import SmuxSession

    return _sessions(SmuxSession, options, connector, counters)


def _mux_cool(options: ClientOptions, connector: Connector, counters: Counters) -> Upstream:
    from mtt.layers.mux_cool import MuxCoolSession

    return _sessions(MuxCoolSession, options, connector, counters)


def _sessions(
    kind: type[TunnelSession], options: ClientOptions, connector: Connector, counters: Counters
) -> Upstream:
    from mtt.outbound.session_pool import SessionPool

    return SessionPool(
        connector.attach,
        kind,
        options.mux_max_stream,
        warm=options.mux_warm,
        idle_time=options.mux_idle,
        on_lost=counters.session_over,
    )


def _anytls(options: ClientOptions, connector: Connector, counters: Counters) -> Upstream:
    from mtt.outbound.anytls_pool import AnyTlsPool
    from mtt.wire.anytls import password_hash

    return AnyTlsPool(
        connector.attach,
        password_hash(options.anytls_password),
        on_lost=counters.session_over,
        **options.pool._asdict(),
    )


async def _datagram_connection(
    options: ClientOptions, connector: Connector, upstream: Upstream
) -> StreamTransport:
    return await connector.connect(alpn=alpn.DATAGRAMS)


async def _datagram_websocket(
    options: ClientOptions, connector: Connector, upstream: Upstream
) -> StreamTransport:
    from mtt.wire.datagrams import NO_ANSWER
    from mtt.wire.upgrade import DATAGRAMS

    return await connector.connect(finish=_websocket(options, (DATAGRAMS,), needs=NO_ANSWER))


async def _datagram_stream(
    options: ClientOptions, connector: Connector, upstream: Upstream
) -> StreamTransport:
    from mtt.outbound.anytls_pool import AnyTlsPool
    from mtt.wire.addresses import encode
    from mtt.wire.datagrams import HOST

    assert isinstance(upstream, AnyTlsPool)
    return await upstream.open(encode(HOST, 1))


def _stream_reader(options: ServerOptions, owner: Owner) -> HeadReader[Endpoint, Any]:
    from mtt.inbound.stream_reader import StreamReader

    datagrams = owner.serve_datagrams if options.udp_time else None
    return StreamReader(owner.relay, options.destination, mux=options.mux, datagrams=datagrams)


def _websocket_reader(options: ServerOptions, owner: Owner) -> HeadReader[Endpoint, Any]:
    from mtt.inbound.websocket_reader import WebSocketReader

    datagrams = owner.serve_datagrams if options.udp_time else None
    return WebSocketReader(
        owner.relay, owner.route, mux=options.mux, v2ray=options.v2ray, datagrams=datagrams
    )


def _anytls_reader(options: ServerOptions, owner: Owner) -> HeadReader[Endpoint, Any]:
    from mtt.errors import PeerError
    from mtt.inbound.anytls_answer import report_outcome, report_reached
    from mtt.inbound.anytls_reader import AnyTlsReader
    from mtt.layers.anytls_server import ServerStream
    from mtt.outcome import Outcome
    from mtt.trust.passwords import Passwords
    from mtt.wire.anytls import password_hash
    from mtt.wire.datagrams import HOST, NOT_SERVED
    from mtt.wire.padding import DEFAULT, Scheme

    def serve(stream: ServerStream, destination: Endpoint, host: str, _port: int) -> None:
        # The client's requested destination is ignored: this is a tunnel.
        if host == HOST:
            serve_datagrams(stream, destination)
            return
        owner.open_tunnels.carry(
            stream,
            lambda: report_outcome(stream, owner.connect(destination, stream)),
            lambda: report_reached(stream, owner.connect_at_once(destination, stream)),
        )

    def serve_datagrams(stream: ServerStream, destination: Endpoint) -> None:
        if options.udp_time:
            stream.acknowledge()
            owner.serve_datagrams(stream, destination)
        else:
            owner.open_tunnels.failed(stream, PeerError(NOT_SERVED))
            stream.acknowledge(Outcome.NOT_ALLOWED)
            stream.close()

    return AnyTlsReader(
        serve,
        find=Passwords([(password_hash(options.anytls_password), options.destination)]).find,
        scheme=Scheme.parse(options.padding_scheme) if options.padding_scheme else DEFAULT,
        alpn=alpn.SITE,
    )


_over_tls = partial(
    Mode,
    client_alpn=alpn.STREAM,
    server_alpn=alpn.STREAM,
    half_close=True,
    reader=_stream_reader,
    agrees_to_datagrams=False,
    open_datagrams=_datagram_connection,
)
_over_websocket = partial(
    Mode,
    client_alpn=alpn.WEBSOCKET,
    server_alpn=alpn.SITE,
    half_close=False,
    upgrade=_original_websocket,
    reader=_websocket_reader,
    open_datagrams=_datagram_websocket,
)
_over_v2ray = partial(_over_websocket, is_original=False, upgrade=_v2ray_websocket)
_TABLE = (
    _over_tls(name="tls", options=(), upstream=_connections),
    _over_websocket(name="wss", options=("wss",), upstream=_connections),
    _over_tls(name="mux", options=("mux",), has_sessions=True, upstream=_smux),
    _over_websocket(name="wss+mux", options=("wss", "mux"), has_sessions=True, upstream=_smux),
    _over_v2ray(name="v2ray", options=("v2ray",), upstream=_v2ray),
    _over_v2ray(
        name="v2ray+mux", options=("v2ray", "mux"), has_sessions=True, upstream=_mux_cool
    ),
    Mode(
        name="anytls",
        options=("anytls",),
        has_password=True,
        is_original=False,
        has_sessions=True,
        client_alpn=alpn.WEBSOCKET,
        server_alpn=alpn.SITE,
        half_close=True,
        upstream=_anytls,
        reader=_anytls_reader,
        open_datagrams=_datagram_stream,
    ),
)
MODES = {mode.name: mode for mode in _TABLE}


def describe_mode(mode: str, *, tls: bool = True, udp: bool) -> str:
    """A mode, perhaps with -udp, for the log; without `tls`, a proxy in front terminates TLS."""
    if not tls:
        mode = "plain TCP" if mode == "tls" else f"{mode} without TLS"
    return f"{mode} and UDP" if udp else mode
