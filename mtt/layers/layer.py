"""The plumbing of a layer: a protocol to what is below, a transport to what is above."""

from __future__ import annotations

from typing import Any

from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.parked import hand_over
from mtt.layers.pausable import Pausable


class Layer(StreamProtocol, Pausable):
    """A protocol to the transport below (`lower`) and a transport to the protocol above (`upper`).

    Subclasses override what they change; everything else passes straight through.
    """

    __slots__ = ("lower",)

    lower: StreamTransport

    def __init__(self, upper: StreamProtocol) -> None:
        # Without a call of super().__init__(), which would do no more: there are many of these.
        self._paused = self._scheduled = self.write_paused = False
        self.upper = upper

    def __repr__(self) -> str:
        lower = getattr(self, "lower", None)
        return self.name if lower is None else f"{self.name} over {lower!r}"

    def start(self, transport: StreamTransport) -> None:
        """Take over `transport`, and what came of it while it was held."""
        hand_over(transport, self)

    # As a protocol, called from below.

    @property
    def wants_rest(self) -> bool:
        return self.upper.wants_rest

    def connection_made(self, transport: Any) -> None:
        self.lower = transport

    def pause_writing(self) -> None:
        self.write_paused = True
        self.upper.pause_writing()

    def resume_writing(self) -> None:
        self.write_paused = False
        self.upper.resume_writing()

    # As a transport, called from above.

    @property
    def bottom(self) -> StreamTransport:
        return self.lower.bottom

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.lower.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self.lower.is_closing()

    def _pause_below(self) -> None:
        self.lower.pause_reading()

    def _resume_below(self) -> None:
        self.lower.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self.lower.get_write_buffer_size()

    def unsent(self) -> int:
        return self.lower.unsent()

    def held_back(self) -> int:
        return self.lower.held_back()

    @property
    def handed_over(self) -> int:
        return self.lower.handed_over

    @property
    def tail(self) -> int:
        return self.lower.tail

    def peer_is_ours(self) -> None:
        self.lower.peer_is_ours()

    def half_closes(self) -> bool | None:
        return False

    def ask_half_close(self) -> None:
        self.lower.ask_half_close()

    def write_eof(self) -> None:
        """Tell the peer that nothing more comes from us; if it cannot half-close, it closes."""
        self.lower.write_eof()


class SpeakingLayer(Layer):
    """A layer that also sends what is not from above: answers, alerts, signs of life.

    That does not count as unsent. A peer that has us answer without end and reads nothing would
    look busy to an idle timer, and whatever waits until all data are sent would wait for ever.
    """

    __slots__ = ("_tail",)

    # Bytes of its own behind the last data from above, in the socket's count. Whatever writes data
    # from above sets it to 0.
    _tail: int

    def __init__(self, upper: StreamProtocol) -> None:
        super().__init__(upper)
        self._tail = 0

    def write(self, data: Data | bytearray) -> None:
        self.write_framed(b"", data)

    def _speak(self, data: bytes) -> None:
        """Hand `data` that is not from above to the transport below."""
        before = self.lower.handed_over
        self.lower.write(data)
        self._tail += self.lower.handed_over - before

    @property
    def tail(self) -> int:
        return self._tail + self.lower.tail

    def unsent(self) -> int:
        return max(0, self.lower.unsent() - self._tail)
