"""A client's connections to its server: name lookup, TCP, TLS, and the upgrade of the mode."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from mtt.address import Endpoint
from mtt.errors import Cause, MttError, NetworkError, PeerError
from mtt.layers.base import StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.layers.tls import TlsLayer
from mtt.net.dial import Dialer
from mtt.observe.metrics import Counters
from mtt.trust import certificates
from mtt.trust.identity import check_pin
from mtt.trust.reload import Loaded, TlsFiles
from mtt.trust.resumption import Resumption
from mtt.trust.tls_options import ClientTls

if TYPE_CHECKING:
    from mtt.outbound.proxy_dialer import ProxyDialer

# Seconds for name lookup, TCP, TLS and WebSocket upgrade together, as in the original with -wss.
DIAL_TIME = 10.0
# Seconds of that for lookup and TCP: less, so that the dialler's error names the cause.
CONNECT_TIME = 8.0

# Upgrades a parked TLS connection to the mode's transport. Raises MttError.
Finish = Callable[[StreamTransport], Awaitable[StreamTransport]]


class Connector:
    """Makes connections to one server.

    Args:
        server: the server's address.
        dialer: makes the TCP connections, perhaps through a proxy.
        counters: counts failures.
        tls: the client's TLS options; None to connect without TLS.
        half_close: see TlsLayer.
        on_change: called when changed certificate files have been loaded.

    Attributes:
        finish: upgrades each connection before `connect` returns it.
        connecting: number of connections being made.

    Raises UsageError when the options are unusable.
    """

    def __init__(
        self,
        server: Endpoint,
        dialer: Dialer | ProxyDialer,
        counters: Counters,
        tls: ClientTls | None,
        *,
        half_close: bool = False,
        on_change: Callable[[], object] | None = None,
    ) -> None:
        self.server = server
        self.connecting = 0
        self._dialer = dialer
        self._counters = counters
        self.finish: Finish | None = None
        self._tls = _Tls(tls, half_close, on_change) if tls is not None else None

    @property
    def files(self) -> tuple[TlsFiles, ...]:
        """The certificate files to watch."""
        return (self._tls.files,) if self._tls is not None else ()

    def start(self) -> None:
        """Finish the TLS setup that may follow listening, and watch the certificate files."""
        if self._tls is not None:
            self._tls.start()

    async def attach(self, session: asyncio.BaseProtocol) -> None:
        """Attach a session to a new connection. Raises like `connect`."""
        transport = await self.connect()
        self._counters.sessions += 1
        hand_over(transport, session)

    async def connect(
        self,
        address: str = "",
        *,
        finish: Finish | None = None,
        alpn: tuple[str, ...] | None = None,
    ) -> StreamTransport:
        """Make a connection. Its protocol is a `Parked`.

        `address`: of the server, an IP literal; empty: the dialer finds one. `finish`: instead of
        the attribute. `alpn`: names to offer instead of those in the TLS options.

        Raises PeerError or NetworkError, naming the server.
        """
        parked = Parked()
        layers: list[TlsLayer] = []

        def tls_layer() -> TlsLayer:
            assert self._tls is not None
            layers.append(self._tls.layer(parked, alpn))
            return layers[-1]

        self.connecting += 1
        try:
            async with asyncio.timeout(DIAL_TIME):
                server = self.server._replace(hosts=(address,)) if address else self.server
                await self._dialer.connect(
                    server, tls_layer if self._tls is not None else lambda: parked
                )
                transport = await parked.opened()
                finish = finish or self.finish
                return transport if finish is None else await finish(transport)
        except BaseException as error:
            for layer in layers:
                if not layer.is_closing():  # a closing layer is delivering an alert
                    layer.abort()
            self._count_failure(error, connected=bool(layers))
            if isinstance(error, TimeoutError | MttError):
                self._dialer.forget(self.server)  # the cached address may be outdated
            if isinstance(error, TimeoutError):
                # TCP is connected once there is a layer.
                reason = (
                    "connected, but no answer; check the port of -s, and the mode"
                    if layers
                    else "not connected; check -s, and firewalls"
                )
                raise NetworkError(
                    f"{self.server}: no tunnel after {DIAL_TIME:g} s: {reason}",
                    cause=Cause.TIMEOUT,
                ) from None
            if layers and isinstance(error, PeerError | NetworkError):
                raise type(error)(f"{self.server}: {error}", cause=error.cause) from None
            raise
        finally:
            self.connecting -= 1

    def _count_failure(self, error: BaseException, *, connected: bool) -> None:
        if isinstance(error, MttError | TimeoutError):  # cancellation is no failure
            if connected:
                self._counters.failed(error)
            else:
                self._counters.dial_failures += 1


class _Tls:
    """The TLS side of a connector."""

    def __init__(
        self, options: ClientTls, half_close: bool, on_change: Callable[[], object] | None
    ) -> None:
        self._options = options
        self._half_close = half_close
        self._started = False
        self.files = TlsFiles(
            self._load,
            (options.ca, options.cert, options.key),
            on_change=on_change,
            own=options.cert,
        )
        self._resumption = Resumption()

    def _load(self) -> Loaded:
        context = certificates.shared_client_context(self._options)
        if self._started:
            certificates.finish_client_context(context, pins=self._options.pins)
        return context, None

    def start(self) -> None:
        certificates.finish_client_context(self.files.context(), pins=self._options.pins)
        self._started = True
        self.files.follow()

    def layer(self, parked: Parked, alpn: tuple[str, ...] | None) -> TlsLayer:
        """The layer of a new connection, which offers `alpn`; None: what the options say."""
        context = self.files.context()
        if alpn is None or alpn == self._options.alpn:
            return self._layer(parked, context)
        # OpenSSL copies the names into a connection when that is made.
        context.set_alpn_protocols(alpn)
        try:
            return self._layer(parked, context)
        finally:
            context.set_alpn_protocols(self._options.alpn)

    def _layer(self, parked: Parked, context: ssl.SSLContext) -> TlsLayer:
        return TlsLayer(
            parked,
            context,
            server_side=False,
            server_name=self._options.server_name or None,
            session=self._resumption.session(context),
            verify=self._check_pin if self._options.pins else None,
            on_end=partial(self._resumption.keep, context),
            half_close=self._half_close,
            handshake_time=None,  # DIAL_TIME is shorter
        )

    def _check_pin(self, connection: ssl.SSLObject) -> None:
        certificate = connection.getpeercert(binary_form=True)
        if certificate is None:
            raise PeerError("the server showed no certificate", cause=Cause.CERTIFICATE)
        check_pin(certificate, self._options.pins)
