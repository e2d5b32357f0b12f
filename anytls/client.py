"""anytls-client: a local proxy port whose connections an AnyTLS server carries."""

from __future__ import annotations

from functools import partial

from anytls.options import ClientOptions
from anytls.servers import ServerChoice
from anytls.upstreams import Upstreams
from mtt.layers.anytls_stream import ClientStream
from mtt.layers.base import StreamTransport
from mtt.log import logger
from mtt.net.dial import Dialer
from mtt.net.resolve import Resolver
from mtt.observe import metrics
from mtt.outbound.connector import CONNECT_TIME
from mtt.proxy.association import Association
from mtt.proxy.handshake import ProxyHandshake
from mtt.proxy.port import ProxyPort
from mtt.proxy.uot_channel import GoChannel, UotChannel
from mtt.tunnels.open_tunnels import CLIENT_LOGGED_ERRORS
from mtt.tunnels.service import Service
from mtt.wire import addresses, uot

# Number of servers named in the log line at the start.
SHOWN = 3


class Client(Service):
    """The service of anytls-client: `start()` listens, `close()` ends everything.

    Raises UsageError if the TLS options are unusable.
    """

    def __init__(self, options: ClientOptions) -> None:
        resolver = Resolver()
        super().__init__(
            options,
            resolver,
            logged_errors=CLIENT_LOGGED_ERRORS,
            sessions=lambda: self._servers.sessions,
            pending=lambda: self._servers.connecting,
        )
        self._options = options
        dialer = Dialer(resolver, timeout=CONNECT_TIME)
        self._servers = Upstreams(options.servers, options.pool, dialer, self.counters)
        self.certificates = self._servers.files
        self._proxy = ProxyPort(
            self._open,
            self.open_tunnels,
            open_packets=self._open_packets,
            idle_time=options.timeout,
            users=options.users,
        )

    async def start(self) -> None:
        """Listen. Raises StartError if that fails."""
        await self.serve(partial(ProxyHandshake, self._proxy))
        self._servers.start()

    def announce(self) -> None:
        servers = self._options.servers
        more = f" and {len(servers) - SHOWN} more" if len(servers) > SHOWN else ""
        logger.info(
            "listening on %s, SOCKS and HTTP, anytls to %s%s",
            ", ".join(self.addresses), ", ".join(map(_described, servers[:SHOWN])), more,
        )  # fmt: skip

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
                "mtt_anytls_idle_sessions", "gauge", "Idle sessions.",
                self._servers.idle,
            )
            + metrics.metric(
                "mtt_anytls_udp_associations", "gauge", "UDP ports of applications.",
                self._proxy.associations,
            )
        )  # fmt: skip

    async def _open(self, host: str, port: int) -> StreamTransport:
        stream = await self._servers.open(addresses.encode(host, port))
        self.counters.streams += 1
        return stream

    async def _open_packets(self, association: Association) -> UotChannel | GoChannel:
        stream = await self._open_uot()
        channel = UotChannel(stream, association, self.counters)
        if stream.half_closes():  # the server is this program
            return channel
        return GoChannel(channel, association, self._open_uot, self.counters)

    async def _open_uot(self) -> ClientStream:
        stream = await self._servers.open(uot.DESTINATION)
        self.counters.streams += 1
        return stream


def _described(server: ServerChoice) -> str:
    name = f" as {server.tls.server_name}" if server.tls.server_name else ""
    return f"{server.address}{name}{' (NOT VERIFIED)' if server.tls.skip_verify else ''}"
