"""The -metrics of a service: served by itself, or reported to the hub of all workers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from mtt.address import Endpoint
from mtt.net.resolve import Resolver

if TYPE_CHECKING:
    from mtt.observe.hub import MetricsHub, Reporter
    from mtt.observe.server import MetricsServer


class MetricsEndpoint:
    """Publishes `page` as -metrics says: at an endpoint or a unix socket; else does nothing."""

    def __init__(
        self, page: Callable[[], str], endpoint: Endpoint | None, unix_path: str, resolver: Resolver
    ) -> None:
        self._page = page
        self._address = (endpoint, unix_path) if endpoint is not None or unix_path else None
        self._resolver = resolver
        self._server: MetricsServer | None = None
        self._hub: socket.socket | None = None
        self._reporter: Reporter | None = None

    @property
    def addresses(self) -> list[str]:
        """The addresses at which metrics are served."""
        return self._server.addresses if self._server is not None else []

    def hub(self) -> MetricsHub | None:
        """The hub that serves the metrics of several workers."""
        if self._address is None:
            return None
        from mtt.observe.hub import MetricsHub

        return MetricsHub(*self._address)

    def report_to(self, hub: socket.socket | None) -> None:
        """Run as one of several workers; `hub` is a socket to the hub, if there is one."""
        self._address = None  # the hub serves there
        self._hub = hub

    async def start(self) -> bool:
        """Start to serve or report; returns whether metrics are published. Raises StartError."""
        if self._hub is not None:
            from mtt.observe.hub import Reporter

            self._reporter = Reporter(self._page)
            await self._reporter.connect(self._hub)
        elif self._address is not None:
            from mtt.observe.server import MetricsServer  # only if needed: plugins must start fast

            self._server = MetricsServer(self._page, *self._address)
            await self._server.serve(self._resolver)
        return self._reporter is not None or self._server is not None

    def cleanup(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.cleanup()

    async def close(self) -> None:
        """Cut the connections of the metrics server."""
        if self._server is not None:
            await self._server.close()

    async def report(self) -> None:
        """Send the hub the final metrics."""
        if self._reporter is not None:
            await self._reporter.close()
