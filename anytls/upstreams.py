"""The servers of a client: the sessions with each, and a stream from the first that can be used."""

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
    """One server."""

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
        """Make the sessions of -warm, once."""
        self.pool.start()

    def _lost(self, error: Exception | None) -> None:
        self._counters.session_over(error)
        if error is not None:
            # No news: whoever needs one finds out, and servers may well end idle sessions.
            logger.debug("%s: %s", self.name, describe(error))


class Upstreams:
    """All servers.

    Args:
        choices: which, the preferred one first.
        options: for the sessions with each.
        dialer: how to get there.
        counters: where failures and sessions are counted.

    Raises UsageError when the TLS options of one cannot work.
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
        """The files of certificates, to be followed."""
        return tuple(server.connector.tls for server in self._servers)

    @property
    def connecting(self) -> int:
        """How many connections are being made."""
        return sum(server.connector.connecting for server in self._servers)

    @property
    def sessions(self) -> Collection[ClientSession]:
        """Those that are up, with all servers."""
        return [session for server in self._servers for session in server.pool.sessions]

    @property
    def idle(self) -> int:
        """How many of those wait for a stream."""
        return sum(server.pool.idle for server in self._servers)

    def start(self) -> None:
        """Make sessions with the preferred server ready; others follow when they are needed."""
        for server in self._servers:
            server.connector.start()
        self._servers[0].start()

    async def open(self, destination: bytes) -> ClientStream:
        """A stream to a destination, held, after the server has reached that.

        Raises DestinationError: it could not be reached; other MttErrors: no server can be asked.
        """
        return await self._balancer.open(lambda server: server.pool.open(destination))

    async def close(self) -> None:
        """Cut all sessions."""
        for server in self._servers:
            await server.pool.close()
