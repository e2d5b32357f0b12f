"""The base of all services, assembled from parts that each do one thing.

    Listener         listening sockets, exclusive or shared with other workers
    OpenTunnels      the tunnels and their limit
    MetricsEndpoint  serves metrics
    TlsFiles         certificates and keys, reloaded when they change
    Configuration    the configuration file, likewise, of programs that have one

A program creates the parts and adds its own: a client an upstream, a server a front.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mtt.errors import MttError
from mtt.log import logger
from mtt.net.listen import Listener, bind
from mtt.net.resolve import Resolver
from mtt.observe import metrics
from mtt.observe.endpoint import MetricsEndpoint
from mtt.observe.lag import LagMeter
from mtt.options.common import ServiceOptions
from mtt.outbound.upstream import Session
from mtt.process import runtime
from mtt.trust.reload import TlsFiles
from mtt.tunnels.open_tunnels import SERVER_LOGGED_ERRORS, OpenTunnels

if TYPE_CHECKING:
    from mtt.process.configuration import Configuration

# Seconds between checks for remaining tunnels during a drain.
DRAIN_TICK = 0.05


class Service(runtime.Service):
    """Base class of all services.

    Args:
        options: where it listens, its limits, and where it serves metrics.
        resolver: resolves the names in these.
        fast_open: listen with TCP Fast Open.
        idle, logged_errors: see OpenTunnels.
        sessions: returns the multiplexed connections.
        pending: number of connections between client and server without a tunnel yet.

    Attributes:
        certificates: the certificate files to watch; empty without TLS.
        configuration: the configuration file to watch; None without one.
        endpoint: serves or reports the metrics.
        lag: measures the event loop's lag while metrics are served.
        shares_state: whether its workers share state in a hub of its own.
        is_alone: whether its metrics include those of the process.
    """

    shares_state = False
    is_alone = True

    def __init__(
        self,
        options: ServiceOptions,
        resolver: Resolver,
        *,
        fast_open: bool = False,
        idle: Callable[[], int] = lambda: 0,
        logged_errors: tuple[type[MttError], ...] = SERVER_LOGGED_ERRORS,
        sessions: Callable[[], Collection[Session]],
        pending: Callable[[], int],
    ) -> None:
        self._bind = partial(
            bind,
            options.bind,
            options.bind_unix,
            resolver=resolver,
            descriptors=options.sockets,
            fast_open=fast_open,
        )
        # Equal if the listening sockets would be.
        self.listens_at = options.bind, options.bind_unix, options.sockets, fast_open
        self._listener: Listener | None = None
        self._guarded: Callable[[], Any] | None = None
        self._yields: Callable[[], bool] | None = None  # leave a connection to another worker?
        self.counters = metrics.Counters()
        self.open_tunnels = OpenTunnels(
            self.counters,
            timeout=options.timeout,
            max_conns=options.max_conns,
            idle=idle,
            logged_errors=logged_errors,
        )
        self.certificates: tuple[TlsFiles, ...] = ()
        self.configuration: Configuration[Any] | None = None
        self.endpoint = MetricsEndpoint(
            self.metrics_page, options.metrics, options.metrics_unix, resolver
        )
        self.lag = LagMeter()
        self._sessions = sessions
        self._pending = pending

    @property
    def addresses(self) -> list[str]:
        return self._listener.addresses if self._listener is not None else []

    @property
    def metrics_addresses(self) -> list[str]:
        """Listening addresses for metrics."""
        return self.endpoint.addresses

    @property
    def tunnels(self) -> int:
        return len(self.open_tunnels)

    @property
    def connections(self) -> int:
        """The number of connections, those without a tunnel yet included."""
        return self.open_tunnels.connections + self._pending()

    # Start.

    async def bind(self) -> None:
        self._listener = await self._bind()
        self.load()

    def load(self) -> None:
        """Load what connections need, after listening: a plugin must listen at once.

        Called before workers fork, so that they share it, and again in each of them.
        """

    async def serve(self, accept: Callable[[], Any]) -> None:
        """Accept connections; `accept` makes their protocols.

        Raises StartError, after closing all listening sockets.
        """
        if self._listener is None:
            self._listener = await self._bind()
        self._guarded = self.open_tunnels.admission.guard(accept)
        self._listener.serve(self._guarded, yields=self._yields)
        try:
            self.load()
            if await self.endpoint.start():
                self.lag.start()
                for files in self.certificates:
                    files.describe()
        except BaseException:
            self.cleanup()
            raise

    # Another service at the same address, when the configuration changes.

    async def listen(self) -> None:
        """Bind its address, and accept if it has started. Raises StartError."""
        self._listener = await self._bind()
        if self._guarded is not None:
            self._listener.serve(self._guarded, yields=self._yields)

    async def adopt(self, descriptors: Sequence[int]) -> None:
        """Use sockets that listen already. Raises StartError."""
        self._listener = await bind(None, "", resolver=Resolver(), descriptors=descriptors)

    @property
    def descriptors(self) -> list[int]:
        """Those of its listening sockets."""
        return self._listener.descriptors if self._listener is not None else []

    @property
    def is_listening(self) -> bool:
        return self._listener is not None and self._listener.is_open

    def stop_listening(self) -> None:
        """Close its listening sockets."""
        if self._listener is not None:
            self._listener.close()

    def hand_over(self, successor: Service) -> None:
        """Give the listening sockets to another service, which has not started."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.pause()
        successor._listener = listener

    def join(self, hub: socket.socket | None, is_heavy: Callable[[int], bool]) -> None:
        self._yields = lambda: is_heavy(self.connections)
        if self._listener is not None:
            self._listener.disown()
        self.endpoint.report_to(hub)

    def hub(self) -> runtime.Hub | None:
        return self.endpoint.hub()

    # Operation.

    def reload(self) -> None:
        if self.configuration is not None:
            self.configuration.reload()
        elif not any(files.files for files in self.certificates):
            logger.info("not reloaded: certificates: no option names a file")
        self.reload_files()

    def reload_files(self) -> None:
        """Reload the files of options."""
        for files in self.certificates:
            files.reload()

    def renew(self) -> None:
        for files in self.certificates:
            files.renew()

    def metrics_page(self) -> str:
        """Metrics in the Prometheus text format."""
        from mtt.observe.certificates import certificate_lines
        from mtt.observe.process import build_lines, process_lines

        tunnels, sessions = self.open_tunnels, self._sessions()
        admission = tunnels.admission
        now = metrics.Snapshot(
            connections=admission.accepted,
            refused=admission.refused,
            tunnels_refused=admission.tunnels_refused,
            handshakes=self._pending(),
            tunnels=tunnels.open,
            streams=sum(session.open_streams for session in sessions),
            sessions=len(sessions),
            bytes_up=tunnels.bytes_up,
            bytes_down=tunnels.bytes_down,
        )
        return (
            (build_lines() + process_lines() if self.is_alone else "")
            + metrics.page(self.counters, now)
            + self.lag.lines()
            + certificate_lines(self.certificates)
        )

    # Shutdown.

    def cleanup(self) -> None:
        if self._listener is not None:
            self._listener.close()
        self.endpoint.cleanup()

    async def drain(self) -> None:
        """Stop listening, and wait until the last tunnel has ended.

        Close idle mux sessions meanwhile; peers open their next stream elsewhere.
        """
        self.cleanup()
        while not self._retire_sessions() or self.tunnels:
            await asyncio.sleep(DRAIN_TICK)

    def _retire_sessions(self) -> bool:
        """Close idle sessions. Returns whether no busy session is left."""
        over = True
        for session in list(self._sessions()):
            # The last data of ended streams may still be in flight.
            if session.open_streams or session.lower.unsent():
                over = False
            elif not self.open_tunnels.opening:  # an opening tunnel may be about to use it
                session.close()
        return over

    async def close(self) -> None:
        self.cleanup()
        self.lag.stop()
        await self.endpoint.close()
        await self.open_tunnels.close()
        for files in self.certificates:
            await files.close()
        if self.configuration is not None:
            await self.configuration.close()
        await asyncio.sleep(0)  # let aborted transports close their descriptors
        await self.endpoint.report()
