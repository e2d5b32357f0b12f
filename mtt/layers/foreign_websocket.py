"""WebSocket with a client that is neither ours nor the original, such as v2ray-plugin."""

from __future__ import annotations

from collections.abc import Callable

from mtt.layers.base import Data, StreamProtocol
from mtt.layers.websocket import WebSocketLayer
from mtt.wire.foreign import LONGEST


class ForeignWebSocketLayer(WebSocketLayer):
    """The server's layer for a client that may be another program.

    When the close frame arrives, v2ray-plugin without mux drops data that it has not yet passed to
    its application: 3 of 20 small replies in a measurement. Its own server waits for a second.

    Args:
        upper: the protocol above.
        on_first: called with the first bytes of data, before `upper` gets them.
    """

    __slots__ = ("_on_first",)

    @property
    def drops_data_at_end(self) -> bool:
        return True

    def __init__(self, upper: StreamProtocol, on_first: Callable[[bytes], None]) -> None:
        super().__init__(upper, client=False, ping=True)
        self._on_first: Callable[[bytes], None] | None = on_first

    def _hand_up(self, pieces: list[Data]) -> None:
        if self._on_first is not None and pieces:
            on_first, self._on_first = self._on_first, None
            on_first(bytes(pieces[0][:LONGEST]))
        super()._hand_up(pieces)
