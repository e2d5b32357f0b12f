"""The base of a tunnel's sessions: flow control, limits and the opening of streams.

`smux` and `mux_cool` encode and decode the frames.

In a tunnel only the client opens streams.

Flow control: the protocols have no windows. If this program runs on both sides, a stream with a
long queue tells the peer to stop the stream's sender, and to resume when the queue is empty. The
message is a keepalive with the stream's id. For other peers, and for data already on its way, the
session's budget is the limit: one slow reader then stalls the other streams. A session that many
users share has a larger budget, and ends the streams that fill it.

Closing: the layer below knows whether the peer is ours (`half_closes`). A stream counts against the
peer's limit of streams until the peer has ended it as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

from mtt.errors import NetworkError, PeerError, StuckError
from mtt.layers.base import Data, StreamProtocol
from mtt.layers.keepalive import Keepalive
from mtt.layers.mux import MuxSession
from mtt.layers.mux_stream import MuxStream, StreamAdmission
from mtt.layers.reads import READ_SIZE
from mtt.wire.frames import StreamError

# Bytes queued for paused readers, all streams of a session together, if the peer cannot stop a
# stream's sender. Above it, one slow reader stalls the other streams. (The Go peers: 256 KiB.)
RECEIVE_BUDGET = 1024 * 1024
# The same if the peer can: room for data on its way when the sender stops, on a fast and long line.
OWN_BUDGET = 4 * 1024 * 1024
# Bytes queued on a stream at which its sender is stopped, if the peer is ours. Data already on its
# way, a round trip's worth, is added to this.
STOP_AT = 128 * 1024
# The budget of a session that many users share, between a gateway and an agent. Hundreds of readers
# may have stopped, each with STOP_AT and the data that was on its way.
SHARED_BUDGET = 64 * 1024 * 1024
# Above the budget, the session is not read. Streams whose readers have taken nothing for this many
# seconds end, the longest queues first, so that the others can continue.
SHARED_PAUSE_TIME = 4.0
# Streams end until the queued bytes are this much below the budget.
SHARED_ROOM = 1024 * 1024
# Seconds without a keepalive from the peer after which a session gets no new streams.
STALE_TIME = 35.0
# Streams of a tunnel's session. Our clients open at most 16; foreign clients may open more.
MAX_STREAMS = 256
# If this many bytes wait to be sent to a peer that opens streams, the peer does not read at all:
# even if every stream has just been paused, each adds at most one more read.
SEND_LIMIT = MAX_STREAMS * 2 * READ_SIZE


class Decoder(Protocol):
    """Turns received bytes into events `(command, stream id, payload)`."""

    def feed(self, data: Data) -> list[tuple[int, int, Data]]:
        """Raises StreamError."""


class TunnelStream(MuxStream):
    """One stream of a `TunnelSession`."""

    shares_connection = True

    __slots__ = ("_peer_stopped", "_stopped", "queued_since")

    _session: TunnelSession

    def __init__(self, session: TunnelSession, stream_id: int, upper: StreamProtocol) -> None:
        super().__init__(session, stream_id, upper)
        self._peer_stopped = False  # we have told the peer to stop
        self._stopped = False  # the peer has told us to stop
        self.queued_since = 0.0  # loop time at which the reader took something for the last time

    def half_closes(self) -> bool | None:
        return self._session.lower.half_closes()

    def ask_half_close(self) -> None:
        self._session.lower.ask_half_close()

    # Called by the session.

    @property
    def accepts_reset(self) -> bool:
        return self.half_closes() is not False  # half-close may be undecided, see `abort`

    @property
    def queued(self) -> int:
        """Bytes that wait for a paused reader."""
        return len(self._queue)

    def kill(self, error: Exception) -> None:
        """Reset the stream, whose reader is too slow; what waits for it is dropped."""
        session = self._session
        session.send_reset(self.id)
        session.finish(self, eof_seen=self._eof, say_fin=not self._write_eof)
        self._drop_queue()
        self.report_lost(error)

    def _enqueue(self, data: Data) -> None:
        if not self._queue:
            self.queued_since = self._session.heard_at
        super()._enqueue(data)
        if len(self._queue) > STOP_AT and not self._peer_stopped and self._session.half_close:
            self._peer_stopped = True
            self._session.send_stop(self.id)

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
        if not self._is_write_blocked():
            super().resume_writing()

    def _is_write_blocked(self) -> bool:
        return self._stopped or super()._is_write_blocked()

    def _drop_queue(self) -> None:
        super()._drop_queue()
        if self._peer_stopped and not self._session.is_gone(self):
            self._peer_stopped = False
            self._session.send_stop(self.id)


class TunnelSession(MuxSession[TunnelStream]):
    """One multiplexed connection.

    Args:
        max_streams: streams of the session; those that the peer opens beyond it are refused. Above
            MAX_STREAMS many users share the session, see SHARED_BUDGET.
        accept, on_change, on_lost: see `MuxSession`.
    """

    __slots__ = ("_decoder", "_is_shared", "_max_streams", "_pause_timer")

    name: ClassVar[str] = "mux session"
    protocol: ClassVar[str]  # for error messages
    decoder_class: ClassVar[type[Decoder]]
    stream_class: ClassVar[type[TunnelStream]]
    id_step: ClassVar[int]  # between the ids of two streams that this side opens
    max_payload: ClassVar[int]  # bytes of data in a frame to a peer that is not ours
    max_length: ClassVar[int]  # bytes that fit into a frame

    def __init__(
        self,
        *,
        accept: Callable[[], StreamProtocol] | None = None,
        max_streams: int = MAX_STREAMS,
        on_change: Callable[[Any], object] | None = None,
        on_lost: Callable[[Any, Exception | None], object] | None = None,
    ) -> None:
        super().__init__(accept=accept, on_change=on_change, on_lost=on_lost)
        self._decoder = self.decoder_class()
        self._max_streams = max_streams
        self._is_shared = max_streams > MAX_STREAMS
        self._pause_timer: asyncio.TimerHandle | None = None
        if self._is_shared:
            self.admission = StreamAdmission(max_streams)

    @property
    def _answers_fin(self) -> bool:
        return True

    # What each protocol implements. The static ones are functions of its codec.

    @staticmethod
    def opening(stream_id: int) -> bytes:
        """The frame that opens a stream."""
        raise NotImplementedError

    @staticmethod
    def data_header(stream_id: int, size: int) -> bytes:
        """The header of a frame with `size` bytes of data."""
        raise NotImplementedError

    @staticmethod
    def data_frames(stream_id: int, data: Data, most: int) -> bytes:
        """`data` as frames of at most `most` bytes."""
        raise NotImplementedError

    def send_stop(self, stream_id: int) -> None:
        """Tell a peer that is ours to stop a stream's sender, or to go on."""
        raise NotImplementedError

    # State.

    @property
    def half_close(self) -> bool:
        return self.lower.half_closes() is True

    @property
    def receive_budget(self) -> int:
        if not self.half_close:
            return RECEIVE_BUDGET
        return SHARED_BUDGET if self._is_shared else OWN_BUDGET

    @property
    def healthy(self) -> bool:
        """Whether the session can take a new stream, as far as it knows."""
        since = self.silent_since()
        is_stale = since is not None and self._now() - since >= STALE_TIME
        return not (is_stale or self.is_stalled)

    @property
    def has_room(self) -> bool:
        """Whether another stream fits."""
        return self.used_slots < self._max_streams and not self.exhausted

    # The protocol of the connection below.

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._keepalive = Keepalive(self, self)

    def _decode(self, data: Data) -> list[tuple[int, int, Data]]:
        try:
            return self._decoder.feed(data)
        except StreamError as error:
            # The frames before the error are handed up first, and nothing is read after it.
            self.lower.pause_reading()
            failure = PeerError(f"{self.protocol}: {error}")
            asyncio.get_running_loop().call_soon(self.close, failure)
            return error.events

    def _open_received(self, stream_id: int) -> None:
        """Begin a stream that the peer has opened, or refuse it."""
        if self.lower.get_write_buffer_size() > SEND_LIMIT:
            self.abort(PeerError(f"{self.protocol}: the peer opens streams but reads nothing"))
            return
        if self._accept is None or self.used_slots >= self._max_streams:
            self.refuse(stream_id)
            return
        self._awaiting_fin.pop(stream_id, None)
        self._stream_arrived(self.stream_class(self, stream_id, self._accept()))

    def refuse(self, stream_id: int) -> None:
        """Refuse a stream that the peer has opened."""
        self.send_fin(stream_id)

    def _stop_received(self, stream_id: int) -> None:
        if stream_id in self._streams and self.half_close:
            self._streams[stream_id].receive_stop()

    # For streams and owners.

    def open_stream(self, upper: StreamProtocol) -> TunnelStream:
        """Open a stream. Raises NetworkError when the session is over."""
        if self.lost or self.exhausted:
            raise NetworkError("the mux session is over")
        stream = self.stream_class(self, self._next_id, upper)
        self._next_id += self.id_step
        if not self._prefix:
            asyncio.get_running_loop().call_soon(self._send_prefix)
        self._prefix += self.opening(stream.id)
        self._streams[stream.id] = stream
        stream.begin()
        return stream

    def _send_prefix(self) -> None:
        """Open the streams whose applications have written nothing yet."""
        if self._prefix and not self.lost:
            self.send(b"")

    def send_data(self, stream_id: int, data: Data) -> None:
        size = len(data)
        # A whole read in one frame costs our own ends less; others expect the original's size.
        most = self.max_payload
        if size > most and self.half_close:
            most = self.max_length
        if size <= most:
            self.send_framed(self.data_header(stream_id, size), data)
        else:
            self.send(self.data_frames(stream_id, data, most))

    # Readers that have stopped.

    def count_queued(self, size: int) -> None:
        super().count_queued(size)
        if not self._is_shared or self.lost:
            return
        if not self._reading_paused:
            self._release()
        elif self._pause_timer is None:
            # Not in this call, in which a stream receives data.
            self._pause_timer = asyncio.get_running_loop().call_later(0, self._end_slowest)

    def _end_slowest(self) -> None:
        """End streams whose readers have stopped, so that the session can be read again."""
        self._pause_timer = None
        now = self._now()
        left, limit = self._queued, self.receive_budget - SHARED_ROOM
        # A rate limit slows down all streams of a session alike, so it is no reason to end one.
        streams = [
            each
            for each in self._streams.values()
            if each.queued and not each.upper.is_throttled
        ]
        streams = [each for each in streams if each.queued >= STOP_AT] or streams
        # The longest queues first: so the fewest streams end.
        next_at = float("inf")
        for stream in sorted(streams, key=lambda each: -each.queued):
            stops_at = stream.queued_since + SHARED_PAUSE_TIME
            if left <= limit or self.is_gone(stream):
                continue
            if stops_at > now:
                next_at = min(next_at, stops_at)
                continue
            size = stream.queued
            left -= size
            stream.kill(StuckError(f"the reader is too slow: {size} bytes queued"))
        if left > limit and next_at < float("inf") and self._pause_timer is None and not self.lost:
            loop = asyncio.get_running_loop()
            self._pause_timer = loop.call_later(next_at - now, self._end_slowest)

    def _release(self) -> None:
        if self._pause_timer is not None:
            self._pause_timer.cancel()
            self._pause_timer = None

    # For the keepalive.

    def keep_alive(self) -> None:
        if not self.write_paused:
            self.send_noop()

    def silent_since(self) -> float | None:
        return None if self._reading_paused else self.heard_at

    def peer_is_dead(self) -> None:
        self.abort(NetworkError("the mux session is dead: no sign of life from the peer"))
