"""The HTTP server of -metrics."""

from __future__ import annotations

from collections.abc import Callable

from mtt.address import Endpoint, is_loopback
from mtt.http.access import AccessRules
from mtt.http.exchange import Exchange
from mtt.http.listener import HttpListener
from mtt.log import logger
from mtt.net.admission import Pending
from mtt.net.resolve import Resolver
from mtt.observe.metrics import CONTENT_TYPE
from mtt.wire.http1 import Reply, text_reply

# Monitoring needs one or two connections. Above the limit, the oldest is cut.
MAX_CONNECTIONS = 64


class MetricsServer(HttpListener):
    """Serves `page` at /metrics, and /healthz, at an endpoint or the path of a unix socket."""

    def __init__(self, page: Callable[[], str], endpoint: Endpoint | None, unix_path: str) -> None:
        self._page = page
        self._endpoint = endpoint
        self._unix_path = unix_path
        self._is_public = endpoint is not None and not all(map(is_loopback, endpoint.hosts))
        super().__init__(
            {"/metrics": self.answer},
            self._refuse,
            # The Host header is checked on loopback addresses, to which a hostile web site can
            # direct browsers (DNS rebinding), but not on unix sockets, nor if the metrics are
            # public anyway.
            access=AccessRules(any_name=self._is_public or endpoint is None),
            pending=Pending(MAX_CONNECTIONS, what="connections are open at -metrics"),
            name="-metrics",
            quiet=True,  # scanners reach it if it is public
        )

    async def serve(self, resolver: Resolver) -> None:
        """Listen. Raises StartError if that fails."""
        await self.start(self._endpoint, self._unix_path, resolver)
        addresses = ", ".join(self.addresses)
        if self._is_public:
            logger.warning("-metrics: anyone who can reach %s can read the metrics", addresses)
        logger.info("metrics on %s", addresses)

    async def answer(self, exchange: Exchange) -> None:
        """Answer a request for the page."""
        headers = (("Cache-Control", "no-store"), ("Content-Type", CONTENT_TYPE))
        await exchange.answer(Reply(200, headers, self._page().encode()))

    async def _refuse(self, exchange: Exchange) -> None:
        if exchange.request.path in ("/metrics", "/healthz"):
            reply = text_reply(405, "method: use GET or HEAD", ("Allow", "GET, HEAD"))
        else:
            reply = text_reply(404, "not found: this port has /metrics and /healthz")
        await exchange.answer(reply)
