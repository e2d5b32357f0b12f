"""One side of a WebSocket connection over a fake transport, and the frames of its peer."""

from __future__ import annotations

from mtt.layers.parked import park
from mtt.layers.websocket import WebSocketLayer
from mtt.wire.websocket import CLOSE, NO_MASK, TEXT, Decoder, close_payload, frame
from tests.support.transports import FakeLayer, FakeTransport, Recorder, turns

QUESTION = b"half-close"  # what a ping says that asks for it
SIGN = frame(TEXT, b"", NO_MASK)  # of our own clients


class Side:
    """A layer, a server's unless told otherwise, and what happened above and below it."""

    def __init__(
        self, *, client: bool = False, lower: type[FakeTransport] = FakeLayer, early: bytes = b"",
        half_close: bool = False, random_mask: bool = False, upper: Recorder | None = None,
    ) -> None:  # fmt: skip
        self.upper = upper or Recorder()
        self.lower = lower()
        self.layer = WebSocketLayer(
            self.upper, client=client, half_close=half_close, random_mask=random_mask
        )
        self._client = client
        self.lower.pause_reading()
        park(self.lower, early)
        self.layer.start(self.lower)

    def feed(self, *frames: bytes) -> None:
        self.lower.protocol.data_received(b"".join(frames))

    def said(self) -> list[tuple[int, bytes]]:
        events = Decoder(masked=self._client).feed(self.lower.take())
        return [(opcode, bytes(payload)) for opcode, payload in events]

    async def over(self) -> None:
        self.lower.lose(None)
        await turns()
        assert self.upper.lost


def up(opcode: int, payload: bytes = b"") -> bytes:
    """A client's frame."""
    return frame(opcode, payload, b"\x12\x34\x56\x78")


def closing(code: int, reason: str = "") -> bytes:
    return up(CLOSE, close_payload(code, reason))
