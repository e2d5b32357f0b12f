"""The client's side of an AnyTLS session over a fake connection."""

from __future__ import annotations

from mtt.errors import MttError
from mtt.layers.anytls_client import ClientSession, ServerState
from mtt.layers.anytls_stream import ClientStream
from mtt.wire.anytls import FIN, SERVER_SETTINGS, Decoder, frame
from mtt.wire.padding import Scheme
from tests.layers.session_side import SessionSide
from tests.support.transports import Recorder

HASHED = bytes(range(32))
PLAIN = Scheme.parse(b"stop=1")  # no padding at all
GREETING = frame(SERVER_SETTINGS, 0, b"v=2")
OWN = frame(SERVER_SETTINGS, 0, b"v=2\nhalf-close=1")


class Client(SessionSide):
    decoder = Decoder

    def __init__(
        self, server: ServerState | None = None, *, greeting: bytes = b"", half_close: bool = False
    ) -> None:
        super().__init__()
        self.server = server or ServerState(PLAIN)
        self.session = ClientSession(
            HASHED,
            self.server,
            half_close=half_close,
            on_lost=self.on_lost,
            randrange=lambda _low, high: high - 1,
        )
        self.connect()
        self.first = self.lower.take()
        if greeting:  # a stream that is over
            self.stream()[1].close()
            self.feed(greeting, frame(FIN, 1))
            self.lower.take()
            self.lower.writes.clear()

    def stream(self) -> tuple[Recorder, ClientStream]:
        upper = Recorder()
        return upper, self.session.open_stream(upper, b"dest")


async def answer_of(stream: ClientStream) -> MttError | None:
    try:
        await stream.acknowledged()
    except MttError as error:
        return error
    return None
