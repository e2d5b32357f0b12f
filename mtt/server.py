"""The server: accepts tunnels and relays them to its destination."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from mtt.address import Endpoint
from mtt.layers.base import StreamTransport
from mtt.layers.parked import Parked
from mtt.log import logger
from mtt.modes import MODES, describe_mode
from mtt.net.dial import Dialer
from mtt.net.resolve import Resolver
from mtt.options.tunnel import ServerOptions
from mtt.trust.reload import TlsFiles, server_tls
from mtt.tunnels.service import Service
from mtt.wire.http1 import Reply, Request
from mtt.wire.servemux import ServeMux

if TYPE_CHECKING:
    from mtt.inbound.front import Frontend

# Seconds to connect to the destination. It is near; a longer delay means that it is down.
DESTINATION_TIME = 10.0


class Server(Service):
    """mtt-server: `start()` listens, `close()` ends everything.

    Raises UsageError when the certificate is unusable.
    """

    def __init__(self, options: ServerOptions) -> None:
        resolver = Resolver()
        super().__init__(
            options,
            resolver,
            fast_open=options.fast_open,
            idle=lambda: self._frontend.idle,
            sessions=lambda: self._frontend.sessions,
            pending=lambda: self._frontend.pending,
        )
        self._options = options
        self._tls: TlsFiles | None = None
        mode = MODES[options.mode]
        if options.tls is not None:
            self._tls = server_tls(replace(options.tls, alpn=mode.server_alpn))
            self.certificates = (self._tls,)
        self._paths = ServeMux(options.wss_path)
        self._dialer = Dialer(resolver, timeout=DESTINATION_TIME)

    @cached_property
    def _frontend(self) -> Frontend[Endpoint, Any]:
        from mtt.inbound.front import Frontend

        options = self._options
        return Frontend(
            MODES[options.mode].reader(options, self),
            counters=self.counters,
            context=self._tls.context if self._tls is not None else None,
            fallback=self._visit if options.fallback is not None else None,
        )

    def load(self) -> None:
        _ = self._frontend  # creates it, with its imports

    async def start(self) -> None:
        """Start listening. Raises StartError."""
        await self.serve(lambda: self._frontend.accept())
        if self._tls is not None:
            self._tls.follow()

    def announce(self) -> None:
        options, tls = self._options, self._tls
        # After listening: describing a certificate is slow, and a plugin must listen quickly.
        logger.info(
            "listening on %s, %s, for %s%s",
            ", ".join(self.addresses),
            describe_mode(options.mode, tls=tls is not None),
            options.destination,
            f"; {tls.description}" if tls is not None else "",
        )
        if tls is not None:
            tls.warn()

    async def close(self) -> None:
        self.cleanup()
        self._frontend.close()
        await super().close()

    def _visit(self, stream: StreamTransport) -> None:
        assert self._options.fallback is not None
        self.relay(stream, self._options.fallback)

    # Called by the reader of connection heads.

    def route(self, request: Request) -> Endpoint | Reply:
        return self._paths.route(request) or self._options.destination

    def relay(self, stream: StreamTransport, destination: Endpoint) -> None:
        self.open_tunnels.carry(
            stream, partial(self.connect, destination), partial(self.connect_at_once, destination)
        )

    async def connect(self, destination: Endpoint) -> StreamTransport:
        return await self._dialer.connect(destination, Parked)

    def connect_at_once(self, destination: Endpoint) -> StreamTransport | None:
        return self._dialer.connect_at_once(destination, Parked)
