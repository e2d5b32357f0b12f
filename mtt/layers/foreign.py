"""The WebSocket of a client that may be another program's: its first bytes are looked at."""

from __future__ import annotations

from collections.abc import Callable

from mtt.layers.base import Data, StreamProtocol
from mtt.layers.websocket import WebSocketLayer
from mtt.wire.foreign import LONGEST


class ForeignWebSocketLayer(WebSocketLayer):
    """A server's WebSocket, as `WebSocketLayer`.

    Args:
        upper: the protocol above.
        on_first: called with the first bytes of data, before `upper` gets them.
    """

    __slots__ = ("_on_first",)

    def __init__(self, upper: StreamProtocol, on_first: Callable[[bytes], None]) -> None:
        super().__init__(upper, client=False, ping=True)
        self._on_first: Callable[[bytes], None] | None = on_first

    def _hand_up(self, pieces: list[Data]) -> None:
        if self._on_first is not None and pieces:
            on_first, self._on_first = self._on_first, None
            on_first(bytes(pieces[0][:LONGEST]))
        super()._hand_up(pieces)
