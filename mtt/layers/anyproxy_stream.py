"""The streams of a session with a Go program of AnyProxy. See `anyproxy`.

Sending: the Go programs keep up to 100 messages of a stream whose target is slow, whatever their
size; one more ends the stream. So a stream sends few and large messages when data piles up: it
sends at once as long as it keeps to a modest rate of messages, and joins what comes faster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from mtt.errors import DestinationError
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.mux_stream import MuxStream, Session
from mtt.outcome import Outcome
from mtt.wire.anyproxy import ID_SIZE, UDP, ConnectResponse, StreamData, error_text

# Bytes of the largest message. A Go program has 30 s to write each to its target.
MAX_PIECE = 1024 * 1024
# Seconds between messages of a stream that sends without end: 64 MB/s at most. And the seconds that
# it may be ahead of that: 32 messages, so that requests and keystrokes do not wait.
MESSAGE_INTERVAL = 1 / 64
AHEAD_TIME = 0.5
# Bytes that pile up on a stream while the connection is full, before its writer is told to pause;
# and those of all streams of a session.
PILE = 256 * 1024
PILES = 64 * PILE
# Bytes below which a writer resumes that had filled a whole message.
LOW_WATER = PILE
# Bytes of a queue handed up at a time: a reader that pauses again gets no more than this.
HAND_UP = 256 * 1024
# Datagrams that wait for a paused reader. More are dropped, as UDP permits; the Go programs end the
# stream.
MAX_DATAGRAMS = 100


class MessageSession(Session, Protocol):
    """What a stream needs of its session."""

    @property
    def now(self) -> Callable[[], float]: ...
    @property
    def pile_limit(self) -> int:
        """Bytes that may pile up on a stream while the connection is full."""

    def note_queue(self, stream: GoStream, size: int) -> None:
        """Note that a stream's queue has grown."""

    def send(self, frames: Data) -> None: ...
    def send_control(self, data: bytes) -> None: ...


class GoStream(MuxStream):
    """One stream: a transport for the protocol above.

    One that this side opens begins, and gets `connection_made`, when the agent has connected to the
    target. If it cannot, the protocol gets `connection_lost` with a DestinationError alone.

    Args:
        network: TCP or UDP of `wire.anyproxy`.
        address: the target's.
        is_ours: whether this side opens it.
    """

    shares_connection = True
    name = "AnyProxy stream"
    carries_datagrams = False

    __slots__ = (
        "_address", "_awaits_answer", "_is_full", "_is_ours", "_network", "_next_at",
        "_out", "_timer",
    )  # fmt: skip

    _session: MessageSession

    def __init__(
        self, session: MessageSession, stream_id: int, upper: StreamProtocol,
        network: str, address: str, *, is_ours: bool,
    ) -> None:  # fmt: skip
        super().__init__(session, stream_id, upper)
        self._network = network
        self._address = address
        self._is_ours = is_ours
        self._awaits_answer = True  # the CONNECT has no CONNECT_RESPONSE yet
        self._out = bytearray()  # written, but not sent
        self._is_full = False  # `_out` has filled a message
        self._next_at = 0.0  # when the next message is due at the steady rate
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"{self.name} {self.wire_id.decode(errors='replace')} over {self._session.lower!r}"

    @property
    def wire_id(self) -> bytes:
        """The stream's id in messages."""
        return self.id.to_bytes(ID_SIZE, "big").rstrip(b"\0")

    # The answer to CONNECT.

    def answer(self, outcome: Outcome, reached: object = None) -> None:
        """Tell the gateway how the attempt to connect ended, once."""
        if self._awaits_answer and not self._session.is_gone(self):
            self._awaits_answer = False
            error = ""
            if outcome is not Outcome.SUCCEEDED:
                error = error_text(outcome, self._network, self._address)
                self._write_eof = True  # the gateway says CLOSE now, as it does to Go agents
            self._session.send_control(ConnectResponse(self.wire_id, not error, error).encode())

    def receive_answer(self, outcome: Outcome) -> None:
        """The agent has connected to the target, or has not."""
        if not (self._is_ours and self._awaits_answer):
            return
        self._awaits_answer = False
        if outcome is Outcome.SUCCEEDED:
            self.begin()
        else:
            # Without CLOSE, a Go agent keeps the stream's queue forever.
            self._session.finish(self, eof_seen=True, say_fin=True)
            self.report_lost(DestinationError(outcome))

    # Called by the session.

    def begin(self) -> None:
        self.write_paused = self._session.write_paused
        super().begin()
        if not self._session.is_gone(self):
            self._tell_writer()

    def receive(self, data: Data) -> None:
        if data and not (self._is_ours and self._awaits_answer):
            super().receive(data)

    def _enqueue(self, data: Data) -> None:
        super()._enqueue(data)
        self._session.note_queue(self, len(self._queue))

    @property
    def queued(self) -> int:
        """Bytes that wait for a paused reader."""
        return len(self._queue)

    def receive_fin(self) -> None:
        if self._is_ours and self._awaits_answer:
            self.receive_answer(Outcome.GENERAL_FAILURE)
        else:
            super().receive_fin()

    def kill(self, error: Exception) -> None:
        """End the stream, whose reader is too slow; what waits for it is dropped."""
        self._cancel_timer()
        if not self._is_ours:
            self.answer(Outcome.GENERAL_FAILURE)  # unless it has been answered
        self._session.finish(self, eof_seen=True, say_fin=not self._write_eof)
        self._drop_queue()
        self.report_lost(error)

    def session_ended(self, exc: Exception | None) -> None:
        self._cancel_timer()
        super().session_ended(exc)

    def _end_by_reset(self) -> None:
        raise AssertionError("there are no resets")

    def _deliver(self) -> None:
        while len(self._queue) > HAND_UP and not (self._paused or self.is_closing()):
            data = bytes(self._queue[:HAND_UP])
            del self._queue[:HAND_UP]
            self._session.count_queued(-HAND_UP)
            self.upper.data_received(data)
        super()._deliver()

    # Sending.

    def pause_writing(self) -> None:
        self._tell_writer()

    def resume_writing(self) -> None:
        self._send_piled()

    def _is_write_blocked(self) -> bool:
        session = self._session
        return self._is_full or (session.write_paused and len(self._out) >= session.pile_limit)

    def _tell_writer(self) -> None:
        """Tell the protocol above to pause or resume, if that has changed."""
        blocked = self._is_write_blocked()
        if blocked is not self.write_paused:
            self.write_paused = blocked
            if blocked:
                self.upper.pause_writing()
            else:
                self.upper.resume_writing()

    def write(self, data: Data | bytearray) -> None:
        session = self._session
        if not data or self._write_eof or session.is_gone(self):
            return
        if self._out or session.write_paused or not self._may_send():
            self._out += data
            self._is_full = self._is_full or len(self._out) >= MAX_PIECE
            self._schedule()
            self._tell_writer()
        else:
            self._send(bytes(data) if isinstance(data, bytearray) else data)

    def _may_send(self) -> bool:
        """Whether the rate permits a message now; counts it."""
        now = self._session.now()
        if self._next_at - now > AHEAD_TIME:
            return False
        self._next_at = max(self._next_at, now) + MESSAGE_INTERVAL
        return True

    def _send(self, data: Data) -> None:
        session = self._session
        session.last_writer = self.id
        for start in range(0, len(data), MAX_PIECE):
            piece = data if len(data) <= MAX_PIECE else data[start : start + MAX_PIECE]
            session.send_data(self.id, piece)
        self._write_mark = session.bottom.socket_written

    def _send_piled(self) -> None:
        """Send what has piled up, as far as the connection and the rate permit."""
        session = self._session
        while self._out and not session.write_paused and self._may_send():
            piece = bytes(self._out[:MAX_PIECE])
            del self._out[:MAX_PIECE]
            self._send(piece)
        self._is_full = self._is_full and len(self._out) > LOW_WATER
        self._schedule()
        self._tell_writer()

    def _schedule(self) -> None:
        if self._out and self._timer is None and not self._session.write_paused:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(MESSAGE_INTERVAL, self._timer_over)

    def _timer_over(self) -> None:
        self._timer = None
        if not self._session.is_gone(self):
            self._send_piled()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def flush(self) -> None:
        """Send all that was written, because nothing follows."""
        self._cancel_timer()
        out, self._out = self._out, bytearray()
        if out and not (self._write_eof or self._session.is_gone(self)):
            self._send(bytes(out))

    def get_write_buffer_size(self) -> int:
        return len(self._out) + super().get_write_buffer_size()

    def unsent(self) -> int:
        return len(self._out) + super().unsent()

    # Ends.

    def write_eof(self) -> None:
        """End both directions: the protocol has no end of one."""
        self.flush()
        super().write_eof()

    def close(self) -> None:
        self.flush()
        super().close()

    def cut(self) -> None:
        self.flush()
        super().abort()

    def _finish(self, *, reset: bool) -> None:
        self._cancel_timer()
        self._out.clear()
        if not self._is_ours:
            self.answer(Outcome.GENERAL_FAILURE)  # unless it has been answered
        super()._finish(reset=reset)


class GoDatagramStream(GoStream):
    """A stream of datagrams: one in each `write`, and in each `data_received` above."""

    carries_datagrams = True

    __slots__ = ("_datagrams",)

    def __init__(
        self, session: MessageSession, stream_id: int, upper: StreamProtocol, address: str,
        *, is_ours: bool,
    ) -> None:  # fmt: skip
        super().__init__(session, stream_id, upper, UDP, address, is_ours=is_ours)
        self._datagrams: list[bytes] = []

    def receive(self, data: Data) -> None:
        if self._eof or (self._is_ours and self._awaits_answer):
            return
        if not (self._paused or self._datagrams):
            upper = self.upper
            upper.data_received(data if upper.borrows else bytes(data))
        elif len(self._datagrams) < MAX_DATAGRAMS:
            self._datagrams.append(bytes(data))
            self._session.count_queued(len(data))

    @property
    def _has_undelivered(self) -> bool:
        return bool(self._datagrams) or super()._has_undelivered

    @property
    def is_over(self) -> bool:
        return super().is_over and not self._datagrams

    def _deliver(self) -> None:
        while self._datagrams and not (self._paused or self.is_closing()):
            data = self._datagrams.pop(0)
            self._session.count_queued(-len(data))
            self.upper.data_received(data)
        if not self._datagrams:
            super()._deliver()

    def _drop_queue(self) -> None:
        size = sum(map(len, self._datagrams))
        self._datagrams.clear()
        self._session.count_queued(-size)

    def _is_write_blocked(self) -> bool:
        return self._session.write_paused

    def write(self, data: Data | bytearray) -> None:
        """Send a datagram, or drop it while the connection is full."""
        session = self._session
        if not (self._write_eof or session.write_paused or session.is_gone(self)):
            session.last_writer = self.id
            session.send(StreamData(self.wire_id, data).encode())  # also if it is empty
            self._write_mark = session.bottom.socket_written
