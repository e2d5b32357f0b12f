"""A service: what a program runs, put together from parts that each do one thing.

    Listening        where it listens, alone or with other workers
    OpenTunnels      the tunnels, and how many there may be
    MetricsEndpoint  how it is doing, for others
    TlsFiles         certificates and keys, read again when they change

A program makes the parts and adds its own: a client an upstream, a server a front.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection
from typing import Any

from mtt.errors import MttError
from mtt.log import logger
from mtt.observe import metrics
from mtt.observe.endpoint import MetricsEndpoint
from mtt.observe.lag import LagMeter
from mtt.outbound.upstream import Session
from mtt.process.runtime import Hub
from mtt.trust.reload import TlsFiles
from mtt.tunnels.listening import Listening
from mtt.tunnels.open_tunnels import SERVER_NEWS, OpenTunnels

# Seconds between two looks at what is left when the service is to end: a blink for a person.
DRAIN_TICK = 0.05


class Service:
    """What all programs do alike, see `mtt.process.runtime.Service`.

    Args:
        listening: where it listens.
        timeout, max_conns, idle, news: see OpenTunnels.
        sessions: the multiplexed connections there are.
        pending: how many connections between the two ends are no tunnel yet.

    Attributes:
        certificates: the files to look after; empty without TLS.
        endpoint: serves the metrics; None for programs that have their own way.
        lag: measures the event loop while somebody may ask for it.
    """

    def __init__(
        self,
        listening: Listening,
        *,
        timeout: float,
        max_conns: int = 0,
        idle: Callable[[], int] = lambda: 0,
        news: tuple[type[MttError], ...] = SERVER_NEWS,
        sessions: Callable[[], Collection[Session]],
        pending: Callable[[], int],
    ) -> None:
        self.listening = listening
        self.counters = metrics.Counters()
        self.open_tunnels = OpenTunnels(
            self.counters, timeout=timeout, max_conns=max_conns, idle=idle, news=news
        )
        self.certificates: tuple[TlsFiles, ...] = ()
        self.endpoint: MetricsEndpoint | None = None
        self.lag = LagMeter()
        self._sessions = sessions
        self._pending = pending

    @property
    def addresses(self) -> list[str]:
        """Where the service listens, with the real port when port 0 was asked for."""
        return self.listening.addresses

    @property
    def metrics_addresses(self) -> list[str]:
        """Where metrics are served."""
        return self.endpoint.addresses if self.endpoint is not None else []

    @property
    def tunnels(self) -> int:
        """How many tunnels are open or being opened."""
        return len(self.open_tunnels)

    # From the start ...

    async def bind(self) -> None:
        """Take the addresses to listen on."""
        await self.listening.bind()

    async def serve(self, accept: Callable[[], Any]) -> None:
        """Listen: `accept` makes the protocols of connections. Raises StartError, all listening
        stopped."""
        await self.listening.serve(self.open_tunnels.admission.guard(accept))
        if self.endpoint is not None:
            try:
                if await self.endpoint.start():
                    self.lag.start()
            except BaseException:
                self.cleanup()
                raise

    def announce(self) -> None:
        """Say in the log what has started."""
        raise NotImplementedError

    def join(self, hub: socket.socket | None, is_heavy: Callable[[int], bool]) -> None:
        """Be one of several workers, see `mtt.process.runtime`."""
        tunnels, pending = self.open_tunnels, self._pending
        self.listening.share(lambda: is_heavy(tunnels.connections + pending()))
        if self.endpoint is not None:
            self.endpoint.report_to(hub)

    def hub(self) -> Hub | None:
        """What several workers have together."""
        return self.endpoint.hub() if self.endpoint is not None else None

    # ... while it runs ...

    def reload(self) -> None:
        """Read certificates and keys again; connections keep what they have."""
        if not any(files.files for files in self.certificates):
            logger.info("there are no certificate files to read again")
        for files in self.certificates:
            files.reload()

    def renew(self) -> None:
        """Read certificates and keys again if they have changed, before a start."""
        for files in self.certificates:
            files.renew()

    def metrics_page(self) -> str:
        """How the service is doing, in Prometheus' text format."""
        tunnels, sessions = self.open_tunnels, self._sessions()
        admission = tunnels.admission
        now = metrics.Now(
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
        return metrics.page(self.counters, now) + self.lag.lines()

    # ... to the end.

    def cleanup(self) -> None:
        """Stop listening; all that must happen even when the process is to be gone at once."""
        self.listening.close()
        if self.endpoint is not None:
            self.endpoint.cleanup()

    async def drain(self) -> None:
        """Stop listening, and wait until the last tunnel has ended.

        Mux sessions end when nothing is left in them; peers go elsewhere with their next stream.
        """
        self.cleanup()
        while not self._retire_sessions() or self.tunnels:
            await asyncio.sleep(DRAIN_TICK)

    def _retire_sessions(self) -> bool:
        """Close idle sessions; whether no session is left that holds anything."""
        over = True
        for session in list(self._sessions()):
            # What streams wrote last may still be on its way when they are gone.
            if session.open_streams or session.lower.unsent():
                over = False
            elif not self.open_tunnels.opening:  # one of them may be about to use it
                session.close()
        return over

    async def close(self) -> None:
        """Stop listening and cut all tunnels."""
        self.cleanup()
        self.lag.stop()
        if self.endpoint is not None:
            self.endpoint.close()
        await self.open_tunnels.close()
        for files in self.certificates:
            await files.close()
        await asyncio.sleep(0)  # lets aborted transports close their descriptors
        if self.endpoint is not None:
            await self.endpoint.report()
