"""The front of a server: from an accepted connection to the streams that it carries.

    TCP -> TLS (unless a proxy in front does it) -> head -> stream, or session of streams
            `-> visitor without TLS                  `-> visitor

A `HeadReader` reads the beginning of a connection and decides what follows. The front does the
rest: it limits handshakes, counts and logs failures, and tracks sessions.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from mtt.address import peer_name
from mtt.errors import Cause, PeerError
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.mux import MuxSession
from mtt.layers.parked import Parked
from mtt.layers.tls import TlsLayer
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.net.admission import Pending
from mtt.observe.metrics import Counters

if TYPE_CHECKING:
    from mtt.options.trusted_proxies import TrustedProxies
    from mtt.wire.http1 import Request

Target = TypeVar("Target")  # what a connection is for: a user, or a destination
Session = TypeVar("Session", bound=MuxSession[Any])


class Site(Protocol):
    """A port that imitates a web server: see `mtt.inbound.site`."""

    handshake_time: float  # the limit for TLS handshakes, seconds

    def accept(self, tls: TlsLayer) -> StreamProtocol:
        """Returns the protocol of a new connection, which may turn out not to use TLS."""


class HeadReader(Generic[Target, Session]):
    """Reads the beginning of connections, and passes their streams to the server.

    Attributes:
        front: the front that it reads for; set by the front.
        site: the web server that the port imitates, if any.
        reads_http: whether HTTP proxies in front can name the user in a request.
        counts_sessions: whether a session counts as a connection besides its open streams.
    """

    front: Frontend[Target, Session]
    site: Site | None = None
    reads_http = False
    counts_sessions: bool

    def read(self, transport: StreamTransport) -> None:
        """Take over a connection after its TLS handshake.

        Keeps it in `front.handshakes` until the head is complete. Without TLS it is not there yet.
        """
        raise NotImplementedError


class Frontend(Generic[Target, Session]):
    """Turns accepted connections into streams.

    Args:
        context: returns the TLS context of a new connection; None for no TLS.
        fallback: relays the stream, parked, of every connection that is not for the tunnel to a web
            site. Without it, such clients find a web server without pages.
        proxies: the proxies in front that name their users' addresses.
        on_session: called with the target of every session when it begins, and again when it is
            over (`session.lost`).

    Attributes:
        handshakes: connections that are not tunnels yet.
    """

    def __init__(
        self,
        reader: HeadReader[Target, Session],
        *,
        counters: Counters,
        context: Callable[[], ssl.SSLContext] | None,
        fallback: Callable[[StreamTransport], None] | None = None,
        proxies: TrustedProxies | None = None,
        on_session: Callable[[Target, Session], None] | None = None,
    ) -> None:
        reader.front = self
        self._reader = reader
        self.counters = counters
        self.context = context
        self.fallback = fallback
        self.proxies = proxies
        self._on_session = on_session
        self.handshakes = Pending(on_cut=self._count_cut)
        self._failures = Throttle(FAILURE_BURST)
        self._sessions: dict[Session, Target] = {}

    @property
    def sessions(self) -> Collection[Session]:
        """The open sessions."""
        return self._sessions.keys()

    @property
    def idle(self) -> int:
        """Number of sessions that count as connections besides the open tunnels."""
        if self._reader.counts_sessions:
            return len(self._sessions)
        return sum(not session.open_streams for session in self._sessions)

    def accept(self) -> StreamProtocol:
        """Returns the protocol of a new connection (a protocol factory of asyncio)."""
        return self._accept() if self.proxies is None else self._expect_header(self.proxies)

    def _expect_header(self, proxies: TrustedProxies) -> StreamProtocol:
        from mtt.inbound.proxy_header import ProxyHeaderReader

        return ProxyHeaderReader(
            proxies,
            self._accept,
            is_required=not self._reader.reads_http,
            on_wait=self.handshakes.add,
            on_failure=self.give_up,
            on_end=self.handshakes.discard,
        )

    def _accept(self) -> StreamProtocol:
        parked = Parked(self._reader.read)
        if self.context is None:
            return parked
        site = self._reader.site
        if site is None:
            tls = TlsLayer(parked, self.context(), server_side=True, half_close=True)
        else:
            tls = TlsLayer(
                parked, self.context(), server_side=True, handshake_time=site.handshake_time
            )
        parked.failed = partial(self.give_up, tls)
        self.handshakes.add(tls)
        return tls if site is None else site.accept(tls)

    def named_user(
        self, transport: StreamTransport, request: Request
    ) -> tuple[str, int] | None:
        """The user's address, if trusted proxies name it in a request on this connection."""
        if self.proxies is None:
            return None
        return self.proxies.user(transport.get_extra_info("peername"), request.headers)

    def close(self) -> None:
        """Cut all handshakes and all sessions."""
        self.handshakes.close()
        for session in list(self._sessions):
            session.abort()

    def report_failure(self, transport: StreamTransport, error: Exception) -> None:
        """Count and log a failed handshake, unless the connection was cut to make room."""
        if transport in self.handshakes:
            self.counters.failed(error)
            self._failures.failure(transport, error)

    def give_up(self, transport: StreamTransport, error: Exception) -> None:
        """Report the failure of a connection that can no longer become a tunnel."""
        self.report_failure(transport, error)
        self.handshakes.discard(transport)

    def _count_cut(self) -> None:
        self.counters.handshake_failures[Cause.OVERLOAD] += 1

    def register(self, session: Session, target: Target) -> None:
        """Track a session, which calls `session_lost` at its end."""
        self._sessions[session] = target
        self.counters.sessions += 1
        if self._on_session is not None:
            self._on_session(target, session)

    def session_lost(self, session: Session, error: Exception | None) -> None:
        target = self._sessions.pop(session)
        if self._on_session is not None:
            self._on_session(target, session)
        self.counters.session_over(error)
        if isinstance(error, PeerError):
            self._failures.failure(session.lower, error)
        elif error is not None:
            # Go clients close the connection under their last stream: not a failure.
            logger.debug("%s: %s", peer_name(session.lower), error)
