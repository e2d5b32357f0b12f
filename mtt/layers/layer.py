"""The base classes of layers, which pass through everything that a layer does not change."""

from __future__ import annotations

from typing import Any

from mtt.layers.base import Data, Pausable, StreamProtocol, StreamTransport
from mtt.layers.parked import hand_over


class Layer(StreamProtocol, Pausable):
    """A protocol to the transport below (`lower`) and a transport to the protocol above (`upper`).

    Subclasses override what they change.
    """

    __slots__ = ("lower",)

    lower: StreamTransport

    def __init__(self, upper: StreamProtocol) -> None:
        # Does not call super().__init__(), which would do no more: there are many layers.
        self._paused = self._scheduled = self.write_paused = False
        self.upper = upper

    def __repr__(self) -> str:
        lower = getattr(self, "lower", None)
        return self.name if lower is None else f"{self.name} over {lower!r}"

    def start(self, transport: StreamTransport) -> None:
        """Take over a parked `transport`, and what it has received."""
        hand_over(transport, self)

    # As a protocol, called from below.

    @property
    def reads_after_send_error(self) -> bool:
        return self.upper.reads_after_send_error

    @property
    def is_throttled(self) -> bool:
        return self.upper.is_throttled

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
    def drops_data_at_end(self) -> bool:
        return self.lower.drops_data_at_end

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

    def throttled_bytes(self) -> int:
        return self.lower.throttled_bytes()

    @property
    def socket_written(self) -> int:
        return self.lower.socket_written

    @property
    def own_tail(self) -> int:
        return self.lower.own_tail

    def set_peer_is_ours(self) -> None:
        self.lower.set_peer_is_ours()

    def half_closes(self) -> bool | None:
        return False

    def ask_half_close(self) -> None:
        self.lower.ask_half_close()

    def write_eof(self) -> None:
        """End our direction; a peer that cannot half-close then closes the connection."""
        self.lower.write_eof()


class SignalingLayer(Layer):
    """A layer that also sends data of its own: answers, alerts, pings.

    Such data does not count as unsent. Otherwise a peer that requests answers without end and reads
    nothing would look busy to an idle timer, and delay for ever what waits until all data is sent.
    """

    __slots__ = ("_tail",)

    # Own bytes after the last data from above, as the socket counts them; 0 after each write of
    # data from above.
    _tail: int

    def __init__(self, upper: StreamProtocol) -> None:
        super().__init__(upper)
        self._tail = 0

    def write(self, data: Data | bytearray) -> None:
        self.write_framed(b"", data)

    def _send_signal(self, data: bytes) -> None:
        """Write the layer's own `data` to the transport below."""
        before = self.lower.socket_written
        self.lower.write(data)
        self._tail += self.lower.socket_written - before

    @property
    def own_tail(self) -> int:
        return self._tail + self.lower.own_tail

    def unsent(self) -> int:
        return max(0, self.lower.unsent() - self._tail)
