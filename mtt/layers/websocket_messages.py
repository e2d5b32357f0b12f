"""WebSocket as a layer that keeps the boundaries of messages (RFC 6455, 5.4)."""

from __future__ import annotations

from mtt.layers.base import Data, StreamProtocol
from mtt.layers.websocket import WebSocketLayer
from mtt.wire.websocket import PING, MessageDecoder


class MessageLayer(WebSocketLayer):
    """A layer that keeps the boundaries of messages, with peers that are other programs.

    Each call of `data_received` above has one whole message, text or binary, also if it is empty.
    Each `write` or `write_framed` sends one, in one frame. All messages in one read are handed up,
    also after the protocol above has paused reading. The peer answers pings, so it is dead if it
    sends nothing for `keepalive.DEAD_TIME`.

    Args:
        limit: bytes of a message; a longer one ends the connection.
    """

    __slots__ = ("_frames", "_held", "_parts")

    def __init__(
        self, upper: StreamProtocol, *, client: bool, limit: int, random_mask: bool = False
    ) -> None:
        super().__init__(upper, client=client, random_mask=random_mask, ping=True)
        self._decoder = decoder = MessageDecoder(masked=not client, limit=limit)
        self._frames = decoder.frames
        self._held = bytearray()  # the incomplete message, as far as earlier reads had it
        self._parts: list[Data] = []  # what this read has of it

    @property
    def heard_at(self) -> float:
        """Loop time when anything last arrived."""
        return self._heard_at

    def _hand_up(self, pieces: list[Data]) -> None:
        # A piece belongs to one frame, so pieces and frames end together.
        frames, parts = self._frames, self._parts
        begun = 0
        left, is_last = frames[0] if frames else (0, False)
        for piece in pieces:
            while not left:  # empty frames
                begun += 1
                self._end_frame(is_last)
                left, is_last = frames[begun]
            left -= len(piece)
            parts.append(piece)
        while frames and not left:
            begun += 1
            self._end_frame(is_last)
            if begun == len(frames):
                break
            left, is_last = frames[begun]
        del frames[:begun]
        if frames:
            frames[0] = left, is_last
        if parts:
            # Views of a buffer that is about to be used again, or tiny fragments without number.
            self._held += b"".join(parts)
            parts.clear()

    def _end_frame(self, is_last: bool) -> None:
        if not is_last:
            return
        parts = self._parts
        if self._held:
            parts.insert(0, bytes(self._held))
            self._held = bytearray()
        message = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._has_data = True
        if not self._closed:
            upper = self.upper
            upper.data_received(message if upper.borrows else bytes(message))

    def keep_alive(self) -> None:
        self._send_control(PING)  # also amid data: the answer is the peer's sign of life

    def silent_since(self) -> float | None:
        return None if self._paused or self._stash else self._heard_at
