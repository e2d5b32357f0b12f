"""Connections without a head: a stream, or a session, follows the TLS handshake."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mtt.inbound.front import HeadReader
from mtt.layers.base import StreamTransport
from mtt.layers.mux_tunnel import TunnelSession
from mtt.layers.parked import Parked, hand_over
from mtt.layers.smux import SmuxSession

Target = TypeVar("Target")


class TunnelReader(HeadReader[Target, TunnelSession]):
    """Base of readers whose streams are multiplexed if `mux`.

    `serve` takes over every stream, parked, with its target.
    """

    counts_sessions = True

    def __init__(self, serve: Callable[[StreamTransport, Target], None], *, mux: bool) -> None:
        self._serve = serve
        self._mux = mux

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
        self, serve: Callable[[StreamTransport, Target], None], target: Target, *, mux: bool
    ) -> None:
        super().__init__(serve, mux=mux)
        self._target = target

    def read(self, transport: StreamTransport) -> None:
        self.front.handshakes.discard(transport)
        if self._mux:
            hand_over(transport, self._session(self._target))
        else:
            self._serve(transport, self._target)
