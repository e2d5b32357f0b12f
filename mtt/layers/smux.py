"""smux as a layer: many streams on one connection, each a transport of its own.

Theory of operation
-------------------
`SmuxSession` is the protocol of the connection below (TLS or WebSocket), `SmuxStream` the
transport of the protocol above it. Streams are opened by the client only.

Sending: a stream's `write()` becomes frames and goes to the connection at once. When the
connection cannot take more, all streams are told to pause; their senders go on in turn when it
can, one read each, which shares the connection fairly.

Receiving: a stream whose reader has paused queues its data. smux has no window, so the queued
bytes of all streams together have a budget; when it is used up, the session stops reading the
connection, and TCP's back-pressure reaches the sender.

Closing: FIN ends both directions, because the Go peers answer it with FIN and drop the rest.
A stream counts against the peer's limit of streams until the peer has said FIN as well.

Keepalive: each side sends a NOP now and then; a session from which not a single frame came
between two checks is dead, unless it was us who did not read.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from mtt.errors import NetworkError, PeerError
from mtt.layers import linger
from mtt.layers.base import Data, Layer, LayerTransport, SharedReader, Upper, unsent
from mtt.wire.smux import FIN, NOP, PSH, SYN, Decoder, SmuxError, data_frames, frame

# Bytes queued for paused readers, all streams of a session together; as in the Go peers.
RECEIVE_BUDGET = 256 * 1024
# The Go peers send a NOP every 30 s. A little less and never the same: a peer's check must not
# fall between two of ours, and a clockwork rhythm is a fingerprint.
NOP_INTERVAL = (24.0, 30.0)
# No frame for so long, seen at two checks in a row: the peer is gone (70 to 140 s, as the Go peers).
CHECK_INTERVAL = 70.0
# Streams of one session. Clients open at most 16; the rest is room for foreign ones.
MAX_STREAMS = 256
# Ids are 32 bits wide and not re-used.
_LAST_ID = 0xFFFFFFFF


class SmuxStream(LayerTransport):
    """One stream: a transport for the protocol above, which gets `connection_made` at once."""

    __slots__ = (
        "_eof", "_eof_told", "_mark", "_paused", "_queue", "_scheduled", "_session", "id", "upper",
    )  # fmt: skip

    def __init__(self, session: SmuxSession, stream_id: int, upper: Upper) -> None:
        super().__init__()
        self._session = session
        self.id = stream_id
        self.upper = upper
        self._paused = False
        self._queue = bytearray()  # what came while the upper had paused
        self._scheduled = False
        self._eof = False  # the peer has sent FIN
        self._eof_told = False
        self._mark = 0  # what the socket had been given when we had written our last

    # Called by the session.

    def receive(self, data: Data) -> None:
        if self._paused or self._queue:
            self._queue += data
            self._session.queued(len(data))
        else:
            self.upper.data_received(data)

    def receive_eof(self) -> None:
        self._eof = True
        self._deliver()

    def _deliver(self) -> None:
        """Hand up what is queued, then the end."""
        self._scheduled = False
        if self._paused or self._session.gone(self):
            return
        if self._queue:
            data = bytes(self._queue)
            self._drop_queue()
            self.upper.data_received(data)
        if self._eof and not (self._paused or self._eof_told or self._session.gone(self)):
            self._eof_told = True
            if not self.upper.eof_received():
                self.close()

    def _drop_queue(self) -> None:
        size = len(self._queue)
        self._queue = bytearray()
        self._session.queued(-size)

    # The transport of the protocol above.

    def set_protocol(self, protocol: Any) -> None:
        self.upper = protocol

    def get_protocol(self) -> Any:
        return self.upper

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._session.lower.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._session.gone(self)

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
        """What the connection still has to send up to our last byte, not the neighbours' after it."""
        session = self._session
        return max(0, self._mark - session.bottom.written + unsent(session.lower))

    def write(self, data: Data | bytearray) -> None:
        session = self._session
        if data and not session.gone(self):
            if isinstance(data, bytearray):
                data = bytes(data)
            session.send(data_frames(self.id, data))
            self._mark = session.bottom.written

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        """End the stream; what was written is delivered by the session."""
        self.abort()

    def abort(self) -> None:
        """End the stream: smux knows one kind of end only."""
        if not self._session.gone(self):
            self._session.finish(self, eof_seen=self._eof)
            self._drop_queue()
            asyncio.get_running_loop().call_soon(self.upper.connection_lost, None)


class SmuxSession(SharedReader):
    """One multiplexed connection.

    Args:
        accept: server side: gives the protocol for a stream that the peer opened. None on a
            client, where a peer that opens streams is refused.
        on_change: called when a stream ended, which may have made room or emptied the session.
        on_lost: called once when the session is over, with the reason (None: closed by us).
    """

    __slots__ = (
        "_accept", "_check_timer", "_decoder", "_finishing", "_held", "_next_id", "_nop_timer",
        "_on_change", "_on_lost", "_queued", "_seen", "_streams", "_write_paused", "bottom", "lost",
        "lower", "written",
    )  # fmt: skip

    lower: asyncio.Transport
    bottom: Layer | SmuxSession  # the one that writes to the socket

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
        self._finishing: set[int] = set()  # closed by us, the peer's FIN is still to come
        self._next_id = 3  # as the Go client: 3, 5, 7, ...
        self._queued = 0
        self._held = False  # we do not read the connection: the budget is used up
        self._seen = True
        self._write_paused = False
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
    def exhausted(self) -> bool:
        """Whether all stream ids have been used."""
        return self._next_id > _LAST_ID

    # The protocol of the connection below.

    def connection_made(self, transport: Any) -> None:
        self.lower = transport
        self.bottom = self
        while isinstance(self.bottom.lower, Layer):
            self.bottom = self.bottom.lower
        self._schedule_nop()
        self._schedule_check()

    def data_received(self, data: Data) -> None:
        if self.lost:
            return
        self._seen = True
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
                if at < count and events[at][:2] == (PSH, stream_id):
                    # One write above for a run of frames.
                    run = [payload]
                    while at < count and events[at][:2] == (PSH, stream_id):
                        run.append(events[at][2])
                        at += 1
                    payload = b"".join(run) if stream is not None else b""
                if stream is not None:
                    stream.receive(payload)
            elif command == FIN:
                self._fin_received(stream_id)
            elif command == SYN:
                self._syn_received(stream_id)

    def _syn_received(self, stream_id: int) -> None:
        if stream_id in self._streams:
            return
        if self._accept is None or self.used_slots >= MAX_STREAMS:
            self.send(frame(FIN, stream_id))
            return
        self._finishing.discard(stream_id)
        upper = self._accept()
        stream = self._streams[stream_id] = SmuxStream(self, stream_id, upper)
        upper.connection_made(stream)

    def _fin_received(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.receive_eof()
        elif stream_id in self._finishing:
            self._finishing.discard(stream_id)
            self._changed()

    def eof_received(self) -> bool:
        self._end(NetworkError("the mux session was closed by the peer"))
        linger.close(self.lower, self.connection_lost, eof_seen=True)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc or NetworkError("the mux session was lost"))

    def pause_writing(self) -> None:
        self._write_paused = True
        for stream in list(self._streams.values()):
            stream.upper.pause_writing()

    def resume_writing(self) -> None:
        self._write_paused = False
        for stream in list(self._streams.values()):
            if self._write_paused:
                break  # the connection is full again; the others are still paused
            stream.upper.resume_writing()

    # For streams and owners.

    def open_stream(self, upper: Upper) -> SmuxStream:
        """Open a stream (client). Raises NetworkError when the session is over."""
        if self.lost or self.exhausted:
            raise NetworkError("the mux session is over")
        stream = self._streams[self._next_id] = SmuxStream(self, self._next_id, upper)
        self._next_id += 2
        self.send(frame(SYN, stream.id))
        upper.connection_made(stream)
        if self._write_paused:
            upper.pause_writing()
        return stream

    def gone(self, stream: SmuxStream) -> bool:
        """Whether `stream` has been closed, or its session is over."""
        return self._streams.get(stream.id) is not stream

    def finish(self, stream: SmuxStream, *, eof_seen: bool) -> None:
        """Send FIN for a stream that its protocol has closed."""
        del self._streams[stream.id]
        if not eof_seen:
            self._finishing.add(stream.id)
        self.send(frame(FIN, stream.id))
        self._changed()

    def queued(self, size: int) -> None:
        """Account for bytes that a stream has queued (or, negative, let go)."""
        self._queued += size
        if self.lost:
            return
        if self._queued >= RECEIVE_BUDGET:
            if not self._held:
                self._held = True
                self.lower.pause_reading()
        elif self._held:
            self._held = False
            self._seen = True
            self.lower.resume_reading()

    def send(self, frames: bytes) -> None:
        """Hand frames to the connection."""
        self.written += len(frames)
        self.lower.write(frames)

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
        streams, self._streams = self._streams, {}
        self._finishing.clear()
        for stream in streams.values():
            stream.upper.connection_lost(exc)
        if self._on_lost is not None:
            self._on_lost(self, exc)
        self._accept = self._on_change = self._on_lost = None

    # Keepalive.

    def _schedule_nop(self) -> None:
        self._nop_timer = asyncio.get_running_loop().call_later(
            random.uniform(*NOP_INTERVAL), self._send_nop
        )

    def _send_nop(self) -> None:
        if not self._write_paused:  # otherwise enough is on its way already
            self.send(frame(NOP, 0))
        self._schedule_nop()

    def _schedule_check(self) -> None:
        self._check_timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL, self._check)

    def _check(self) -> None:
        if not (self._seen or self._held):
            self._end(NetworkError("the mux session is dead: no sign of life from the peer"))
            linger.reset(self.lower)
            return
        self._seen = False
        self._schedule_check()
