"""One of many streams on a connection: a transport for the protocol above. See `mux`.

A frame of a few bytes opens a stream on a server, and each stream makes the server connect
somewhere. One read could use up all descriptors, and block the event loop for seconds. So the
session looks at new streams after the whole read; those that are over by then never begin. The
others begin a few in each turn of the loop, and wait while too many streams of the same peer are
being carried. When the session ends, waiting streams that the peer has ended with FIN still begin.
"""

from __future__ import annotations

import asyncio
import errno
from typing import Any, Protocol

from mtt.layers.base import Data, Pausable, StreamProtocol, StreamTransport

# Connecting takes 0.1 to 0.2 ms of the loop: this keeps a turn below a few milliseconds.
STREAMS_A_TURN = 16
# Streams of one session that are carried at a time, including those whose connections are being
# made or closed. Our clients open at most 16; a client that opens streams one after another has a
# few that are still ending.
MAX_CARRIED = 256


class Session(Protocol):
    """What a stream needs of its session."""

    lower: StreamTransport
    bottom: StreamTransport
    write_paused: bool
    last_writer: int
    admission: StreamAdmission | None

    @property
    def half_close(self) -> bool: ...
    @property
    def acknowledged(self) -> int: ...
    def is_gone(self, stream: Any) -> bool: ...
    def finish(self, stream: Any, *, eof_seen: bool, say_fin: bool) -> None: ...
    def count_queued(self, size: int) -> None: ...
    def send_data(self, stream_id: int, data: Data) -> None: ...
    def send_fin(self, stream_id: int) -> None: ...
    def send_reset(self, stream_id: int) -> None: ...


class MuxStream(Pausable):
    """One stream: a transport for the protocol above, which gets `connection_made` at once."""

    borrows = True

    __slots__ = (
        "_eof", "_eof_told", "_queue", "_reset", "_session", "_session_error", "_write_eof",
        "_write_mark", "begun", "id",
    )  # fmt: skip

    def __init__(self, session: Session, stream_id: int, upper: StreamProtocol) -> None:
        # Does not call super().__init__(), which would do no more: there are many streams.
        self._paused = self._scheduled = self.write_paused = False
        self._session = session
        self.id = stream_id
        self.upper = upper
        self.begun = False
        self._queue = bytearray()  # received while the protocol above had paused
        # The session failed, or the peer reset the stream, before all data was handed up.
        self._session_error: Exception | None = None
        self._reset = False
        self._eof = False  # the peer has sent FIN
        self._eof_told = False
        self._write_eof = False  # we have sent FIN
        self._write_mark = 0  # the socket's count after our last write

    # Called by the session.

    def begin(self) -> None:
        """Tell the protocol above of the stream, and hand up what has arrived meanwhile."""
        self._paused = False
        self.begun = True
        upper = self.upper
        upper.connection_made(self)
        # If another protocol took over in that call, `set_protocol` has told it.
        if self._session.write_paused and self.upper is upper and not self._session.is_gone(self):
            upper.pause_writing()
        if self._queue or self._eof:
            self._deliver()

    def receive(self, data: Data) -> None:
        if self._eof:
            return
        if self._paused or self._queue:
            self._enqueue(data)
        else:
            upper = self.upper
            upper.data_received(data if upper.borrows else bytes(data))

    def _enqueue(self, data: Data) -> None:
        """Keep data for the paused reader. Subclasses may add limits."""
        self._queue += data
        self._session.count_queued(len(data))

    def pause_writing(self) -> None:
        self.upper.pause_writing()

    def resume_writing(self) -> None:
        self.upper.resume_writing()

    def receive_fin(self) -> None:
        if not self._reset:  # a FIN after a reset is not the end of data
            self._eof = True
            self._deliver()

    @property
    def accepts_reset(self) -> bool:
        """Whether an empty PSH resets the stream; Go peers ignore it."""
        return self._session.half_close

    def receive_reset(self) -> None:
        """The peer takes nothing any more; what it has sent before is handed up first.

        Until then the stream keeps its place in the session, which limits their number.
        """
        if not (self.begun and self._has_undelivered):
            self._end_by_reset()
        elif not self._reset:
            self._reset = True
            self.write_eof()
            self.upper.pause_writing()

    @property
    def _has_undelivered(self) -> bool:
        """Whether data or the end from the peer is still to be handed up."""
        return bool(self._queue) or (self._eof and not self._eof_told)

    @property
    def _has_more(self) -> bool:
        return self._has_undelivered or self._reset or self._session_error is not None

    def _end_by_reset(self) -> None:
        """Handle the peer's reset, once what came before it has been handed up."""
        self._session.finish(self, eof_seen=True, say_fin=not self._write_eof)
        self._drop_queue()
        # As for a reset of a socket: an application has closed early, which is routine.
        self.report_lost(ConnectionResetError(errno.ECONNRESET, "reset by the peer"))

    def session_ended(self, exc: Exception | None) -> None:
        """The session is over; what the peer has sent before a failure is still handed up."""
        if exc is not None and self._has_undelivered:
            self._session_error = exc
            self.upper.pause_writing()
        else:
            self.report_lost(exc)

    def _deliver(self) -> None:
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
        if self._paused or self._has_undelivered:
            return
        if self._session_error is not None:
            exc, self._session_error = self._session_error, None
            self.report_lost(exc)
        elif self._reset and not self._session.is_gone(self):
            self._end_by_reset()

    def _drop_queue(self) -> None:
        """Empty the queue: it has been handed up, or the stream is over."""
        size = len(self._queue)
        self._queue = bytearray()
        self._session.count_queued(-size)

    @property
    def is_over(self) -> bool:
        """Whether the peer has ended both directions, and nothing is left to hand up."""
        return self._eof and not self._queue and not self._session.half_close

    def add_carried(self, count: int) -> None:
        admission = self._session.admission
        if admission is not None:
            admission.add_carried(count)

    # The transport of the protocol above.

    def _is_write_blocked(self) -> bool:
        """Whether the protocol above has to wait. Subclasses may add reasons."""
        return self._session.write_paused

    def set_protocol(self, protocol: Any) -> None:
        self.upper = protocol
        if self._is_write_blocked() and not self._session.is_gone(self):
            protocol.pause_writing()

    def __repr__(self) -> str:
        return f"{self.name} {self.id} over {self._session.lower!r}"

    @property
    def bottom(self) -> StreamTransport:
        return self._session.bottom

    @property
    def socket_written(self) -> int:
        return self._session.bottom.socket_written

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._session.lower.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._session_error is None and self._session.is_gone(self)

    def get_write_buffer_size(self) -> int:
        """The size of the connection's buffer: streams have none."""
        return self._session.lower.get_write_buffer_size()

    def unsent(self) -> int:
        """What the connection still has to send up to our last byte, not what came after it."""
        return max(0, self._write_mark - self._session.acknowledged)

    def write(self, data: Data | bytearray) -> None:
        session = self._session
        if data and not (self._write_eof or session.is_gone(self)):
            if isinstance(data, bytearray):
                data = bytes(data)
            session.last_writer = self.id
            session.send_data(self.id, data)
            self._write_mark = session.bottom.socket_written

    def half_closes(self) -> bool | None:
        return self._session.half_close

    def write_eof(self) -> None:
        if not (self._write_eof or self._session.is_gone(self)):
            self._write_eof = True
            self._session.send_fin(self.id)

    def close(self) -> None:
        self._finish(reset=False)

    def cut(self) -> None:
        self.abort()  # frames keep their order, so what was written is delivered

    def abort(self) -> None:
        """Cut the stream. A Go peer cannot tell it from an ordinary end."""
        # Also resets while half-close is undecided: Go peers ignore an empty PSH, and our own ends
        # must not take the following FIN for an ordinary end.
        self._finish(reset=self.half_closes() is not False)

    def _finish(self, *, reset: bool) -> None:
        """End the stream from this side, for the peer with a reset or an ordinary end."""
        session = self._session
        if not session.is_gone(self):
            if reset:
                session.send_reset(self.id)
            session.finish(self, eof_seen=self._eof, say_fin=not self._write_eof)
        elif self._session_error is None:
            return
        self._session_error = None
        self._drop_queue()
        asyncio.get_running_loop().call_soon(self.report_lost, None)


class StreamAdmission:
    """Begins the streams that the peer of one session opens.

    Args:
        limit: streams that are carried at a time; None: MAX_CARRIED.

    Attributes:
        scheduled: `admit` is due in a separate turn.
        waiting: streams that have not begun, in the order in which they were opened.
    """

    __slots__ = ("_carried", "_limit", "scheduled", "waiting")

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit or MAX_CARRIED
        self._carried = 0
        self.scheduled = False
        # At most 256 streams; an empty deque takes 600 bytes.
        self.waiting: list[MuxStream] = []

    def add(self, stream: MuxStream) -> None:
        """Add a new stream; the caller calls `admit` in this turn, unless `scheduled`."""
        stream.pause_reading()
        self.waiting.append(stream)

    def add_carried(self, count: int) -> None:
        """Count one more or one less carried stream."""
        self._carried += count
        if self.waiting and not self.scheduled and self._carried < self._limit:
            self._schedule()

    def _schedule(self) -> None:
        self.scheduled = True
        asyncio.get_running_loop().call_soon(self.admit)

    def admit(self) -> None:
        """Begin as many streams as one turn may; schedule the next ones."""
        self.scheduled = False
        waiting = self.waiting
        left = STREAMS_A_TURN
        while waiting and self._carried < self._limit:
            if waiting[0].is_closing():
                waiting.pop(0)
            elif waiting[0].is_over:
                waiting.pop(0).close()
            elif left:
                left -= 1
                waiting.pop(0).begin()
            else:
                self._schedule()
                break
