"""-metrics of a service: served by itself, or reported to the hub that serves for all workers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from mtt.address import Endpoint
from mtt.log import logger
from mtt.net.resolve import Resolver

if TYPE_CHECKING:
    from mtt.observe.hub import MetricsHub, Reporter
    from mtt.observe.server import MetricsServer


class MetricsEndpoint:
    """What -metrics asks for, and nothing if it is not given.

    Args:
        page: makes the metrics.
        endpoint, unix_path: where to serve them; one of both at most.
    """

    def __init__(
        self,
        page: Callable[[], str],
        endpoint: Endpoint | None,
        unix_path: str,
        resolver: Resolver,
    ) -> None:
        self._page = page
        self._endpoint = endpoint
        self._unix_path = unix_path
        self._resolver = resolver
        self._server: MetricsServer | None = None
        self._is_worker = False
        self._hub: socket.socket | None = None
        self._reporter: Reporter | None = None

    @property
    def addresses(self) -> list[str]:
        """Where metrics are served."""
        return self._server.addresses if self._server is not None else []

    def hub(self) -> MetricsHub | None:
        """What serves the metrics of several workers."""
        if self._endpoint is None and not self._unix_path:
            return None
        from mtt.observe.hub import MetricsHub

        return MetricsHub(self._endpoint, self._unix_path)

    def report_to(self, hub: socket.socket | None) -> None:
        """Be one of several workers; `hub` leads to the hub, if there is one."""
        self._is_worker = True
        self._hub = hub

    async def start(self) -> bool:
        """Serve or report; whether anybody may ask. Raises StartError."""
        if self._hub is not None:
            from mtt.observe.hub import Reporter

            self._reporter = Reporter(self._page)
            await self._reporter.connect(self._hub)
            return True
        if self._is_worker or (self._endpoint is None and not self._unix_path):
            return False
        from mtt.observe.server import MetricsServer  # not for a plugin that must listen at once

        self._server = MetricsServer(self._page)
        await self._server.start(self._endpoint, self._unix_path, self._resolver)
        logger.info("metrics on %s", ", ".join(self.addresses))
        return True

    def cleanup(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.cleanup()

    def close(self) -> None:
        """Cut those who ask."""
        if self._server is not None:
            self._server.close()

    async def report(self) -> None:
        """Tell the hub how it ended."""
        if self._reporter is not None:
            await self._reporter.close()
