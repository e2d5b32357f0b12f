"""The server: takes tunnels, and carries each to the one destination."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from mtt.frontend import Frontend
from mtt.layers import linger
from mtt.layers.holding import Holding
from mtt.layers.smux import SmuxSession
from mtt.log import logger
from mtt.modes import alpn, mode_name
from mtt.net.address import Endpoint
from mtt.net.dial import Dialer
from mtt.net.listen import listen
from mtt.net.resolve import Resolver
from mtt.options.tunnel import ServerOptions
from mtt.service import Service
from mtt.trust.reload import TlsFiles, server_tls
from mtt.wire.http1 import Reply, Request
from mtt.wire.servemux import ServeMux

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
        if not options.disable_tls:
            self._tls = server_tls(
                cert=options.cert,
                key=options.key,
                cert_dir=options.cert_dir,
                name=options.name,
                client_ca=options.client_ca,
                tls_min=options.tls_min,
                alpn=alpn(wss=options.wss),
            )
            self._tls_files = (self._tls,)
        self._paths = ServeMux(options.wss_path)
        self._resolver = Resolver()
        self._dialer = Dialer(self._resolver, timeout=DESTINATION_TIME)
        self._frontend = Frontend[Endpoint](
            self._serve,
            counters=self.counters,
            context=self._tls.context if self._tls is not None else None,
            route=self._route if options.wss else None,
            place=options.destination,
            mux=options.mux,
            fallback=self._visit if options.fallback is not None else None,
        )

    async def start(self) -> None:
        """Listen. Raises StartError when that is not possible."""
        options = self._options
        self._listener = await listen(
            options.bind,
            options.bind_unix,
            self._admission.guard(self._frontend.accept),
            resolver=self._resolver,
            fast_open=options.fast_open,
            descriptors=options.sockets,
        )
        await self._serve_metrics(options.metrics, options.metrics_unix, self._resolver)
        # Only now: describing a certificate takes a moment, and a plugin must listen at once.
        tls = self._tls
        if tls is not None:
            tls.follow()
        logger.info(
            "listening on %s, %s, for %s%s",
            ", ".join(self.addresses),
            mode_name(wss=options.wss, mux=options.mux, tls=tls is not None),
            options.destination,
            f"; {tls.description}" if tls is not None else "",
        )

    async def close(self) -> None:
        self.cleanup()
        self._frontend.close()
        await super().close()

    def _count_connections(self) -> int:
        return self.tunnels + len(self._sessions())  # those may be idle, and cost something

    def _count_handshakes(self) -> int:
        return self._frontend.pending

    def _sessions(self) -> Collection[SmuxSession]:
        return self._frontend.sessions

    def _route(self, request: Request) -> Endpoint | Reply:
        return self._paths.route(request) or self._options.destination

    def _serve(self, stream: asyncio.Transport, destination: Endpoint) -> None:
        if self._admission.has_room():
            self._spawn(stream, self._carry(stream, destination))
        else:
            linger.reset(stream)

    def _visit(self, stream: asyncio.Transport) -> None:
        assert self._options.fallback is not None
        self._serve(stream, self._options.fallback)

    async def _carry(self, stream: asyncio.Transport, destination: Endpoint) -> None:
        with self.counters.dialling():
            far = await self._dialer.connect(destination, Holding)
        self._relay(stream, far)
