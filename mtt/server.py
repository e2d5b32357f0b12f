"""The server: takes tunnels, and carries each to the one destination."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mtt.address import Endpoint
from mtt.inbound.tunnel_front import Frontend
from mtt.layers.base import StreamTransport
from mtt.layers.holding import Holding
from mtt.log import logger
from mtt.modes import ALPN_SITE, mode_name, server_alpn
from mtt.net.dial import Dialer
from mtt.net.listen import bind
from mtt.net.resolve import Resolver
from mtt.options.tunnel import ServerOptions
from mtt.trust.reload import TlsFiles, server_tls
from mtt.tunnels.service import Service, Session
from mtt.wire.http1 import Reply, Request
from mtt.wire.servemux import ServeMux

if TYPE_CHECKING:
    from mtt.inbound.anytls_front import AnyTlsFrontend
    from mtt.layers.anytls_stream import ServerStream
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
        if options.tls is not None:
            names = server_alpn(wss=options.wss, anytls=bool(options.anytls_password))
            self._tls = server_tls(replace(options.tls, alpn=names))
            self._tls_files = (self._tls,)
        self._paths = ServeMux(options.wss_path)
        self._resolver = Resolver()
        self._dialer = Dialer(self._resolver, timeout=DESTINATION_TIME)
        self._frontend = (
            self._anytls_frontend(self._tls)
            if self._tls is not None and options.anytls_password
            else self._tunnel_frontend()
        )

    def _tunnel_frontend(self) -> Frontend[Endpoint]:
        options = self._options
        return Frontend(
            self._serve,
            counters=self.counters,
            context=self._tls.context if self._tls is not None else None,
            route=self._route if options.wss else None,
            place=options.destination,
            mux=options.mux,
            fallback=self._visit if options.fallback is not None else None,
        )

    def _anytls_frontend(self, tls: TlsFiles) -> AnyTlsFrontend[Endpoint]:
        from mtt.inbound.anytls_front import (  # not needed by other modes
            AnyTlsFrontend,
            answered,
            answered_at_once,
        )
        from mtt.trust.passwords import Passwords
        from mtt.wire.anytls import password_hash
        from mtt.wire.padding import DEFAULT, Scheme

        options = self._options
        password = password_hash(options.anytls_password)

        def serve(stream: ServerStream, destination: Endpoint, _host: str, _port: int) -> None:
            # Wherever the client asks it to lead.
            self._carry_to(
                stream,
                lambda: answered(stream, self._dialer.connect(destination, Holding)),
                at_once=lambda: answered_at_once(
                    stream, self._dialer.connect_at_once(destination, Holding)
                ),
            )

        return AnyTlsFrontend(
            serve,
            find=Passwords([(password, options.destination)]).find,
            counters=self.counters,
            context=tls.context,
            scheme=Scheme.parse(options.padding_scheme) if options.padding_scheme else DEFAULT,
            alpn=ALPN_SITE,
            fallback=self._visit if options.fallback is not None else None,
        )

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
            mode_name(
                wss=options.wss,
                mux=options.mux,
                anytls=bool(options.anytls_password),
                tls=tls is not None,
            ),
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
        sessions = self._sessions()  # those may be idle, and cost something
        if self._options.anytls_password:  # each is for one tunnel, and counts with that
            sessions = [session for session in sessions if not session.open_streams]
        return self.tunnels + len(sessions)

    def _count_handshakes(self) -> int:
        return self._frontend.pending

    def _sessions(self) -> Collection[Session]:
        return self._frontend.sessions

    def _route(self, request: Request) -> Endpoint | Reply:
        return self._paths.route(request) or self._options.destination

    def _serve(self, stream: StreamTransport, destination: Endpoint) -> None:
        self._carry_to(
            stream,
            partial(self._dialer.connect, destination, Holding),
            at_once=partial(self._dialer.connect_at_once, destination, Holding),
        )

    def _visit(self, stream: StreamTransport) -> None:
        assert self._options.fallback is not None
        self._serve(stream, self._options.fallback)
