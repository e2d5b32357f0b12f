"""The servers of a client: the sessions with each, and which one is asked for a stream.

They are asked in the order in which they were given. One that cannot be used rests for a while:
it comes behind the others then. After that a single stream tries it again, the others do not wait
for how that goes; and each time in vain makes the rest longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from anytls.servers import ServerChoice
from mtt.anytls_sessions import AnyTlsPool
from mtt.connector import Connector
from mtt.errors import DestinationError, MttError, NetworkError, describe
from mtt.layers.anytls_client import ClientSession
from mtt.layers.anytls_stream import ClientStream
from mtt.layers.holding import hand_over
from mtt.log import logger
from mtt.metrics import Counters
from mtt.net.dial import Dialer
from mtt.options.anytls import PoolOptions
from mtt.trust.reload import TlsFiles
from mtt.wire.anytls import password_hash

# Seconds of the first rest; each further one is twice as long. The one stream that tries a server
# whose address does not answer loses CONNECT_TIME.
FIRST_REST, LAST_REST = 30.0, 1800.0

# No further server is asked for a stream that has waited so long, seconds: the application gives up
# about now (curl and browsers: 30 s and more for a proxy). Those that were asked rest by then, so
# the next stream comes to the others.
PATIENCE = 20.0


class Upstream:
    """One server."""

    def __init__(
        self, choice: ServerChoice, options: PoolOptions, dialer: Dialer, counters: Counters
    ) -> None:
        self.name = str(choice.address)
        self.connector = Connector(
            choice.address,
            dialer,
            counters,
            server_name=choice.server_name,
            ca=choice.ca,
            pins=choice.pins,
            skip_verify=choice.insecure,
            cert=choice.cert,
            key=choice.key,
            alpn=choice.alpn,
            tls_min=choice.tls_min,
        )
        self.pool = AnyTlsPool(
            self._connect,
            password_hash(choice.password),
            min_idle=options.min_idle,
            warm=options.warm,
            check_interval=options.check_interval,
            idle_timeout=options.idle_timeout,
            reuse=options.reuse,
            on_lost=self._lost,
        )
        self._counters = counters
        self._warm = False
        self._rest = 0.0  # seconds, of the last one; 0 if it works as far as we know
        self._rests_until = 0.0

    def start(self) -> None:
        """Make the sessions of -warm, once."""
        if not self._warm:
            self._warm = True
            self.pool.start()

    @property
    def rests(self) -> bool:
        """Whether others should be asked first."""
        return _now() < self._rests_until

    def asked(self) -> None:
        """A stream tries it now; after a rest the others begin the next one meanwhile."""
        if self._rest and not self.rests:
            self._begin_rest()

    def worked(self) -> None:
        """It can be used."""
        if self._rest:
            logger.info("%s can be used again", self.name)
            self._rest = self._rests_until = 0.0
        self.start()

    def failed(self) -> None:
        """It could not be used."""
        if not self.rests:
            self._begin_rest()

    def _begin_rest(self) -> None:
        self._rest = min(2 * self._rest, LAST_REST) or FIRST_REST
        self._rests_until = _now() + self._rest

    def _lost(self, error: Exception | None) -> None:
        self._counters.session_over(error)
        if error is not None:
            # No news: whoever needs one finds out, and servers may well end idle sessions.
            logger.debug("%s: %s", self.name, describe(error))

    async def _connect(self, session: ClientSession) -> None:
        transport = await self.connector.connect()
        self._counters.sessions += 1
        hand_over(transport, session)


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
        self._servers = [Upstream(choice, options, dialer, counters) for choice in choices]

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
        started = _now()
        errors: list[MttError] = []
        for server in sorted(self._servers, key=lambda server: server.rests):
            if errors and _now() - started >= PATIENCE:
                break
            server.asked()
            try:
                stream = await server.pool.open(destination)
            except DestinationError:
                server.worked()
                raise
            except MttError as error:
                server.failed()
                errors.append(_naming(server.name, error).with_traceback(None))
            else:
                server.worked()
                for why in errors:
                    logger.warning("%s; %s is used instead", why, server.name)
                return stream
        if len(errors) == 1:
            raise errors.pop()  # and does not keep it: it refers to this frame
        raise NetworkError("; ".join(map(str, errors)), cause=errors[0].cause)

    async def close(self) -> None:
        """Cut all sessions."""
        for server in self._servers:
            await server.pool.close()


def _naming(server: str, error: MttError) -> MttError:
    """`error` with the name of the server in it; only what ends a session has none."""
    if server in str(error):
        return error
    return type(error)(f"{server}: {error}", cause=error.cause)


def _now() -> float:
    return asyncio.get_running_loop().time()
