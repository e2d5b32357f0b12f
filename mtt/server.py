"""The server: takes tunnels, and carries each to the one destination."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mtt.address import Endpoint
from mtt.layers.base import StreamTransport
from mtt.layers.holding import Holding
from mtt.log import logger
from mtt.modes import MODES, described
from mtt.net.dial import Dialer
from mtt.net.listen import bind
from mtt.net.resolve import Resolver
from mtt.options.tunnel import ServerOptions
from mtt.trust.reload import TlsFiles, server_tls
from mtt.tunnels.service import Service, Session
from mtt.wire.http1 import Reply, Request
from mtt.wire.servemux import ServeMux

if TYPE_CHECKING:
    from mtt.observe.hub import MetricsHub

# The destination is near; one that needs longer to accept is not there.
DESTINATION_TIME = 10.0


class Server(Service):
    """mtt-server: `start()` listens, `close()` ends everything.

    Raises UsageError when the certificate cannot be used.
    """

    def __init__(self, options: ServerOptions) -> None:
        super().__init__(timeout=options.timeout, max_conns=options.max_conns)
        self._options = options
        self._tls: TlsFiles | None = None
        mode = MODES[options.mode]
        if options.tls is not None:
            self._tls = server_tls(replace(options.tls, alpn=mode.server_alpn))
            self._tls_files = (self._tls,)
        self._paths = ServeMux(options.wss_path)
        self._resolver = Resolver()
        self._dialer = Dialer(self._resolver, timeout=DESTINATION_TIME)
        context = self._tls.context if self._tls is not None else None
        self._frontend = mode.front(options, context, self)

    async def bind(self) -> None:
        options = self._options
        self._listener = await bind(
            options.bind,
            options.bind_unix,
            resolver=self._resolver,
            fast_open=options.fast_open,
            descriptors=options.sockets,
        )

    async def start(self) -> None:
        """Listen. Raises StartError when that is not possible."""
        options = self._options
        await self._listen(self._frontend.accept)
        await self._serve_metrics(options.metrics, options.metrics_unix, self._resolver)
        if self._tls is not None:
            self._tls.follow()

    def announce(self) -> None:
        options, tls = self._options, self._tls
        # Describing a certificate takes a moment, and a plugin must listen at once.
        logger.info(
            "listening on %s, %s, for %s%s",
            ", ".join(self.addresses),
            described(options.mode, tls=tls is not None),
            options.destination,
            f"; {tls.description}" if tls is not None else "",
        )
        if tls is not None:
            tls.warn()

    def hub(self) -> MetricsHub | None:
        return self._metrics_hub(self._options.metrics, self._options.metrics_unix)

    async def close(self) -> None:
        self.cleanup()
        self._frontend.close()
        await super().close()

    def _count_connections(self) -> int:
        return self.tunnels + self._frontend.idle  # idle sessions cost something, too

    def _count_handshakes(self) -> int:
        return self._frontend.pending

    def _sessions(self) -> Collection[Session]:
        return self._frontend.sessions

    # For the front.

    def route(self, request: Request) -> Endpoint | Reply:
        return self._paths.route(request) or self._options.destination

    def serve(self, stream: StreamTransport, destination: Endpoint) -> None:
        self.carry(
            stream, partial(self.connect, destination), partial(self.connect_at_once, destination)
        )

    def visit(self, stream: StreamTransport) -> None:
        assert self._options.fallback is not None
        self.serve(stream, self._options.fallback)

    async def connect(self, destination: Endpoint) -> StreamTransport:
        return await self._dialer.connect(destination, Holding)

    def connect_at_once(self, destination: Endpoint) -> StreamTransport | None:
        return self._dialer.connect_at_once(destination, Holding)
