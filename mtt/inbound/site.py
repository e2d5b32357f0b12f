"""A port that imitates a web server, for every connection that is not a tunnel's.

The fallback site serves them. Without one, they are answered as by an nginx without pages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from mtt.address import peer_name
from mtt.errors import Cause
from mtt.http import nginx, tls_detector
from mtt.http.fallback import Visit
from mtt.http.inspector import Inspector
from mtt.http.plain import PlainVisit
from mtt.http.server import HttpServer
from mtt.http.tls_detector import TlsDetector
from mtt.inbound.front import HeadReader
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.parked import Parked, hand_over, park
from mtt.layers.tls import TlsLayer
from mtt.log import logger
from mtt.wire.http1 import Reply

# Takes over a parked connection that may still become a tunnel.
Resume = Callable[[StreamTransport], None]


class WebSite:
    """The web server of one port. Clients that offer only ALPN names not in `alpn` are refused."""

    def __init__(self, reader: HeadReader[Any, Any], alpn: Collection[str]) -> None:
        self.handshake_time = tls_detector.HANDSHAKE_TIME
        self._reader = reader
        self._alpn = [name.encode() for name in alpn]

    def accept(self, tls: TlsLayer) -> StreamProtocol:
        return TlsDetector(tls, alpn=self._alpn, on_plain=self._serve_plain)

    def visit(
        self,
        transport: StreamTransport,
        received: bytes,
        eof: bool,
        inspector: Inspector,
        on_tunnel: Resume,
        on_refused: Resume | None,
    ) -> None:
        """Begin a visit to the fallback site with what was received so far."""
        front = self._reader.front
        assert front.fallback is not None
        front.handshakes.add(transport)
        park(transport, received, eof=eof)
        upper, done = Parked(front.fallback), front.handshakes.discard
        Visit(upper, inspector, on_tunnel, on_refused, on_settled=done).start(transport)

    def log_answer(
        self, transport: StreamTransport, visitor: str, reply: Reply, address: str = ""
    ) -> None:
        """Count and log the reply to a visitor, without a fallback site.

        `address`: the visitor's, if it is not the connection's.
        """
        self._reader.front.counters.handshake_failures[Cause.PATH] += 1
        # Without the path, which may be a mistyped secret.
        name = address or peer_name(transport)
        logger.debug("%s: %s, answered %d", name, visitor, reply.status)

    def _serve_plain(self, transport: StreamTransport, received: bytes) -> None:
        front = self._reader.front
        front.handshakes.add(transport)
        done = front.handshakes.discard
        park(transport, received)
        if front.fallback is not None:
            PlainVisit(Parked(front.fallback), on_settled=done).start(transport)
        else:
            reply = nginx.page(400, nginx.PLAIN_HTTP)
            hand_over(transport, HttpServer(lambda _: reply, as_nginx=True, on_end=done))
