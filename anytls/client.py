"""The client: takes what applications want to reach, and has a server carry them there."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from anytls.options import ClientOptions
from anytls.servers import ServerChoice
from anytls.upstreams import Upstreams
from mtt.errors import MttError
from mtt.layers.anytls_stream import ClientStream
from mtt.layers.base import StreamTransport
from mtt.log import logger
from mtt.net.dial import Dialer
from mtt.net.listen import bind
from mtt.net.resolve import Resolver
from mtt.observe import metrics
from mtt.outbound.connector import CONNECT_TIME
from mtt.proxy.association import Association
from mtt.proxy.port import ProxyPort
from mtt.proxy.uot_channel import GoChannel, UotChannel
from mtt.tunnels.service import Service, Session
from mtt.wire import addresses, uot

if TYPE_CHECKING:
    from mtt.observe.hub import MetricsHub

# How many servers the line at the start names.
SHOWN = 3


class Client(Service):
    """anytls-client: `start()` listens, `close()` ends everything.

    Raises UsageError when the TLS options cannot work.
    """

    _news = (MttError,)  # also that the server is gone

    def __init__(self, options: ClientOptions) -> None:
        super().__init__(timeout=options.timeout, max_conns=options.max_conns)
        self._options = options
        self._resolver = Resolver()
        dialer = Dialer(self._resolver, timeout=CONNECT_TIME)
        self._servers = Upstreams(options.servers, options.pool, dialer, self.counters)
        self._tls_files = self._servers.files
        self._proxy = ProxyPort(
            self._open,
            self._relay,
            self._own,
            self._spawn,
            open_packets=self._open_packets,
            idle_time=options.timeout,
            users=options.users,
        )

    async def bind(self) -> None:
        options = self._options
        self._listener = await bind(
            options.bind, "", resolver=self._resolver, descriptors=options.sockets
        )

    async def start(self) -> None:
        """Listen. Raises StartError when that is not possible."""
        options = self._options
        await self._listen(self._proxy.accept)
        await self._serve_metrics(options.metrics, options.metrics_unix, self._resolver)
        self._servers.start()

    def announce(self) -> None:
        servers = self._options.servers
        more = f" and {len(servers) - SHOWN} more" if len(servers) > SHOWN else ""
        logger.info(
            "listening on %s, SOCKS and HTTP, anytls to %s%s",
            ", ".join(self.addresses), ", ".join(map(_described, servers[:SHOWN])), more,
        )  # fmt: skip

    def hub(self) -> MetricsHub | None:
        return self._metrics_hub(self._options.metrics, self._options.metrics_unix)

    async def drain(self) -> None:
        self._proxy.drain()
        await super().drain()

    async def close(self) -> None:
        self.cleanup()
        self._proxy.close()
        await self._servers.close()
        await super().close()

    def metrics_page(self) -> str:
        return (
            super().metrics_page()
            + metrics.metric(
                "mtt_anytls_idle_sessions", "gauge", "Sessions that wait for a stream.",
                self._servers.idle,
            )
            + metrics.metric(
                "mtt_anytls_udp_associations", "gauge", "UDP ports of applications.",
                self._proxy.associations,
            )
        )  # fmt: skip

    def _count_handshakes(self) -> int:
        return self._servers.connecting

    def _sessions(self) -> Collection[Session]:
        return self._servers.sessions

    async def _open(self, host: str, port: int) -> StreamTransport:
        stream = await self._servers.open(addresses.encode(host, port))
        self.counters.streams += 1
        return stream

    async def _open_packets(self, association: Association) -> UotChannel | GoChannel:
        stream = await self._open_uot()
        channel = UotChannel(stream, association, self.counters)
        if stream.half_closes():  # the server is ours
            return channel
        return GoChannel(channel, association, self._open_uot, self.counters)

    async def _open_uot(self) -> ClientStream:
        stream = await self._servers.open(uot.DESTINATION)
        self.counters.streams += 1
        return stream


def _described(server: ServerChoice) -> str:
    name = f" as {server.tls.server_name}" if server.tls.server_name else ""
    return f"{server.address}{name}{' (NOT VERIFIED)' if server.tls.skip_verify else ''}"
