"""The HTTP server of -metrics."""

from __future__ import annotations

from collections.abc import Callable

from mtt.address import Endpoint, is_loopback
from mtt.http.access import Access
from mtt.http.limits import OPERATORS
from mtt.http.server import HttpServer
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.log import logger
from mtt.net.admission import Pending
from mtt.net.listen import Listener, listen
from mtt.net.resolve import Resolver
from mtt.observe.metrics import CONTENT_TYPE
from mtt.wire.http1 import Reply, Request, text_reply

# Monitoring needs one or two connections. Above the limit, the oldest is cut.
MAX_CONNECTIONS = 64


class MetricsServer:
    """Serves GET /metrics and GET /healthz, from `start()` to `close()`.

    Args:
        page: returns the text of `/metrics`.
    """

    def __init__(self, page: Callable[[], str]) -> None:
        self._page = page
        self._access = Access()
        self._listener: Listener | None = None
        self._connections = Pending(
            MAX_CONNECTIONS, what="connections are open at -metrics"
        )

    @property
    def addresses(self) -> list[str]:
        """The addresses it listens on, with the actual port if port 0 was asked for."""
        return self._listener.addresses if self._listener is not None else []

    async def start(self, endpoint: Endpoint | None, unix_path: str, resolver: Resolver) -> None:
        """Listen on one of the two. Raises StartError if that fails."""
        public = endpoint is not None and not all(map(is_loopback, endpoint.hosts))
        # The Host header is checked on loopback addresses, to which a hostile web site can direct
        # browsers (DNS rebinding), but not on unix sockets, nor if the metrics are public anyway.
        self._access = Access(any_name=public or endpoint is None)
        self._listener = await listen(
            endpoint, unix_path, self._accept, resolver=resolver, private=True, use_reserve=True
        )
        if public:
            logger.warning(
                "-metrics: anyone who can reach %s can read the metrics", ", ".join(self.addresses)
            )

    def cleanup(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.close()

    def close(self) -> None:
        """Stop listening and cut all connections."""
        self.cleanup()
        self._connections.close()

    def _accept(self) -> StreamProtocol:
        return Parked(self._opened)

    def _opened(self, transport: StreamTransport) -> None:
        self._connections.add(transport)
        http = HttpServer(
            self._answer,
            on_end=lambda: self._connections.discard(transport),
            limits=OPERATORS,
        )
        hand_over(transport, http)

    def _answer(self, request: Request) -> Reply:
        refusal = self._access.refusal(request)
        if refusal is not None:
            return text_reply(*refusal)
        if request.path not in ("/metrics", "/healthz"):
            return text_reply(404, "there are /metrics and /healthz")
        if request.method not in ("GET", "HEAD"):
            return text_reply(405, "only GET and HEAD", ("Allow", "GET, HEAD"))
        if request.path == "/healthz":
            return text_reply(200, "ok")
        headers = (("Cache-Control", "no-store"), ("Content-Type", CONTENT_TYPE))
        return Reply(200, headers, self._page().encode())
