"""smux as a layer: many streams on one connection, each a transport of its own.

See `mux_tunnel`. In a tunnel only the client opens streams. Between gateway and agent both sides
do: the ids of one are odd, those of the other even.

The message that stops a stream's sender is a NOP with the stream's id. A Go peer answers FIN with
FIN, and ignores an empty PSH, which resets a stream of our own ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from mtt.errors import PeerError
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.mux_tunnel import MAX_STREAMS, TunnelSession, TunnelStream
from mtt.wire.foreign import agent_advice
from mtt.wire.smux import (
    FIN,
    MAX_LENGTH,
    MAX_PAYLOAD,
    NOP,
    PSH,
    SYN,
    Decoder,
    data_frames,
    data_header,
    frame,
    opening,
)


class SmuxStream(TunnelStream):
    """One stream of a `SmuxSession`."""

    name = "smux stream"

    __slots__ = ()


class SmuxSession(TunnelSession):
    """One multiplexed connection.

    Args:
        first_id: id of the first stream that this side opens, between gateway and agent. The
            session fails if the peer uses an id of the same parity. None, in tunnels: a client
            counts like Go's, 3, 5, 7, and so on, and a server takes all ids.
        max_streams, accept, on_change, on_lost: see `TunnelSession`.
    """

    __slots__ = ("_parity",)

    protocol: ClassVar[str] = "smux"
    decoder_class: ClassVar[type[Decoder]] = Decoder
    psh: ClassVar[int] = PSH
    stream_class: ClassVar[type[TunnelStream]] = SmuxStream
    id_step: ClassVar[int] = 2
    max_payload: ClassVar[int] = MAX_PAYLOAD
    max_length: ClassVar[int] = MAX_LENGTH
    opening = staticmethod(opening)
    data_header = staticmethod(data_header)
    data_frames = staticmethod(data_frames)

    def __init__(
        self,
        *,
        accept: Callable[[], StreamProtocol] | None = None,
        first_id: int | None = None,
        max_streams: int = MAX_STREAMS,
        on_change: Callable[[SmuxSession], object] | None = None,
        on_lost: Callable[[SmuxSession, Exception | None], object] | None = None,
    ) -> None:
        super().__init__(
            accept=accept, max_streams=max_streams, on_change=on_change, on_lost=on_lost
        )
        if first_id is not None:
            self._decoder = Decoder(agent_advice)
        self._next_id = first_id or 3
        self._parity = None if first_id is None else first_id % 2

    def _command_received(self, command: int, stream_id: int, payload: Data) -> None:
        if command == FIN:
            self._fin_received(stream_id)
        elif command == SYN:
            self._syn_received(stream_id)
        else:
            self._stop_received(stream_id)

    def _syn_received(self, stream_id: int) -> None:
        if stream_id in self._streams:
            return
        if stream_id % 2 == self._parity:
            self.abort(PeerError(f"smux: the peer opens stream {stream_id}, an id of this side"))
            return
        self._open_received(stream_id)

    # The frames.

    def send_stop(self, stream_id: int) -> None:
        self.send_control(frame(NOP, stream_id))

    def send_fin(self, stream_id: int) -> None:
        self.send_control(frame(FIN, stream_id))

    def send_reset(self, stream_id: int) -> None:
        self.send_control(frame(PSH, stream_id))

    def send_noop(self) -> None:
        self.send(frame(NOP, 0))
