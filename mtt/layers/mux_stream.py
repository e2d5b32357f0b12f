"""One of many streams on a connection: a transport for the protocol above. See `mux`."""

from __future__ import annotations

import asyncio
import errno
from typing import Any, Protocol

from mtt.layers.arrivals import Arrivals
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.pausable import Pausable


class Session(Protocol):
    """What a stream needs of its session."""

    lower: StreamTransport
    write_paused: bool
    writer: int
    arrivals: Arrivals | None

    @property
    def half_close(self) -> bool: ...
    @property
    def handed_over(self) -> int: ...
    @property
    def acknowledged(self) -> int: ...
    def gone(self, stream: Any) -> bool: ...
    def finish(self, stream: Any, *, eof_seen: bool, say_fin: bool) -> None: ...
    def queued(self, size: int) -> None: ...


class MuxStream(Pausable):
    """One stream: a transport for the protocol above, which gets `connection_made` at once."""

    borrows = True

    __slots__ = (
        "_eof", "_eof_told", "_mark", "_queue", "_reset", "_session", "_survives", "_write_eof",
        "begun", "id",
    )  # fmt: skip

    def __init__(self, session: Session, stream_id: int, upper: StreamProtocol) -> None:
        # Without a call of super().__init__(), which would do no more: there are many of these.
        self._paused = self._scheduled = self.write_paused = False
        self._session = session
        self.id = stream_id
        self.upper = upper
        self.begun = False
        self._queue = bytearray()  # what came while the upper had paused
        self._survives: Exception | None = None  # what ended the session before we were read out
        self._reset = False  # the peer has reset the stream before we were read out
        self._eof = False  # the peer has sent FIN
        self._eof_told = False
        self._write_eof = False  # we have
        self._mark = 0  # what the socket had been given when we had written our last

    # How the protocol of the session says it.

    def _send_data(self, data: Data) -> None:
        raise NotImplementedError

    def _send_fin(self) -> None:
        raise NotImplementedError

    def _send_reset(self) -> None:
        """Only for peers that know half-close."""
        raise NotImplementedError

    # Called by the session.

    def begin(self) -> None:
        """Tell the protocol above of the stream, and hand up what has come meanwhile."""
        self._paused = False
        self.begun = True
        upper = self.upper
        upper.connection_made(self)
        # A protocol that took the stream over in there knows already.
        if self._session.write_paused and self.upper is upper and not self._session.gone(self):
            upper.pause_writing()
        if self._queue or self._eof:
            self._deliver()

    def give_up(self) -> None:
        """The peer has reset the stream before it began."""
        self._end_by_reset()

    def receive(self, data: Data) -> None:
        if self._eof:
            return
        if self._paused or self._queue:
            self._enqueue(data)
        else:
            upper = self.upper
            upper.data_received(data if upper.borrows else bytes(data))

    def _enqueue(self, data: Data) -> None:
        self._queue += data
        self._session.queued(len(data))

    def pause_writing(self) -> None:
        """The connection can take no more."""
        self.upper.pause_writing()

    def resume_writing(self) -> None:
        self.upper.resume_writing()

    def receive_fin(self) -> None:
        if not self._reset:  # the FIN behind a reset is not the end of data
            self._eof = True
            self._deliver()

    def receive_reset(self) -> None:
        """The peer takes nothing any more; what it has sent before is handed up first.

        Until then the stream keeps its place in the session: those are counted.
        """
        if not self._owes:
            self._end_by_reset()
        elif not self._reset:
            self._reset = True
            self.write_eof()
            self.upper.pause_writing()

    @property
    def _owes(self) -> bool:
        """Whether something that the peer has sent is still to be handed up."""
        return bool(self._queue) or (self._eof and not self._eof_told)

    @property
    def _has_more(self) -> bool:
        return self._owes or self._reset or self._survives is not None

    def _end_by_reset(self) -> None:
        self._session.finish(self, eof_seen=True, say_fin=not self._write_eof)
        self._drop_queue()
        # As when a socket is reset: somebody's application went away, which is routine.
        self.tell_lost(ConnectionResetError(errno.ECONNRESET, "reset by the peer"))

    def session_ended(self, exc: Exception | None) -> None:
        """The session is over. What the peer has sent before it failed is still handed up."""
        if exc is not None and self._owes:
            self._survives = exc
            self.upper.pause_writing()
        else:
            self.tell_lost(exc)

    def _deliver(self) -> None:
        """Hand up what is queued, then the end."""
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
        if self._paused or self._owes:
            return
        if self._survives is not None:
            exc, self._survives = self._survives, None
            self.tell_lost(exc)
        elif self._reset and not self._session.gone(self):
            self._end_by_reset()

    def _drop_queue(self) -> None:
        size = len(self._queue)
        self._queue = bytearray()
        self._session.queued(-size)

    @property
    def is_over(self) -> bool:
        """Whether the peer has ended both directions, and has nothing left to say."""
        return self._eof and not self._queue and not self._session.half_close

    def engage(self, count: int) -> None:
        arrivals = self._session.arrivals
        if arrivals is not None:
            arrivals.engage(count)

    # The transport of the protocol above.

    def _blocked(self) -> bool:
        """Whether nothing should be written now."""
        return self._session.write_paused

    def set_protocol(self, protocol: Any) -> None:
        """Hand the stream over; unlike a new socket, it may be unable to take anything by now."""
        self.upper = protocol
        if self._blocked() and not self._session.gone(self):
            protocol.pause_writing()

    def __repr__(self) -> str:
        return f"{self.name} {self.id} over {self._session.lower!r}"

    @property
    def bottom(self) -> StreamTransport:
        return self._session.lower.bottom

    @property
    def handed_over(self) -> int:
        return self._session.handed_over

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._session.lower.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._survives is None and self._session.gone(self)

    def get_write_buffer_size(self) -> int:
        """The connection's buffer: streams have none of their own."""
        return self._session.lower.get_write_buffer_size()

    def unsent(self) -> int:
        """What the connection still has to send up to our last byte, not what came after it."""
        session = self._session
        return max(0, self._mark - session.acknowledged)

    def write(self, data: Data | bytearray) -> None:
        session = self._session
        if data and not (self._write_eof or session.gone(self)):
            if isinstance(data, bytearray):
                data = bytes(data)
            session.writer = self.id
            self._send_data(data)
            self._mark = session.handed_over

    def half_closes(self) -> bool | None:
        return self._session.half_close

    def write_eof(self) -> None:
        """Tell the peer that no more data comes from us; the other direction goes on."""
        if not (self._write_eof or self._session.gone(self)):
            self._write_eof = True
            self._send_fin()

    def close(self) -> None:
        """End the stream; what was written is delivered by the session."""
        self._finish(reset=False)

    def cut(self) -> None:
        """End the stream with a failure, behind what was written: frames keep their order."""
        self.abort()

    def abort(self) -> None:
        """Cut the stream. A Go peer cannot tell it from an ordinary end."""
        self._finish(reset=self._session.half_close)

    def _finish(self, *, reset: bool) -> None:
        session = self._session
        if not session.gone(self):
            if reset:
                self._send_reset()
            session.finish(self, eof_seen=self._eof, say_fin=not self._write_eof)
        elif self._survives is None:
            return
        self._survives = None
        self._drop_queue()
        asyncio.get_running_loop().call_soon(self.tell_lost, None)
