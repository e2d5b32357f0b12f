"""Connections without a head: a stream, or a session, follows the TLS handshake."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mtt.errors import PeerError
from mtt.inbound.front import HeadReader
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.mux_tunnel import TunnelSession
from mtt.layers.parked import Parked, hand_over
from mtt.layers.smux import SmuxSession
from mtt.wire import alpn
from mtt.wire.datagrams import NOT_SERVED, is_opening

Target = TypeVar("Target")
Serve = Callable[[StreamTransport, Target], None]

# Seconds for the first bytes of a connection that may carry datagrams. Our clients send them with
# their TLS handshake's last message.
OPENING_TIME = 10.0


class TunnelReader(HeadReader[Target, TunnelSession]):
    """Base of readers whose streams are multiplexed if `mux`.

    Args:
        serve: takes over every stream, parked, with its target.
        datagrams: the same for streams that carry UDP; None if the server does not.
    """

    counts_sessions = True

    def __init__(
        self, serve: Serve[Target], *, mux: bool, datagrams: Serve[Target] | None = None
    ) -> None:
        self._serve = serve
        self._mux = mux
        self._datagrams = datagrams

    def _session(
        self, target: Target, kind: type[TunnelSession] = SmuxSession
    ) -> TunnelSession:
        session = kind(accept=partial(self._accept, target), on_lost=self.front.session_lost)
        self.front.register(session, target)
        return session

    def _accept(self, target: Target) -> Parked:
        self.front.counters.streams += 1
        return Parked(lambda stream: self._serve(stream, target))


class StreamReader(TunnelReader[Target]):
    """Reads connections that all have the same target."""

    def __init__(
        self,
        serve: Serve[Target],
        target: Target,
        *,
        mux: bool,
        datagrams: Serve[Target] | None = None,
    ) -> None:
        super().__init__(serve, mux=mux, datagrams=datagrams)
        self._target = target

    def read(self, transport: StreamTransport) -> None:
        if _may_carry_datagrams(transport):
            hand_over(transport, self._opening_reader())
        else:
            self._begin(transport)

    def _opening_reader(self) -> StreamProtocol:
        """Reads what tells a stream for datagrams from others; it remains in `handshakes`."""
        from mtt.layers.stream_head import StreamHead

        return StreamHead(
            is_opening, self._opened, self.front.give_up, what="data", seconds=OPENING_TIME
        )

    def _opened(self, transport: StreamTransport, has_datagrams: bool) -> None:
        if not has_datagrams:
            self._begin(transport)
        elif self._datagrams is not None:
            self.front.handshakes.discard(transport)
            self._datagrams(transport, self._target)
        else:
            self.front.give_up(transport, PeerError(NOT_SERVED))
            transport.close()

    def _begin(self, transport: StreamTransport) -> None:
        self.front.handshakes.discard(transport)
        if self._mux:
            hand_over(transport, self._session(self._target))
        else:
            self._serve(transport, self._target)


def _may_carry_datagrams(transport: StreamTransport) -> bool:
    """Whether the client has asked for the ALPN name of connections for datagrams."""
    connection = transport.get_extra_info("ssl_object")
    return connection is not None and connection.selected_alpn_protocol() in alpn.DATAGRAMS
