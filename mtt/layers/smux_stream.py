"""One stream of a smux session. See `smux`."""

from __future__ import annotations

from typing import Protocol

from mtt.layers.base import Data, StreamProtocol
from mtt.layers.mux_stream import MuxStream
from mtt.layers.mux_stream import Session as MuxSession
from mtt.wire.smux import FIN, MAX_LENGTH, MAX_PAYLOAD, NOP, PSH, data_frames, frame, header

# A stream whose reader is so far behind has its sender stopped, if that is one of ours. What is on
# its way by then comes on top: a round trip's worth.
STOP_AT = 128 * 1024


class Session(MuxSession, Protocol):
    """What a stream needs of its session."""

    def send(self, frames: bytes) -> None: ...
    def send_control(self, data: bytes) -> None: ...
    def send_framed(self, head: bytes, data: Data) -> None: ...


class SmuxStream(MuxStream):
    """One stream of a `SmuxSession`."""

    shares = True
    name = "smux stream"

    __slots__ = ("_peer_stopped", "_stopped")

    _session: Session

    def __init__(self, session: Session, stream_id: int, upper: StreamProtocol) -> None:
        super().__init__(session, stream_id, upper)
        self._peer_stopped = False  # we have told the peer to stop, because of the queue
        self._stopped = False  # the peer has told us

    def _send_data(self, data: Data) -> None:
        session, size = self._session, len(data)
        # A whole read in one frame costs our own ends less; others expect what the original sends.
        most = MAX_LENGTH if size > MAX_PAYLOAD and session.half_close else MAX_PAYLOAD
        if size <= most:
            session.send_framed(header(PSH, self.id, size), data)
        else:
            session.send(data_frames(self.id, data, most))

    def _send_fin(self) -> None:
        self._session.send_control(frame(FIN, self.id))

    def _send_reset(self) -> None:
        self._session.send_control(frame(PSH, self.id))

    def half_closes(self) -> bool | None:
        return self._session.lower.half_closes()

    def ask_half_close(self) -> None:
        self._session.lower.ask_half_close()

    # Called by the session.

    def _enqueue(self, data: Data) -> None:
        super()._enqueue(data)
        if len(self._queue) > STOP_AT and not self._peer_stopped and self._session.half_close:
            self._peer_stopped = True
            self._session.send_control(frame(NOP, self.id))

    def receive_stop(self) -> None:
        """The peer's queue for us is full, or (every second time) empty again."""
        self._stopped = not self._stopped
        if self._stopped:
            self.upper.pause_writing()
        else:
            self.resume_writing()

    def pause_writing(self) -> None:
        if not self._stopped:
            super().pause_writing()

    def resume_writing(self) -> None:
        if not self._blocked():
            super().resume_writing()

    def _blocked(self) -> bool:
        return self._stopped or super()._blocked()

    def _drop_queue(self) -> None:
        super()._drop_queue()
        if self._peer_stopped and not self._session.gone(self):
            self._peer_stopped = False
            self._session.send_control(frame(NOP, self.id))
