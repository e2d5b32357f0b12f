"""anytls-client: a local proxy port whose connections an AnyTLS server carries."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from anytls.options import ClientOptions
from anytls.servers import ServerChoice
from mtt.errors import describe
from mtt.layers.anytls_stream import ClientStream
from mtt.log import logger
from mtt.net.dial import Dialer
from mtt.net.resolve import Resolver
from mtt.observe import metrics
from mtt.observe.metrics import Counters
from mtt.options.anytls import PoolOptions
from mtt.outbound.anytls_pool import AnyTlsPool
from mtt.outbound.balancer import Balancer
from mtt.outbound.connector import CONNECT_TIME, Connector
from mtt.proxy.association import Association
from mtt.proxy.handshake import ProxyHandshake
from mtt.proxy.port import ProxyPort, Route, login_of
from mtt.proxy.uot_channel import GoChannel, UotChannel
from mtt.tunnels.open_tunnels import CLIENT_LOGGED_ERRORS
from mtt.tunnels.service import Service
from mtt.wire import addresses, uot
from mtt.wire.anytls import password_hash

if TYPE_CHECKING:
    from mtt.outbound.proxy_dialer import ProxyDialer

# Number of servers named in the log line at the start.
SHOWN = 3


class Server(AnyTlsPool):
    """The session pool of one server. Raises UsageError if its TLS options are unusable."""

    def __init__(
        self, choice: ServerChoice, options: PoolOptions, direct: Dialer, counters: Counters
    ) -> None:
        dialer: Dialer | ProxyDialer = direct
        if choice.proxy is not None:
            from mtt.outbound.proxy_dialer import ProxyDialer

            dialer = ProxyDialer(direct, choice.proxy)
        self.name = str(choice.address)
        self.connector = Connector(choice.address, dialer, counters, choice.tls)
        self._counters = counters
        hashed = password_hash(choice.password)
        super().__init__(
            self.connector.attach, hashed, on_lost=self._count_end, **options._asdict()
        )

    def _count_end(self, error: Exception | None) -> None:
        self._counters.session_over(error)
        if error is not None:
            # Only at level debug: the next connection reports it, and servers end idle sessions.
            logger.debug("%s: %s", self.name, describe(error))


class Client(Service):
    """The service of anytls-client: `start()` listens, `close()` ends everything.

    Raises UsageError if the TLS options of a server are unusable.
    """

    def __init__(self, options: ClientOptions) -> None:
        resolver = Resolver()
        super().__init__(
            options, resolver, logged_errors=CLIENT_LOGGED_ERRORS,
            sessions=lambda: [each for server in self._servers for each in server.sessions],
            pending=lambda: sum(server.connector.connecting for server in self._servers),
        )  # fmt: skip
        self._options = options
        dialer = Dialer(resolver, timeout=CONNECT_TIME)
        self._servers = [
            Server(choice, options.pool, dialer, self.counters) for choice in options.servers
        ]
        self._balancer = Balancer(self._servers)
        self.certificates = tuple(
            files for server in self._servers for files in server.connector.files
        )
        route = Route(
            lambda _, host, port: self._stream(addresses.encode(host, port)), self._open_packets
        )
        users = options.users
        self._proxy = ProxyPort(
            None if users else route, self.open_tunnels,
            login=login_of(users, route) if users else None, idle_time=options.timeout,
        )  # fmt: skip

    async def start(self) -> None:
        """Listen. Raises StartError if that fails."""
        await self.serve(partial(ProxyHandshake, self._proxy))
        for server in self._servers:
            server.connector.start()
        self._servers[0].start()  # sessions with the others follow on demand

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
        for server in self._servers:
            await server.close()
        await super().close()

    def metrics_page(self) -> str:
        idle = sum(server.idle for server in self._servers)
        lines = metrics.metric("mtt_anytls_idle_sessions", "gauge", "Idle sessions.", idle)
        lines += metrics.metric(
            "mtt_anytls_udp_associations", "gauge", "UDP ports of applications.",
            self._proxy.associations,
        )  # fmt: skip
        return super().metrics_page() + lines

    async def _stream(self, destination: bytes) -> ClientStream:
        """A parked stream to a destination that the server has reached.

        Raises DestinationError if the destination is unreachable, and other MttErrors if no server
        is usable.
        """
        stream = await self._balancer.open(lambda server: server.open(destination))
        self.counters.streams += 1
        return stream

    async def _open_packets(self, association: Association) -> UotChannel | GoChannel:
        open_stream = partial(self._stream, uot.DESTINATION)
        stream = await open_stream()
        channel = UotChannel(stream, association, self.counters)
        if stream.half_closes():  # the server is this program
            return channel
        return GoChannel(channel, association, open_stream, self.counters)


def _described(server: ServerChoice) -> str:
    name = f" as {server.tls.server_name}" if server.tls.server_name else ""
    unverified = " (NOT VERIFIED)" if server.tls.skip_verify else ""
    proxy = f" through the proxy {server.proxy}" if server.proxy else ""
    return f"{server.address}{name}{unverified}{proxy}"
