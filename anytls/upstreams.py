"""The servers of a client: a session pool for each, and streams from the first usable one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from anytls.servers import ServerChoice
from mtt.errors import describe
from mtt.layers.anytls_client import ClientSession
from mtt.layers.anytls_stream import ClientStream
from mtt.log import logger
from mtt.net.dial import Dialer
from mtt.observe.metrics import Counters
from mtt.options.anytls import PoolOptions
from mtt.outbound.anytls_pool import AnyTlsPool
from mtt.outbound.balancer import Balancer
from mtt.outbound.connector import Connector
from mtt.trust.reload import TlsFiles
from mtt.wire.anytls import password_hash


class AnyTlsServer:
    """One server and its session pool."""

    def __init__(
        self, choice: ServerChoice, options: PoolOptions, dialer: Dialer, counters: Counters
    ) -> None:
        self.name = str(choice.address)
        self.connector = Connector(choice.address, dialer, counters, choice.tls)
        self.pool = AnyTlsPool(
            self.connector.attach,
            password_hash(choice.password),
            on_lost=self._lost,
            **options._asdict(),
        )
        self._counters = counters

    def start(self) -> None:
        """Open the sessions of -warm, once."""
        self.pool.start()

    def _lost(self, error: Exception | None) -> None:
        self._counters.session_over(error)
        if error is not None:
            # Only at level debug: the next connection reports it, and servers end idle sessions.
            logger.debug("%s: %s", self.name, describe(error))


class Upstreams:
    """All servers.

    Args:
        choices: the servers, the preferred one first.
        options: settings of the session pools.
        dialer: connects to the servers.
        counters: counts failures and sessions.

    Raises UsageError if the TLS options of a server are unusable.
    """

    def __init__(
        self,
        choices: Sequence[ServerChoice],
        options: PoolOptions,
        dialer: Dialer,
        counters: Counters,
    ) -> None:
        self._servers = [AnyTlsServer(choice, options, dialer, counters) for choice in choices]
        self._balancer = Balancer(self._servers)

    @property
    def files(self) -> tuple[TlsFiles, ...]:
        """The certificate files to watch."""
        return tuple(server.connector.tls for server in self._servers)

    @property
    def connecting(self) -> int:
        """The number of connections being established."""
        return sum(server.connector.connecting for server in self._servers)

    @property
    def sessions(self) -> Collection[ClientSession]:
        """The established sessions with all servers."""
        return [session for server in self._servers for session in server.pool.sessions]

    @property
    def idle(self) -> int:
        """The number of idle sessions."""
        return sum(server.pool.idle for server in self._servers)

    def start(self) -> None:
        """Open sessions with the preferred server; those with others follow on demand."""
        for server in self._servers:
            server.connector.start()
        self._servers[0].start()

    async def open(self, destination: bytes) -> ClientStream:
        """A parked stream to a destination that the server has reached.

        Raises DestinationError if the destination is unreachable, and other MttErrors if no server
        is usable.
        """
        return await self._balancer.open(lambda server: server.pool.open(destination))

    async def close(self) -> None:
        """Cut all sessions."""
        for server in self._servers:
            await server.pool.close()
