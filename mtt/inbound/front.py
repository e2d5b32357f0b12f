"""The front of a server: from an accepted connection to the streams that it carries.

    TCP -> TLS (unless a proxy in front does it) -> head -> stream, or session of streams
            `-> visitor without TLS                  `-> visitor

A `HeadReader` reads what a connection begins with and decides what follows. The front owns the
rest: the number of handshakes under way, failures and their log lines, visits to the fallback
site, and the sessions that are up.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from mtt.address import peer_name
from mtt.errors import Cause, PeerError
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.mux import MuxSession
from mtt.layers.parked import Parked
from mtt.layers.tls import TlsLayer
from mtt.log import FAILURE_BURST, Throttle, logger
from mtt.net.admission import Pending
from mtt.observe.metrics import Counters

Who = TypeVar("Who")  # the user of a session, or the place that it leads to
Session = TypeVar("Session", bound=MuxSession[Any])


class Site(Protocol):
    """A port that imitates a web server: see `mtt.inbound.site`.

    Attributes:
        handshake_time: seconds that a web server gives to a TLS handshake.
    """

    handshake_time: float

    def enter(self, tls: TlsLayer) -> StreamProtocol:
        """The protocol of a new connection, which may turn out to be a visitor's without TLS."""


class HeadReader(Generic[Who, Session]):
    """Reads what connections begin with, and hands their streams to the server.

    Attributes:
        front: the front that it reads for; set by the front.
        site: the web server that the port imitates; None if it imitates nothing.
        counts_sessions: whether a session with open streams counts as one more connection.
    """

    front: Frontend[Who, Session]
    site: Site | None = None
    counts_sessions: bool

    def read(self, transport: StreamTransport) -> None:
        """Take over a connection after its TLS handshake.

        Without a further head it leaves `front.handshakes` at once. Else it has to be there until
        the head is complete; without TLS it is not there yet.
        """
        raise NotImplementedError


class Frontend(Generic[Who, Session]):
    """Turns accepted connections into streams.

    Args:
        reader: reads what the connections begin with.
        counters: where failures, sessions and streams are counted.
        context: called for the TLS context of each connection, None to go without.
        fallback: gets the stream of every visitor who does not ask for a tunnel, held, to be
            relayed to a web site. Without it visitors find a web server that has no page.
        on_session: called with the user or place of every session when it begins and once more
            when it is over (`session.lost`).

    Attributes:
        handshakes: connections that are not tunnels yet.
    """

    def __init__(
        self,
        reader: HeadReader[Who, Session],
        *,
        counters: Counters,
        context: Callable[[], ssl.SSLContext] | None,
        fallback: Callable[[StreamTransport], None] | None = None,
        on_session: Callable[[Who, Session], None] | None = None,
    ) -> None:
        reader.front = self
        self._reader = reader
        self.counters = counters
        self._context = context
        self.fallback = fallback
        self._on_session = on_session
        self.handshakes = Pending(on_cut=self._count_cut)
        self._failures = Throttle(FAILURE_BURST)
        self._sessions: dict[Session, Who] = {}

    @property
    def pending(self) -> int:
        """Number of connections that are not tunnels yet."""
        return len(self.handshakes)

    @property
    def sessions(self) -> Collection[Session]:
        """The sessions that are up."""
        return self._sessions.keys()

    @property
    def idle(self) -> int:
        """Number of sessions that count as connections besides the open tunnels."""
        if self._reader.counts_sessions:
            return len(self._sessions)
        return sum(not session.open_streams for session in self._sessions)

    def accept(self) -> StreamProtocol:
        """The protocol for a new connection (a protocol factory of asyncio)."""
        parked = Parked(self._reader.read)
        if self._context is None:
            return parked
        site = self._reader.site
        if site is None:
            tls = TlsLayer(parked, self._context(), server_side=True, half_close=True)
        else:
            tls = TlsLayer(
                parked, self._context(), server_side=True, handshake_time=site.handshake_time
            )
        parked.failed = partial(self.give_up, tls)
        self.handshakes.add(tls)
        return tls if site is None else site.enter(tls)

    def close(self) -> None:
        """Cut all handshakes and all sessions."""
        self.handshakes.close()
        for session in list(self._sessions):
            session.abort()

    # Failures.

    def failed(self, transport: StreamTransport, error: Exception) -> None:
        """Count and log a failed handshake, unless the connection was cut to make room."""
        if transport in self.handshakes:
            self.counters.failed(error)
            self._failures.failure(transport, error)

    def give_up(self, transport: StreamTransport, error: Exception) -> None:
        """The same for a connection that cannot become a tunnel any more."""
        self.failed(transport, error)
        self.handshakes.discard(transport)

    def _count_cut(self) -> None:
        self.counters.handshake_failures[Cause.OVERLOAD] += 1

    # Sessions.

    def begin(self, session: Session, who: Who) -> None:
        """Register a session. At its end it calls `session_lost`."""
        self._sessions[session] = who
        self.counters.sessions += 1
        if self._on_session is not None:
            self._on_session(who, session)

    def session_lost(self, session: Session, error: Exception | None) -> None:
        who = self._sessions.pop(session)
        if self._on_session is not None:
            self._on_session(who, session)
        self.counters.session_over(error)
        if isinstance(error, PeerError):
            self._failures.failure(session.lower, error)
        elif error is not None:
            # Go clients close the connection under their last stream: nothing to report.
            logger.debug("%s: %s", peer_name(session.lower), error)
