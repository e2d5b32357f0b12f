"""One side of a Mux.Cool session over a fake connection."""

from __future__ import annotations

from mtt.layers.mux_cool import MuxCoolSession
from mtt.layers.mux_tunnel import TunnelStream
from mtt.wire.mux_cool import Decoder, new
from tests.layers.session_side import SessionSide
from tests.support.transports import FakeLayer, Recorder


class Server(SessionSide):
    decoder = Decoder

    def __init__(self, *, half_close: bool = False) -> None:
        super().__init__()
        self.session = MuxCoolSession(accept=self.on_accept, on_lost=self.on_lost)
        self.connect(half_close=half_close)

    def open(self, stream_id: int = 1) -> tuple[Recorder, TunnelStream]:
        """A stream that the peer opened."""
        self.feed(new(stream_id))
        return self.uppers[-1], self.uppers[-1].transport


def client(*, half_close: bool = False) -> tuple[MuxCoolSession, FakeLayer]:
    session = MuxCoolSession()
    lower = FakeLayer(session, half_close=half_close)
    session.connection_made(lower)
    return session, lower
