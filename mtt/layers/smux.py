"""smux as a layer: many streams on one connection, each a transport of its own.

Theory of operation
-------------------
`SmuxSession` is the protocol of the connection below (TLS or WebSocket), `SmuxStream` the
transport of the protocol above it. Streams are opened by the client only.

Sending: a stream's `write()` becomes frames and goes to the connection at once. When the
connection cannot take more, all streams are told to pause; their senders go on in turn when it
can, one read each, which shares the connection fairly.

Receiving: a stream whose reader has paused queues its data, and tells the peer to stop the stream's
sender when the queue gets long, and to go on when it is empty. Only our own ends know this sign (a
NOP with the stream's id). smux has no window, so for the others, and for what is on its way, the
queued bytes of all streams together have a budget; when it is used up, the session stops reading
the connection, and TCP's back-pressure reaches the sender.

Closing: to a Go peer FIN ends both directions; it answers with FIN and drops the rest. Between our
own ends, which the connection below knows (`can_write_eof`), FIN ends one direction, and an empty
PSH, which Go peers ignore, resets the stream. A stream counts against the peer's limit of streams
until the peer has said FIN as well.

Keepalive: each side sends a NOP now and then; a session from which not a single frame came for a
while is dead, unless it was us who did not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import Callable
from typing import Any

from mtt.errors import MttError, NetworkError, PeerError, describe
from mtt.layers import linger
from mtt.layers.base import (
    READ_SIZE,
    Data,
    Layer,
    LayerTransport,
    SharedReader,
    Upper,
    silent_seconds,
)
from mtt.layers.smux_stream import SmuxStream
from mtt.wire.smux import FIN, NOP, PSH, SYN, Decoder, SmuxError, frame

# Bytes queued for paused readers, all streams of a session together, when the peer cannot stop a
# stream's sender: from there on one slow reader stalls its neighbours. (The Go peers: 256 KiB.)
RECEIVE_BUDGET = 1024 * 1024
# The same when it can: room for what is on its way when it is told, on a fast and long line.
OWN_BUDGET = 4 * 1024 * 1024
# The Go peers send a NOP every 30 s. A little less and never the same: a peer's check must not
# fall between two of ours, and a clockwork rhythm is a fingerprint.
NOP_INTERVAL = (24.0, 30.0)
# No frame for so long and the peer is gone. Go peers give us between 70 and 140 s.
DEAD_TIME = 70.0
CHECK_INTERVAL = 10.0
# A session with a NOP overdue gets no new streams, nor one whose peer's kernel owes us an
# acknowledgement for so long: the network may have changed under it.
STALE_TIME = 35.0
UNANSWERED_TIME = 5.0
# What the kernel may hold unsent. Without a limit it takes megabytes, and the small request of one
# stream waits behind the upload of another.
UNSENT_LIMIT = 128 * 1024
# Streams of one session. Clients open at most 16; the rest is room for foreign ones.
MAX_STREAMS = 256
# A peer that opens streams while this much waits to be sent to it does not read at all: even when
# every stream has just been told to pause, each gives us one last read.
SEND_LIMIT = MAX_STREAMS * 2 * READ_SIZE
# Ids are 32 bits wide and not re-used.
_LAST_ID = 0xFFFFFFFF


class SmuxSession(SharedReader):
    """One multiplexed connection.

    Args:
        accept: server side: gives the protocol for a stream that the peer opened. None on a
            client, where a peer that opens streams is refused.
        on_change: called when a stream ended, which may have made room or emptied the session.
        on_lost: called once when the session is over, with the reason (None: closed by us).
    """

    __slots__ = (
        "_accept", "_bottom", "_check_timer", "_decoder", "_finishing", "_held", "_next_id",
        "_nop_timer", "_on_change", "_on_lost", "_opening", "_queued", "_seen_at", "_streams",
        "lost", "lower", "write_paused", "writer", "written",
    )  # fmt: skip

    lower: asyncio.Transport
    _bottom: Layer | SmuxSession  # the one that writes to the socket

    def __init__(
        self,
        *,
        accept: Callable[[], Upper] | None = None,
        on_change: Callable[[SmuxSession], None] | None = None,
        on_lost: Callable[[SmuxSession, Exception | None], None] | None = None,
    ) -> None:
        self._accept = accept
        self._on_change = on_change
        self._on_lost = on_lost
        self._decoder = Decoder()
        self._streams: dict[int, SmuxStream] = {}
        # Closed by us, the peer's FIN is still to come: when that was.
        self._finishing: dict[int, float] = {}
        self._next_id = 3  # as the Go client: 3, 5, 7, ...
        self._opening = b""  # SYN frames that travel with what is sent next
        self._queued = 0
        self._held = False  # we do not read the connection: the budget is used up
        self._seen_at = 0.0  # when the last frame came
        self.write_paused = False
        self.writer = 0  # the stream that has written last
        self.lost = False
        self.written = 0  # bytes handed to the connection
        self._nop_timer: asyncio.TimerHandle | None = None
        self._check_timer: asyncio.TimerHandle | None = None

    @property
    def open_streams(self) -> int:
        """Streams that still carry something for a protocol of ours."""
        return len(self._streams)

    @property
    def used_slots(self) -> int:
        """Streams that count against the peer's limit: open, or still open on its side."""
        return len(self._streams) + len(self._finishing)

    @property
    def half_close(self) -> bool:
        """Whether streams can end each direction by itself: the peer is one of ours."""
        return isinstance(self.lower, LayerTransport) and self.lower.can_write_eof()

    @property
    def handed_over(self) -> int:
        """Bytes that the socket has been given so far, in its own count (after TLS)."""
        return self._bottom.written

    @property
    def exhausted(self) -> bool:
        """Whether all stream ids have been used."""
        return self._next_id > _LAST_ID

    @property
    def healthy(self) -> bool:
        """Whether a new stream may rely on it."""
        age = asyncio.get_running_loop().time() - self._seen_at
        return age < STALE_TIME and silent_seconds(self.lower) < UNANSWERED_TIME

    # The protocol of the connection below.

    def connection_made(self, transport: Any) -> None:
        self.lower = transport
        self._bottom = self
        while isinstance(self._bottom.lower, Layer):
            self._bottom = self._bottom.lower
        self._seen_at = asyncio.get_running_loop().time()
        self._limit_unsent()
        self._schedule_nop()
        self._schedule_check()

    def _limit_unsent(self) -> None:
        sock = self.lower.get_extra_info("socket")
        option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
        if sock is not None and option is not None:
            with contextlib.suppress(OSError):  # not a TCP socket
                sock.setsockopt(socket.IPPROTO_TCP, option, UNSENT_LIMIT)

    def data_received(self, data: Data) -> None:
        if self.lost:
            return
        self._seen_at = asyncio.get_running_loop().time()
        try:
            events = self._decoder.feed(data)
        except SmuxError as error:
            self._end(PeerError(f"smux: {error}"))
            linger.close(self.lower, self.connection_lost, eof_seen=False)
            return
        streams = self._streams
        count = len(events)
        at = 0
        while at < count:
            command, stream_id, payload = events[at]
            at += 1
            if command == PSH:
                stream = streams.get(stream_id)
                if not payload:
                    if stream is not None and self.half_close:
                        stream.receive_reset()
                    continue
                run = [payload]
                while at < count and events[at][:2] == (PSH, stream_id) and events[at][2]:
                    run.append(events[at][2])
                    at += 1
                if stream is not None:
                    # One write above for a run of frames.
                    stream.receive(b"".join(run) if len(run) > 1 else payload)
                elif stream_id in self._finishing:
                    self._late_data(stream_id)
            elif command == FIN:
                self._fin_received(stream_id)
            elif command == SYN:
                self._syn_received(stream_id)
            elif stream_id in streams and self.half_close:
                streams[stream_id].receive_stop()

    def _syn_received(self, stream_id: int) -> None:
        if stream_id in self._streams or self.lost:
            return
        if self.lower.get_write_buffer_size() > SEND_LIMIT:
            self._end(PeerError("smux: the peer opens streams but reads nothing"))
            linger.reset(self.lower)
            return
        if self._accept is None or self.used_slots >= MAX_STREAMS:
            self.send(frame(FIN, stream_id))
            return
        self._finishing.pop(stream_id, None)
        upper = self._accept()
        stream = self._streams[stream_id] = SmuxStream(self, stream_id, upper)
        self._made(stream)

    def _fin_received(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.receive_fin()
        elif stream_id in self._finishing:
            del self._finishing[stream_id]
            self._changed()

    def _late_data(self, stream_id: int) -> None:
        """Data for a stream that we have closed: in the end the peer is told that it is in vain."""
        now = asyncio.get_running_loop().time()
        if self.half_close and now - self._finishing[stream_id] > linger.LINGER_TIME:
            self.send(frame(PSH, stream_id))
            self._finishing[stream_id] = float("inf")  # once is enough

    def eof_received(self) -> bool:
        self._end(NetworkError("the mux session was closed by the peer"))
        linger.close(self.lower, self.connection_lost, eof_seen=True)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if not isinstance(exc, MttError):  # a reset of the connection is no reset of a stream
            exc = NetworkError(f"the mux session was lost: {describe(exc)}")
        self._end(exc)

    def pause_writing(self) -> None:
        self.write_paused = True
        # Whoever has filled the connection is the last to go on: its first read may fill it again,
        # and the others would wait for ever.
        if self.writer in self._streams:
            self._streams[self.writer] = self._streams.pop(self.writer)
        for stream in list(self._streams.values()):
            stream.pause_writing()

    def resume_writing(self) -> None:
        self.write_paused = False
        for stream in list(self._streams.values()):
            if self.write_paused:
                break  # the connection is full again; the others are still paused
            stream.resume_writing()

    # For streams and owners.

    def open_stream(self, upper: Upper) -> SmuxStream:
        """Open a stream (client). Raises NetworkError when the session is over."""
        if self.lost or self.exhausted:
            raise NetworkError("the mux session is over")
        stream = self._streams[self._next_id] = SmuxStream(self, self._next_id, upper)
        self._next_id += 2
        if not self._opening:
            asyncio.get_running_loop().call_soon(self._send_opening)
        self._opening += frame(SYN, stream.id)
        self._made(stream)
        return stream

    def _made(self, stream: SmuxStream) -> None:
        upper = stream.upper
        upper.connection_made(stream)
        # A protocol that took the stream over in there knows already.
        if self.write_paused and stream.upper is upper and not self.gone(stream):
            upper.pause_writing()

    def gone(self, stream: SmuxStream) -> bool:
        """Whether `stream` has been closed, or its session is over."""
        return self._streams.get(stream.id) is not stream

    def finish(self, stream: SmuxStream, *, eof_seen: bool, say_fin: bool) -> None:
        """Be done with a stream that was closed or reset."""
        del self._streams[stream.id]
        if not eof_seen:
            self._finishing[stream.id] = asyncio.get_running_loop().time()
        if say_fin:
            self.send(frame(FIN, stream.id))
        self._changed()

    def queued(self, size: int) -> None:
        """Account for bytes that a stream has queued (or, negative, let go)."""
        self._queued += size
        if self.lost:
            return
        if self._queued >= (OWN_BUDGET if self.half_close else RECEIVE_BUDGET):
            if not self._held:
                self._held = True
                self.lower.pause_reading()
        elif self._held:
            self._held = False
            self._seen_at = asyncio.get_running_loop().time()
            self.lower.resume_reading()

    def send(self, frames: bytes) -> None:
        """Hand frames to the connection."""
        if self._opening:
            frames = self._opening + frames
            self._opening = b""
        self.written += len(frames)
        self.lower.write(frames)

    def _send_opening(self) -> None:
        """Streams whose applications have nothing to say yet are opened all the same."""
        if self._opening and not self.lost:
            self.send(b"")

    def close(self) -> None:
        """End the session and all its streams; what was written is delivered."""
        if not self.lost:
            self._end(None)
            linger.close(self.lower, self.connection_lost, eof_seen=False)

    def abort(self) -> None:
        """Cut the session."""
        if not self.lost:
            self._end(None)
            linger.reset(self.lower)

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self)

    def _end(self, exc: Exception | None) -> None:
        if self.lost:
            return
        self.lost = True
        for timer in (self._nop_timer, self._check_timer):
            if timer is not None:
                timer.cancel()
        streams = list(self._streams.values())
        self._streams.clear()  # and not replaced: data_received may be busy with it
        self._finishing.clear()
        for stream in streams:
            stream.session_ended(exc)
        if self._on_lost is not None:
            self._on_lost(self, exc)
        self._accept = self._on_change = self._on_lost = None

    # Keepalive.

    def _schedule_nop(self) -> None:
        self._nop_timer = asyncio.get_running_loop().call_later(
            random.uniform(*NOP_INTERVAL), self._send_nop
        )

    def _send_nop(self) -> None:
        if not self.write_paused:  # otherwise enough is on its way already
            self.send(frame(NOP, 0))
        self._schedule_nop()

    def _schedule_check(self) -> None:
        self._check_timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL, self._check)

    def _check(self) -> None:
        silence = asyncio.get_running_loop().time() - self._seen_at
        if silence >= DEAD_TIME and not self._held:
            self._end(NetworkError("the mux session is dead: no sign of life from the peer"))
            linger.reset(self.lower)
            return
        self._schedule_check()
