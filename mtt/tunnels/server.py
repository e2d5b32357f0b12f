"""The base of all servers: TLS, the front of their connections, and the fallback site."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from mtt.address import Endpoint, ip_end
from mtt.errors import NetworkError
from mtt.layers.base import StreamTransport
from mtt.layers.parked import Parked
from mtt.log import logger
from mtt.net.dial import Dialer
from mtt.net.resolve import Resolver
from mtt.options.common import ServiceOptions
from mtt.trust.reload import TlsFiles, server_tls
from mtt.trust.tls_options import ServerTls
from mtt.tunnels.service import Service

if TYPE_CHECKING:
    from mtt.inbound.front import Frontend, HeadReader

# Seconds to connect to a destination of the operator's, or to the fallback site. It is near; a
# longer delay means that it is down. The original of mtt-mu-server waits as long as the system,
# that is, minutes.
DESTINATION_TIME = 10.0


class ServerService(Service):
    """Base class of all servers.

    Args:
        tls: None without TLS.
        on_session: see Frontend.

    Raises UsageError when the certificate is unusable.
    """

    def __init__(
        self,
        options: ServiceOptions,
        resolver: Resolver,
        tls: ServerTls | None,
        *,
        on_session: Callable[[Any, Any], None] | None = None,
    ) -> None:
        super().__init__(
            options,
            resolver,
            fast_open=options.fast_open,
            idle=lambda: self._frontend.idle,
            sessions=lambda: self._frontend.sessions,
            pending=lambda: len(self._frontend.handshakes),
        )
        self._tls = server_tls(tls) if tls is not None else None
        if self._tls is not None:
            self.certificates: tuple[TlsFiles, ...] = (self._tls,)
        self._fallback = options.fallback
        self._proxies = options.trusted_proxies
        self._header = options.proxy_protocol
        self._fallback_header = options.fallback_proxy_protocol
        self._on_session = on_session
        self._dialer = Dialer(resolver, timeout=DESTINATION_TIME)

    def _reader(self) -> HeadReader[Any, Any]:
        """Make the reader of the connections' heads."""
        raise NotImplementedError

    def _description(self) -> str:
        """Describe the service for the log."""
        raise NotImplementedError

    @cached_property
    def _frontend(self) -> Frontend[Any, Any]:
        from mtt.inbound.front import Frontend  # after listening: plugins must start fast

        return Frontend(
            self._reader(),
            counters=self.counters,
            context=self._tls.context if self._tls is not None else None,
            fallback=self._visit if self._fallback is not None else None,
            proxies=self._proxies,
            on_session=self._on_session,
        )

    def load(self) -> None:
        _ = self._frontend  # creates it, with its imports

    def follow(self) -> None:
        """Watch the files of certificates and configuration."""
        for files in self.certificates:
            files.follow()
        if self.configuration is not None:
            self.configuration.follow()

    def use_certificate(self, tls: TlsFiles) -> None:
        """Use another certificate for new connections; the server must have one."""
        self._tls = tls
        self._frontend.context = tls.context

    def announce(self) -> None:
        # After listening: describing a certificate is slow, and a plugin must listen quickly.
        tls = self._tls
        logger.info(
            "listening on %s, %s%s",
            ", ".join(self.addresses),
            self._description(),
            f"; {tls.description}" if tls is not None else "",
        )
        if tls is not None:
            tls.warn()

    async def close(self) -> None:
        self.cleanup()
        self._frontend.close()
        await super().close()

    def _visit(self, stream: StreamTransport) -> None:
        """Relay a connection that is not for a tunnel to the fallback site."""
        assert self._fallback is not None
        self.open_tunnels.carry(
            stream,
            partial(self._connect_to_site, self._fallback, stream),
            partial(self._connect_at_once, self._fallback, stream, self._fallback_header),
        )

    async def _connect_to_site(self, site: Endpoint, stream: StreamTransport) -> StreamTransport:
        try:
            return await self._connect(site, stream, self._fallback_header)
        except NetworkError as error:
            # Destinations fail with the same words.
            text = f"-fallback: {error}"
            raise NetworkError(text, cause=error.cause, outcome=error.outcome) from None

    def relay(self, stream: StreamTransport, destination: Endpoint) -> None:
        """Relay a parked stream to its destination."""
        self._relay(stream, destination, self._header)

    def _relay(self, stream: StreamTransport, destination: Endpoint, header: str) -> None:
        self.open_tunnels.carry(
            stream,
            partial(self._connect, destination, stream, header),
            partial(self._connect_at_once, destination, stream, header),
        )

    async def connect(self, destination: Endpoint, stream: StreamTransport) -> StreamTransport:
        """Connect to the destination of `stream`. Returns a parked connection."""
        return await self._connect(destination, stream, self._header)

    def connect_at_once(
        self, destination: Endpoint, stream: StreamTransport
    ) -> StreamTransport | None:
        """Like `connect`, without waiting; None if that is impossible."""
        return self._connect_at_once(destination, stream, self._header)

    async def _connect(
        self, destination: Endpoint, stream: StreamTransport, header: str
    ) -> StreamTransport:
        far = await self._dialer.connect(destination, Parked)
        if header:
            _name_user(far, stream, header)
        return far

    def _connect_at_once(
        self, destination: Endpoint, stream: StreamTransport, header: str
    ) -> StreamTransport | None:
        far = self._dialer.connect_at_once(destination, Parked)
        if header and far is not None:
            _name_user(far, stream, header)
        return far


def _name_user(far: StreamTransport, stream: StreamTransport, version: str) -> None:
    """Send `far` the PROXY header of this version, with the addresses of `stream`."""
    from mtt.wire import proxy_protocol

    user, own = ip_end(stream, "peername"), ip_end(stream, "sockname")
    if user is not None and own is None:  # known from HTTP headers on a unix socket
        own = ("0.0.0.0", 0)
    far.write(proxy_protocol.encode(version, user, own))
