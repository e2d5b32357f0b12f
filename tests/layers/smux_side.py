"""One side of a smux session over a fake connection."""

from __future__ import annotations

from mtt.layers.smux import SmuxSession, SmuxStream
from mtt.wire.smux import PSH, SYN, Decoder, frame
from tests.layers.session_side import SessionSide
from tests.support.transports import FakeLayer, Recorder, turns


class Server(SessionSide):
    decoder = Decoder

    def __init__(self, *, half_close: bool = False) -> None:
        super().__init__()
        self.session = SmuxSession(accept=self.on_accept, on_lost=self.on_lost)
        self.connect(half_close=half_close)

    def open(self, stream_id: int = 3) -> tuple[Recorder, SmuxStream]:
        """A stream that the peer opened."""
        self.feed(frame(SYN, stream_id))
        return self.uppers[-1], self.uppers[-1].transport


def client() -> tuple[SmuxSession, FakeLayer]:
    session = SmuxSession()
    lower = FakeLayer(session)
    session.connection_made(lower)
    return session, lower


async def finished(session: SmuxSession) -> None:
    session.abort()
    await turns()


def queued_until_full(server: Server, stream_id: int) -> int:
    """How many bytes for a paused stream the session takes before it stops reading."""
    size = 0
    while server.lower.reading:
        server.feed(frame(PSH, stream_id, bytes(16384)))
        size += 16384
    return size
