"""The base of the sessions of all multiplexing protocols: many streams on one connection.

Theory of operation
-------------------
A session is the protocol of the connection below (TLS or WebSocket), a `MuxStream` the transport of
the protocol above. The subclasses encode and decode frames.

Sending: what a stream writes goes to the connection at once. When the connection is full, all
streams are told to pause. When it has room again they resume in turn, one read each, which shares
the connection fairly.

Receiving: a stream whose reader has paused queues its data. The queues of all streams share a
budget; when it is used up, the session stops reading the connection, and TCP's back-pressure
reaches the sender.

Closing: if the peer is ours (`half_close`), FIN ends one direction of a stream, and an empty PSH
resets it. For other peers FIN ends both directions, and what they still send is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from mtt.errors import Cause, MttError, NetworkError, PeerError, describe
from mtt.layers import linger
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.keepalive import Keepalive
from mtt.layers.kernel import limit_unsent, stalled_seconds, tells_acknowledged
from mtt.layers.mux_stream import MuxStream, StreamAdmission

# A session that sends nothing for this long, seconds, gets no new streams: the peer does not read,
# and their data would wait. Go peers stop reading when one reader is slow.
STALL_TIME = 2.0
# Bytes that the kernel may hold unsent. It would take megabytes, and one stream's small request
# would wait behind another's upload.
UNSENT_LIMIT = 128 * 1024
# Bytes of answers to a peer that reads nothing: ends of streams, signs of life. Such a frame has
# 7 or 8 bytes; one packet of an AnyTLS client may be padded to 64 KiB.
ANSWERS_LIMIT = 256 * 1024
# Data read within this time of a ping, seconds, may have been sent before it.
OLD_READ_TIME = 1.0

Stream = TypeVar("Stream", bound=MuxStream)


class MuxSession(StreamProtocol, Generic[Stream]):
    """One multiplexed connection.

    Args:
        accept: returns the protocol for a stream that the peer opened; None: such streams are
            refused.
        on_change: called when a stream has ended, which may make room or empty the session.
        on_lost: called once when the session is over, with the reason (None: closed by us).

    Attributes:
        heard_at: loop time of the last frame.
        error: the reason, once the session is over (None: closed by us).
    """

    __slots__ = (
        "_accept", "_answer_bytes", "_awaiting_fin", "_keepalive", "_next_id", "_now", "_on_change",
        "_on_lost", "_paused_at", "_ping_mark", "_pinged_at", "_pings_below", "_prefix", "_queued",
        "_reading_paused", "_stalled", "_streams", "admission", "bottom", "error", "heard_at",
        "last_writer", "lost", "lower", "write_paused", "written",
    )  # fmt: skip

    borrows = True
    name: ClassVar[str]  # for error messages
    psh: ClassVar[int]  # the command of a frame with a stream's data
    last_id: ClassVar[int] = 0xFFFFFFFF  # of streams that we open: ids are not reused

    lower: StreamTransport
    bottom: StreamTransport  # the socket

    def __init__(
        self,
        *,
        accept: Callable[[], StreamProtocol] | None = None,
        on_change: Callable[[Any], object] | None = None,
        on_lost: Callable[[Any, Exception | None], object] | None = None,
    ) -> None:
        self._accept = accept
        self._on_change = on_change
        self._on_lost = on_lost
        self._streams: dict[int, Stream] = {}
        self._next_id = 1  # of the streams that we open
        self.admission: StreamAdmission | None = None  # once the peer has opened a stream
        self._awaiting_fin: dict[int, float] = {}  # closed by us, not by the peer: since when
        self._queued = 0
        self._reading_paused = False  # the budget is used up
        self._now = asyncio.get_running_loop().time
        self.heard_at = 0.0
        self._prefix = b""  # frames to send ahead of the next ones
        self.write_paused = False
        self._paused_at = 0.0
        self._stalled = False  # paused for STALL_TIME and not resumed since
        self._keepalive: Keepalive | None = None
        self._pinged_at = float("-inf")
        self._ping_mark = 0  # what the socket had been given, the ping included
        self._pings_below = False  # the layer below has sent the ping
        self._answer_bytes = 0  # control frames sent since the peer stopped reading
        self.last_writer = 0  # a stream's id
        self.lost = False
        self.error: Exception | None = None
        self.written = 0  # bytes given to the connection

    # What each protocol implements.

    @property
    def half_close(self) -> bool:
        """Whether each direction of a stream can end separately: the peer is ours."""
        raise NotImplementedError

    @property
    def receive_budget(self) -> int:
        """Bytes queued for paused readers, all streams together."""
        raise NotImplementedError

    @property
    def _answers_fin(self) -> bool:
        """Whether the peer sends FIN, too, for a stream that we have closed."""
        raise NotImplementedError

    def _decode(self, data: Data) -> list[tuple[int, int, Data]]:
        """Return the frames in `data`: command, stream id, payload."""
        raise NotImplementedError

    def _command_received(self, command: int, stream_id: int, payload: Data) -> None:
        """Handle a frame that is neither data nor a reset."""
        raise NotImplementedError

    def send_fin(self, stream_id: int) -> None:
        raise NotImplementedError

    def send_reset(self, stream_id: int) -> None:
        """Reset a stream, for peers that know half-close; others see the FIN that follows."""
        raise NotImplementedError

    def send_noop(self) -> None:
        """Send a frame that means nothing."""
        raise NotImplementedError

    def _release(self) -> None:
        """Drop timers: the session is over."""

    # State.

    @property
    def open_streams(self) -> int:
        """Number of streams that are open here."""
        return len(self._streams)

    @property
    def used_slots(self) -> int:
        """Number of streams that are open on either side."""
        return len(self._streams) + len(self._awaiting_fin)

    @property
    def exhausted(self) -> bool:
        """Whether all stream ids have been used."""
        return self._next_id > self.last_id

    @property
    def is_stalled(self) -> bool:
        """Whether one slow reader, here or at the peer, blocks all streams."""
        if self.write_paused and not self._stalled and self._now() - self._paused_at >= STALL_TIME:
            seconds = stalled_seconds(self.lower)
            self._stalled = seconds is None or seconds >= STALL_TIME
        return self._reading_paused or self._stalled

    @property
    def acknowledged(self) -> int:
        """Bytes acknowledged by the peer's kernel, as ours reports: see `tells_acknowledged`."""
        lower = self.lower
        return self.bottom.socket_written - lower.own_tail - lower.unsent()

    # The protocol of the connection below.

    def connection_made(self, transport: Any) -> None:
        self.lower = transport
        self.bottom = transport.bottom
        self.heard_at = self._now()
        limit_unsent(transport, UNSENT_LIMIT)

    def data_received(self, data: Data) -> None:
        if self.lost:
            return
        self._mark_heard()
        events = self._decode(data)
        streams, psh = self._streams, self.psh
        count = len(events)
        at = 0
        while at < count and not self.lost:
            command, stream_id, payload = events[at]
            at += 1
            if command != psh:
                self._command_received(command, stream_id, payload)
            elif payload:
                if at < count:
                    begin = at - 1
                    at = _end_of_run(events, begin)
                    if at > begin + 1:  # one write above for a run of frames
                        payload = b"".join([event[2] for event in events[begin:at]])
                stream = streams.get(stream_id)
                if stream is not None:
                    stream.receive(payload)
                elif stream_id in self._awaiting_fin:
                    self._late_data_received(stream_id)
            elif stream_id in streams and streams[stream_id].accepts_reset:
                streams[stream_id].receive_reset()
        admission = self.admission
        if admission is not None and admission.waiting and not admission.scheduled:
            admission.admit()

    def _mark_heard(self) -> None:
        self.heard_at = self._now()

    def eof_received(self) -> bool:
        self._end(NetworkError(f"the {self.name} was closed by the peer", cause=Cause.EOF))
        self.lower.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if not isinstance(exc, MttError):  # a reset of the connection does not reset a stream
            exc = NetworkError(f"the {self.name} was lost: {describe(exc)}")
        self._end(exc)

    def pause_writing(self) -> None:
        self.write_paused = True
        self._paused_at = self._now()
        # The stream that filled the connection resumes last: its next read may fill it again, and
        # the others would never resume.
        if self.last_writer in self._streams:
            self._streams[self.last_writer] = self._streams.pop(self.last_writer)
        for stream in list(self._streams.values()):
            stream.pause_writing()

    def resume_writing(self) -> None:
        self.write_paused = self._stalled = False
        self._answer_bytes = 0
        for stream in list(self._streams.values()):
            if self.write_paused:
                break  # the connection is full again; the others are still paused
            stream.resume_writing()

    # For owners that reuse the session, see `mtt.outbound.reuse`.

    def ping(self) -> None:
        """Ask for a sign of life: from the peer's program, if the layer below can, else from its
        kernel, which acknowledges a frame that means nothing."""
        self._pinged_at = self._now()
        self._pings_below = self.lower.ping()
        if not (self._pings_below or self.write_paused):  # if paused, enough is on its way already
            self.send_noop()
        self._ping_mark = self.bottom.socket_written

    def ping_answered(self) -> bool:
        """Whether the peer has given the sign of life since the last `ping`."""
        if self._pings_below:
            return self.lower.ping_answered()
        if tells_acknowledged(self.lower):
            return self.acknowledged >= self._ping_mark
        return self.heard_at > self._pinged_at + OLD_READ_TIME

    def ping_progress(self) -> tuple[float, int]:
        """How far the last `ping` and its answer have come: grows while a slow line moves."""
        return self.heard_at, min(self.acknowledged, self._ping_mark)

    @property
    def is_reading(self) -> bool:
        """Whether the connection is being read: it is not while readers of streams are slow."""
        return not self._reading_paused

    # For streams and owners.

    def is_gone(self, stream: Stream) -> bool:
        """Whether `stream` has been closed, or its session is over."""
        return self._streams.get(stream.id) is not stream

    def finish(self, stream: Stream, *, eof_seen: bool, say_fin: bool) -> None:
        """Remove a stream that was closed or reset."""
        del self._streams[stream.id]
        if not eof_seen and self._answers_fin:
            self._awaiting_fin[stream.id] = self._now()
        if say_fin:
            self.send_fin(stream.id)
        self._notify_change()

    def count_queued(self, size: int) -> None:
        """Count bytes that a stream has added to its queue (negative: removed)."""
        self._queued += size
        if self.lost:
            return
        if self._queued >= self.receive_budget:
            if not self._reading_paused:
                self._reading_paused = True
                self.lower.pause_reading()
        elif self._reading_paused:
            self._reading_paused = False
            self.heard_at = self._now()
            self.lower.resume_reading()

    def send(self, frames: Data) -> None:
        """Write frames to the connection."""
        if self._prefix:
            frames, self._prefix = b"".join((self._prefix, frames)), b""
        self.written += len(frames)
        self.lower.write(frames)

    def send_framed(self, head: bytes, data: Data) -> None:
        """Write one frame, given as its header and data, to the connection."""
        if self._prefix:
            head, self._prefix = self._prefix + head, b""
        self.written += len(head) + len(data)
        self.lower.write_framed(head, data)

    def send_control(self, data: bytes) -> None:
        """Write control frames; a peer that reads none of them is cut."""
        if self._answer_bytes > ANSWERS_LIMIT:
            return  # it is about to be cut; one read may request megabytes of answers
        before = self.written
        self._send_packet(data)
        if self.write_paused:
            self._answer_bytes += self.written - before
            if self._answer_bytes > ANSWERS_LIMIT:
                # Not at once: the caller may be a stream that is just ending.
                error = PeerError(f"{self.name}: the peer requests answers but reads none")
                asyncio.get_running_loop().call_soon(self.abort, error)

    def _send_packet(self, data: bytes) -> None:
        self.send(data)

    def close(self, exc: Exception | None = None) -> None:
        """End the session and all its streams; what was written is delivered.

        `exc`: the reason, if the peer broke the protocol.
        """
        if not self.lost:
            self._end(exc)
            self.lower.close()

    def abort(self, exc: Exception | None = None) -> None:
        """Cut the session. `exc`: the reason, if the peer is dead or does not read."""
        if not self.lost:
            self._end(exc)
            self.lower.abort()

    def _stream_arrived(self, stream: Stream) -> None:
        """Add a stream that the peer has opened."""
        self._streams[stream.id] = stream
        if self.admission is None:
            self.admission = StreamAdmission()
        self.admission.add(stream)

    def _fin_received(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.receive_fin()
        elif stream_id in self._awaiting_fin:
            del self._awaiting_fin[stream_id]
            self._notify_change()

    def _late_data_received(self, stream_id: int) -> None:
        """Drop data for a stream that we have closed; after a while, reset it at the peer."""
        now = self._now()
        if self.half_close and now - self._awaiting_fin[stream_id] > linger.LINGER_TIME:
            self.send_reset(stream_id)
            self._awaiting_fin[stream_id] = float("inf")  # do not reset it again

    def _notify_change(self) -> None:
        if self._on_change is not None:
            self._on_change(self)

    def _end(self, exc: Exception | None) -> None:
        if self.lost:
            return
        self.lost = True
        self.error = exc
        if self._keepalive is not None:
            self._keepalive.stop()
        self._release()
        streams = list(self._streams.values())
        self._streams.clear()  # not replaced: data_received may be using it
        self._awaiting_fin.clear()
        for stream in streams:
            stream.session_ended(exc)
        if self._on_lost is not None:
            self._on_lost(self, exc)
        self._accept = self._on_change = self._on_lost = None


def _end_of_run(events: list[tuple[int, int, Data]], begin: int) -> int:
    """Return the index after the run of data for one stream that starts at `events[begin]`."""
    run = events[begin][:2]
    for at in range(begin + 1, len(events)):
        if events[at][:2] != run or not events[at][2]:
            return at
    return len(events)
