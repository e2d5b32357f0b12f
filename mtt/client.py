"""The client: accepts applications, and carries each to the server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from socket import socket
from typing import TYPE_CHECKING, Any

from mtt.address import peer_name
from mtt.errors import MttError, RefusedError
from mtt.layers.base import Data, StreamTransport
from mtt.layers.holding import Holding, hand_over
from mtt.layers.mux_stream import MuxStream
from mtt.layers.upgrade import UpgradeClient
from mtt.layers.websocket import WebSocketLayer
from mtt.log import logger
from mtt.modes import SMUX_OFF, SMUX_ON, alpn, mode_name
from mtt.net.dial import Dialer
from mtt.net.listen import bind
from mtt.net.resolve import Resolver
from mtt.observe import metrics
from mtt.options.tunnel import ClientOptions
from mtt.outbound.connector import CONNECT_TIME, Connector
from mtt.outbound.preconnect import Preconnected
from mtt.outbound.smux_pool import SessionPool
from mtt.tunnels.relay import Relay
from mtt.tunnels.service import Service, Session

if TYPE_CHECKING:
    from mtt.observe.hub import MetricsHub
    from mtt.outbound.anytls_pool import AnyTlsPool

# As a plugin: how long an application may stay silent before the server is dialled for it all
# the same. Shadowsocks always speaks first, and shadowsocks-rust checks the plugin by connecting
# and closing again, which must not reach the server.
FIRST_BYTE_TIME = 0.3

# Where streams of AnyTLS lead, for a server that does not care: tunnel.invalid, port 1, a name that
# never exists (RFC 6761), so that a proxy, if that is what the server is, says so.
ANYTLS_DESTINATION = b"\3\x0etunnel.invalid\0\1"

Protect = Callable[[socket], Awaitable[None]]


class Client(Service):
    """mtt-client: `start()` listens, `close()` ends everything.

    Args:
        options: what to do.
        protect: called with every outgoing socket before it connects (Android VPN).

    Raises UsageError when the TLS options cannot work.
    """

    _news = (MttError,)  # also that the server is gone

    def __init__(self, options: ClientOptions, protect: Protect | None = None) -> None:
        super().__init__(timeout=options.timeout, max_conns=options.max_conns)
        self._options = options
        self._resolver = Resolver(options.fallback_dns, protect)
        self._connector = Connector(
            options.server,
            Dialer(
                self._resolver, timeout=CONNECT_TIME, fast_open=options.fast_open, protect=protect
            ),
            self.counters,
            replace(
                options.tls,
                alpn=alpn(wss=options.wss, anytls=bool(options.anytls_password)),
            ),
            half_close=not options.wss,
            finish=self._upgrade if options.wss else None,
            on_change=lambda: self._preconnected.renew(),
        )
        self._tls_files = (self._connector.tls,)
        self._preconnected = Preconnected(
            self._connector.connect,
            options.preconnect,
            timeout=options.timeout,
            on_lost=self._count_refusal,
        )
        self._pool = SessionPool(
            self._connect_session,
            options.mux_max_stream,
            warm=options.mux_warm,
            idle_time=options.mux_idle,
            on_lost=self.counters.session_over,
        )
        self._anytls = self._anytls_pool() if options.anytls_password else None
        self.waiting: set[StreamTransport] = set()  # applications that have not said a word
        self.closed = False

    def _anytls_pool(self) -> AnyTlsPool:
        from mtt.outbound.anytls_pool import AnyTlsPool  # not needed by other modes
        from mtt.wire.anytls import password_hash

        options = self._options
        return AnyTlsPool(
            self._connect_session,
            password_hash(options.anytls_password),
            min_idle=options.pool.min_idle,
            warm=options.pool.warm,
            check_interval=options.pool.check_interval,
            idle_timeout=options.pool.idle_timeout,
            reuse=options.pool.reuse,
            on_lost=self.counters.session_over,
        )

    async def bind(self) -> None:
        options = self._options
        self._listener = await bind(
            options.bind, "", resolver=self._resolver, descriptors=options.sockets
        )

    async def start(self) -> None:
        """Listen. Raises StartError when that is not possible."""
        options = self._options
        await self._listen(lambda: _Application(self))
        await self._serve_metrics(options.metrics, options.metrics_unix, self._resolver)
        self._connector.start()
        self._preconnected.start()
        if self._anytls is not None:
            self._anytls.start()

    def announce(self) -> None:
        options = self._options
        logger.info(
            "listening on %s, %s to %s as %s%s",
            ", ".join(self.addresses),
            mode_name(wss=options.wss, mux=options.mux, anytls=bool(options.anytls_password)),
            options.server,
            options.tls.server_name,
            " (NOT VERIFIED)" if options.tls.skip_verify else "",
        )

    def hub(self) -> MetricsHub | None:
        return self._metrics_hub(self._options.metrics, self._options.metrics_unix)

    async def close(self) -> None:
        self.cleanup()
        self.closed = True
        for transport in list(self.waiting):
            transport.abort()
        await self._pool.close()
        if self._anytls is not None:
            await self._anytls.close()
        await self._preconnected.close()
        await super().close()

    async def drain(self) -> None:
        self._preconnected.stop()
        await super().drain()

    def metrics_page(self) -> str:
        return (
            super().metrics_page()
            + metrics.metric(
                "mtt_waiting_connections", "gauge", "Connections of -preconnect that wait.",
                len(self._preconnected),
            )
            + metrics.metric(
                "mtt_waiting_connections_used_total", "counter", "Tunnels that had one of them.",
                self._preconnected.used,
            )
        )  # fmt: skip

    def _count_handshakes(self) -> int:
        return self._connector.connecting

    def _sessions(self) -> Collection[Session]:
        return self._pool.sessions if self._anytls is None else self._anytls.sessions

    @property
    def waits_for_first_byte(self) -> bool:
        return self._options.plugin

    def application_ready(self, transport: StreamTransport) -> None:
        """An application is there and wants a tunnel."""
        stream = self._open_at_once()
        if stream is not None:
            self._carry_by(transport, stream)
        else:
            self._spawn(transport, self._carry(transport))

    def _open_at_once(self) -> MuxStream | None:
        """A stream on a session there is: as a rule there is one, and nothing to wait for."""
        if self._anytls is not None:
            return self._anytls.open_at_once(ANYTLS_DESTINATION)
        return self._pool.open_at_once(Holding()) if self._options.mux else None

    async def _carry(self, application: StreamTransport) -> None:
        if self._anytls is not None:
            # The application need not wait for the destination: it would not hear how that went.
            far = await self._anytls.open(ANYTLS_DESTINATION, wait=False)
            self._carry_by(application, far)
        elif self._options.mux:
            self._carry_by(application, await self._pool.open_stream(Holding()))
        else:
            self._relay(application, await self._preconnected.get(), on_done=self._tunnel_over)

    def _carry_by(self, application: StreamTransport, stream: MuxStream) -> None:
        self.counters.streams += 1
        self._relay(application, stream)

    def _tunnel_over(self, relay: Relay) -> None:
        self._count_refusal(relay.error)

    def _count_refusal(self, error: Exception | None) -> None:
        if isinstance(error, RefusedError):  # TLS 1.3 tells us when we think we are in
            self.counters.failed(error)

    async def _connect_session(self, session: asyncio.BaseProtocol) -> None:
        transport = await self._connector.connect()
        self.counters.sessions += 1
        hand_over(transport, session)

    async def _upgrade(self, transport: StreamTransport) -> StreamTransport:
        options = self._options
        protocol = SMUX_ON if options.mux else SMUX_OFF
        asking = UpgradeClient(transport, options.wss_path, options.tls.server_name, (protocol,))
        behind = await asking.answered()
        layer = WebSocketLayer(
            Holding(),
            client=True,
            random_mask=options.wss_mask,
            half_close=True,
            ping=not options.mux,
        )
        layer.start(transport, behind)
        return layer


class _Application(Holding):
    """The protocol of an application's connection until there is a tunnel for it."""

    __slots__ = ("_client", "_timer")

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self._client.closed:  # accepted in the very last moment
            transport.abort()
        elif self._client.waits_for_first_byte:
            self._client.waiting.add(transport)
            self._timer = asyncio.get_running_loop().call_later(FIRST_BYTE_TIME, self._start)
        else:
            # At once, and before it has said anything: the destination may be the one to begin.
            self._start()

    def _start(self) -> None:
        assert self.transport is not None
        self._stop_waiting()
        self._client.application_ready(self.transport)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._client.waiting.discard(self.transport)

    def data_received(self, data: Data) -> None:
        super().data_received(data)
        if self._timer is not None:
            self._start()

    def eof_received(self) -> bool:
        if self._timer is None:
            return super().eof_received()
        assert self.transport is not None
        logger.debug("%s: closed without a byte", peer_name(self.transport))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
