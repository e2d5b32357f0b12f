"""One stream of a smux session: a transport for the protocol above. See `smux`."""

from __future__ import annotations

import asyncio
import errno
from typing import Any, Protocol

from mtt.layers.base import Data, LayerTransport, Upper, unsent
from mtt.wire.smux import FIN, NOP, PSH, data_frames, frame

# A stream whose reader is so far behind has its sender stopped, if that is one of ours. What is on
# its way by then comes on top: a round trip's worth.
STOP_AT = 128 * 1024


class Session(Protocol):
    """What a stream needs of its session."""

    lower: asyncio.Transport
    write_paused: bool
    writer: int

    @property
    def half_close(self) -> bool: ...
    @property
    def handed_over(self) -> int: ...
    def gone(self, stream: SmuxStream) -> bool: ...
    def send(self, frames: bytes) -> None: ...
    def finish(self, stream: SmuxStream, *, eof_seen: bool, say_fin: bool) -> None: ...
    def queued(self, size: int) -> None: ...


class SmuxStream(LayerTransport):
    """One stream: a transport for the protocol above, which gets `connection_made` at once."""

    __slots__ = (
        "_eof", "_eof_told", "_mark", "_paused", "_peer_stopped", "_queue", "_scheduled",
        "_session", "_stopped", "_survives", "_write_eof", "id", "upper",
    )  # fmt: skip

    def __init__(self, session: Session, stream_id: int, upper: Upper) -> None:
        super().__init__()
        self._session = session
        self.id = stream_id
        self.upper = upper
        self._paused = False
        self._queue = bytearray()  # what came while the upper had paused
        self._peer_stopped = False  # we have told the peer to stop, because of the queue
        self._stopped = False  # the peer has told us
        self._scheduled = False
        self._survives: Exception | None = None  # what ended the session before we were read out
        self._eof = False  # the peer has sent FIN
        self._eof_told = False
        self._write_eof = False  # we have
        self._mark = 0  # what the socket had been given when we had written our last

    # Called by the session.

    def receive(self, data: Data) -> None:
        if self._eof:
            return
        if self._paused or self._queue:
            self._queue += data
            if len(self._queue) > STOP_AT and not self._peer_stopped and self._session.half_close:
                self._peer_stopped = True
                self._session.send(frame(NOP, self.id))
            self._session.queued(len(data))
        else:
            self.upper.data_received(data)

    def receive_stop(self) -> None:
        """The peer's queue for us is full, or (every second time) empty again."""
        self._stopped = not self._stopped
        if self._stopped:
            self.upper.pause_writing()
        else:
            self.resume_writing()

    def pause_writing(self) -> None:
        """The connection can take no more."""
        if not self._stopped:
            self.upper.pause_writing()

    def resume_writing(self) -> None:
        if not (self._stopped or self._session.write_paused):
            self.upper.resume_writing()

    def receive_fin(self) -> None:
        self._eof = True
        self._deliver()

    def receive_reset(self) -> None:
        self._session.finish(self, eof_seen=True, say_fin=not self._write_eof)
        self._drop_queue()
        # As when a socket is reset: somebody's application went away, which is routine.
        self.upper.connection_lost(ConnectionResetError(errno.ECONNRESET, "reset by the peer"))

    def session_ended(self, exc: Exception | None) -> None:
        """The session is over. What the peer has sent and ended with FIN is still handed up."""
        if exc is not None and self._eof and not self._eof_told:
            self._survives = exc
        else:
            self.upper.connection_lost(exc)

    def _deliver(self) -> None:
        """Hand up what is queued, then the end."""
        self._scheduled = False
        if self._paused or self.is_closing():
            return
        if self._queue:
            data = bytes(self._queue)
            self._drop_queue()
            self.upper.data_received(data)
        if self._eof and not (self._paused or self._eof_told or self.is_closing()):
            self._eof_told = True
            if not self.upper.eof_received():
                self.close()
            elif self._survives is not None:
                exc, self._survives = self._survives, None
                self.upper.connection_lost(exc)

    def _drop_queue(self) -> None:
        size = len(self._queue)
        self._queue = bytearray()
        if self._peer_stopped and not self._session.gone(self):
            self._peer_stopped = False
            self._session.send(frame(NOP, self.id))
        self._session.queued(-size)

    # The transport of the protocol above.

    def set_protocol(self, protocol: Any) -> None:
        """Hand the stream over; unlike a new socket, it may be unable to take anything by now."""
        self.upper = protocol
        if (self._stopped or self._session.write_paused) and not self._session.gone(self):
            protocol.pause_writing()

    def get_protocol(self) -> Any:
        return self.upper

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._session.lower.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._survives is None and self._session.gone(self)

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if (self._queue or self._eof) and not self._scheduled:
                self._scheduled = True
                asyncio.get_running_loop().call_soon(self._deliver)

    def get_write_buffer_size(self) -> int:
        """The connection's buffer: streams have none of their own."""
        return self._session.lower.get_write_buffer_size()

    def unsent(self) -> int:
        """What the connection still has to send up to our last byte, not what came after it."""
        session = self._session
        return max(0, self._mark - session.handed_over + unsent(session.lower))

    def write(self, data: Data | bytearray) -> None:
        session = self._session
        if data and not (self._write_eof or session.gone(self)):
            if isinstance(data, bytearray):
                data = bytes(data)
            session.writer = self.id
            session.send(data_frames(self.id, data))
            self._mark = session.handed_over

    def can_write_eof(self) -> bool:
        return self._session.half_close

    def write_eof(self) -> None:
        """Tell the peer that no more data comes from us; the other direction goes on."""
        if not (self._write_eof or self._session.gone(self)):
            self._write_eof = True
            self._session.send(frame(FIN, self.id))

    def close(self) -> None:
        """End the stream; what was written is delivered by the session."""
        self._finish(reset=False)

    def abort(self) -> None:
        """Cut the stream. A Go peer cannot tell it from an ordinary end."""
        self._finish(reset=self._session.half_close)

    def _finish(self, *, reset: bool) -> None:
        session = self._session
        if not session.gone(self):
            if reset:
                session.send(frame(PSH, self.id))
            session.finish(self, eof_seen=self._eof, say_fin=not self._write_eof)
        elif self._survives is None:
            return
        self._survives = None
        self._drop_queue()
        asyncio.get_running_loop().call_soon(self.upper.connection_lost, None)
