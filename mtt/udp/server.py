"""The base of servers that may carry UDP."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mtt.address import Endpoint
from mtt.layers.base import StreamTransport
from mtt.net.resolve import Resolver
from mtt.options.common import ServiceOptions
from mtt.trust.tls_options import ServerTls
from mtt.tunnels.server import ServerService

if TYPE_CHECKING:
    from mtt.udp.forwarder import UdpForwarder


class DatagramServer(ServerService):
    """Base class of servers with -udp. Args: see ServerService."""

    def __init__(
        self,
        options: ServiceOptions,
        resolver: Resolver,
        tls: ServerTls | None,
        *,
        on_session: Callable[[Any, Any], None] | None = None,
    ) -> None:
        super().__init__(options, resolver, tls, on_session=on_session)
        self._resolver = resolver
        self._udp_time = options.udp_time
        self._udp: UdpForwarder | None = None

    def load(self) -> None:
        super().load()
        if self._udp_time and self._udp is None:
            from mtt.udp.forwarder import UdpForwarder  # only if needed, and after listening

            self._udp = UdpForwarder(self._resolver, self.open_tunnels, idle_time=self._udp_time)

    async def drain(self) -> None:
        if self._udp is not None:
            self._udp.close()
        await super().drain()

    def metrics_page(self) -> str:
        page = super().metrics_page()
        return page if self._udp is None else page + self._udp.metrics()

    def serve_datagrams(self, stream: StreamTransport, destination: Endpoint) -> None:
        """Serve a parked stream for datagrams; only with -udp."""
        assert self._udp is not None
        self._udp.serve(stream, destination)
