"""Connections that begin with nothing: after the TLS handshake there is a stream, or a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mtt.inbound.front import HeadReader
from mtt.layers.base import StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.layers.smux import SmuxSession

Place = TypeVar("Place")


class TunnelReader(HeadReader[Place, SmuxSession]):
    """What connections of tunnels have in common, whatever they begin with.

    Args:
        serve: gets every stream, held, with the place it leads to; owns it from then on. What a
            place is (an address, a user) is the business of the server.
        mux: streams are multiplexed.
    """

    counts_sessions = True

    def __init__(self, serve: Callable[[StreamTransport, Place], None], *, mux: bool) -> None:
        self._serve = serve
        self._mux = mux

    def _session(self, place: Place) -> SmuxSession:
        session = SmuxSession(accept=partial(self._accept, place), on_lost=self.front.session_lost)
        self.front.begin(session, place)
        return session

    def _accept(self, place: Place) -> Parked:
        self.front.counters.streams += 1
        return Parked(lambda stream: self._serve(stream, place))


class StreamReader(TunnelReader[Place]):
    """Connections that all lead to one place."""

    def __init__(
        self, serve: Callable[[StreamTransport, Place], None], place: Place, *, mux: bool
    ) -> None:
        super().__init__(serve, mux=mux)
        self._place = place

    def read(self, transport: StreamTransport) -> None:
        self.front.handshakes.discard(transport)
        if self._mux:
            hand_over(transport, self._session(self._place))
        else:
            self._serve(transport, self._place)
