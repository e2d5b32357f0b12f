"""The server's side of an AnyTLS session over a fake connection."""

from __future__ import annotations

from mtt.layers.anytls_server import ServerSession, ServerStream
from mtt.wire.anytls import SERVER_SETTINGS, SETTINGS, SYN, Decoder, client_settings, frame
from mtt.wire.padding import DEFAULT, Scheme
from tests.layers.session_side import SessionSide
from tests.support.transports import Recorder

V2 = frame(SETTINGS, 0, client_settings("test/1", DEFAULT.md5))
V1 = V2.replace(b"v=2", b"v=1")
OWN = frame(SETTINGS, 0, client_settings("test/1", DEFAULT.md5) + b"\nhalf-close=1")
GREETING = (SERVER_SETTINGS, 0, b"v=2")


class Server(SessionSide):
    decoder = Decoder

    def __init__(self, settings: bytes = b"", *, scheme: Scheme = DEFAULT) -> None:
        super().__init__()
        self.changes = 0
        self.session = ServerSession(
            self.on_accept, scheme=scheme, on_change=self._changed, on_lost=self.on_lost
        )
        self.connect()
        if settings:
            self.feed(settings)
            self.lower.take()

    def _changed(self, session: ServerSession) -> None:
        assert session is self.session
        self.changes += 1

    def open(self, stream_id: int = 1) -> tuple[Recorder, ServerStream]:
        self.feed(frame(SYN, stream_id))
        return self.uppers[-1], self.uppers[-1].transport
