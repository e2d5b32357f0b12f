"""The client: accepts applications, and carries each to the server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from socket import socket
from typing import Any

from mtt.errors import Cause, MttError, NetworkError, PeerError, RefusedError
from mtt.layers import linger
from mtt.layers.base import Data
from mtt.layers.holding import Holding, hand_over
from mtt.layers.smux import SmuxSession
from mtt.layers.tls import TlsLayer
from mtt.layers.upgrade import UpgradeClient
from mtt.layers.websocket import WebSocketLayer
from mtt.log import logger
from mtt.modes import SMUX_OFF, SMUX_ON, alpn, mode_name
from mtt.net.dial import Dialer
from mtt.net.listen import listen
from mtt.net.resolve import Resolver
from mtt.options.tunnel import ClientOptions
from mtt.relay import Relay
from mtt.service import Service, peer_name
from mtt.sessions import SessionPool
from mtt.trust import certificates
from mtt.trust.identity import check_pin
from mtt.trust.reload import Loaded, TlsFiles
from mtt.trust.resumption import Resumption

# Name lookup, TCP, TLS and WebSocket upgrade together, as the original allows with -wss.
DIAL_TIME = 10.0
# Of that, for the lookup and TCP: less, so that it is the dialler who says what was wrong.
CONNECT_TIME = 8.0
# As a plugin: how long an application may stay silent before the server is dialled for it all
# the same. Shadowsocks always speaks first, and shadowsocks-rust checks the plugin by connecting
# and closing again, which must not reach the server.
FIRST_BYTE_TIME = 0.3

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
        self._tls = TlsFiles(self._load_context, (options.ca, options.cert, options.key))
        self._tls_files = (self._tls,)
        self._resumption = Resumption()
        self._resolver = Resolver(options.fallback_dns, protect)
        self._dialer = Dialer(
            self._resolver, timeout=CONNECT_TIME, fast_open=options.fast_open, protect=protect
        )
        self.waiting: set[asyncio.Transport] = set()  # applications that have not said a word
        self.closed = False
        self._pool = SessionPool(
            self._connect_session,
            options.mux_max_stream,
            warm=options.mux_warm,
            idle_time=options.mux_idle,
            on_lost=self.counters.session_over,
        )
        self._connecting = 0  # how many connections to the server are being made

    async def start(self) -> None:
        """Listen. Raises StartError when that is not possible."""
        options = self._options
        self._listener = await listen(
            options.bind,
            "",
            self._admission.guard(lambda: _Application(self)),
            resolver=self._resolver,
            descriptors=options.sockets,
        )
        await self._serve_metrics(options.metrics, options.metrics_unix, self._resolver)
        certificates.finish_client_context(self._tls.context(), pins=options.pins)
        self._tls.follow()
        logger.info(
            "listening on %s, %s to %s as %s%s",
            ", ".join(self.addresses),
            mode_name(wss=options.wss, mux=options.mux),
            options.server,
            options.server_name,
            " (NOT VERIFIED)" if options.skip_verify else "",
        )

    async def close(self) -> None:
        self.cleanup()
        self.closed = True
        for transport in list(self.waiting):
            linger.reset(transport)
        await self._pool.close()
        await super().close()

    def _count_handshakes(self) -> int:
        return self._connecting

    def _sessions(self) -> Collection[SmuxSession]:
        return self._pool.sessions

    @property
    def waits_for_first_byte(self) -> bool:
        return self._options.plugin

    def application_ready(self, transport: asyncio.Transport) -> None:
        """An application is there and wants a tunnel."""
        self._spawn(transport, self._carry(transport))

    async def _carry(self, application: asyncio.Transport) -> None:
        if self._options.mux:
            far = await self._pool.open_stream(Holding())
            self.counters.streams += 1
            self._relay(application, far)
        else:
            self._relay(application, await self._connect(), on_done=self._tunnel_over)

    def _tunnel_over(self, relay: Relay) -> None:
        if isinstance(relay.error, RefusedError):  # TLS 1.3 tells us when we think we are in
            self.counters.failed(relay.error)

    async def _connect_session(self, session: SmuxSession) -> None:
        transport = await self._connect()
        self.counters.sessions += 1
        hand_over(transport, session)

    async def _connect(self) -> asyncio.Transport:
        """A new connection to the server, all layers up, reading paused.

        Raises PeerError or NetworkError, naming the server.
        """
        options = self._options
        holding = Holding()
        layers: list[TlsLayer] = []

        def tls_layer() -> TlsLayer:
            layers.append(self._tls_layer(holding))
            return layers[-1]

        self._connecting += 1
        try:
            async with asyncio.timeout(DIAL_TIME):
                await self._dialer.connect(options.server, tls_layer)
                transport = await holding.opened()
                return await self._upgrade(transport) if options.wss else transport
        except BaseException as error:
            for layer in layers:
                if not layer.is_closing():  # else it is busy delivering an alert
                    layer.abort()
            self._count_failure(error, connected=bool(layers))
            if isinstance(error, TimeoutError | MttError):
                self._dialer.forget(options.server)  # the address may be out of date
            if isinstance(error, TimeoutError):
                raise NetworkError(f"{options.server}: no tunnel after {DIAL_TIME:g} s") from None
            if layers and isinstance(error, PeerError | NetworkError):
                raise type(error)(f"{options.server}: {error}") from None
            raise
        finally:
            self._connecting -= 1

    def _count_failure(self, error: BaseException, *, connected: bool) -> None:
        if isinstance(error, MttError | TimeoutError):  # not when we end
            if connected:
                self.counters.failed(error)
            else:
                self.counters.dial_failures += 1

    def _load_context(self) -> Loaded:
        options = self._options
        context = certificates.client_context(
            ca=options.ca,
            skip_verify=options.skip_verify,
            pins=options.pins,
            alpn=alpn(wss=options.wss),
            cert=options.cert,
            key=options.key,
            tls_min=options.tls_min,
        )
        if self._listener is not None:  # at the start that can wait
            certificates.finish_client_context(context, pins=options.pins)
        return context, None

    def _tls_layer(self, holding: Holding) -> TlsLayer:
        options = self._options
        context = self._tls.context()
        return TlsLayer(
            holding,
            context,
            server_side=False,
            server_name=options.server_name,
            session=self._resumption.session(context),
            verify=self._check_pin if options.pins else None,
            on_end=partial(self._resumption.keep, context),
            half_close=not options.wss,
        )

    def _check_pin(self, connection: ssl.SSLObject) -> None:
        certificate = connection.getpeercert(binary_form=True)
        if certificate is None:
            raise PeerError("the server showed no certificate", cause=Cause.CERTIFICATE)
        check_pin(certificate, self._options.pins)

    async def _upgrade(self, transport: asyncio.Transport) -> asyncio.Transport:
        options = self._options
        protocol = SMUX_ON if options.mux else SMUX_OFF
        asking = UpgradeClient(transport, options.wss_path, options.server_name, (protocol,))
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
            linger.reset(transport)
        elif self._client.waits_for_first_byte:
            self._client.waiting.add(transport)
            self._timer = asyncio.get_running_loop().call_later(FIRST_BYTE_TIME, self._start)
        else:
            # At once, and before it has said anything: the destination may be the one to begin.
            self._start()

    def _start(self) -> None:
        assert self.transport is not None
        self._stop_waiting()
        self.transport.pause_reading()
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
            return True
        assert self.transport is not None
        logger.debug("%s: closed without a byte", peer_name(self.transport))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
