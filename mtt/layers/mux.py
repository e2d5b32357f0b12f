"""What the sessions of all multiplexing protocols share: many streams on one connection.

Theory of operation
-------------------
A session is the protocol of the connection below (TLS or WebSocket), a `MuxStream` the transport
of the protocol above it. The frames are the business of the subclasses.

Sending: what a stream writes goes to the connection at once. When the connection cannot take more,
all streams are told to pause; their senders go on in turn when it can, one read each, which shares
the connection fairly.

Receiving: a stream whose reader has paused queues its data. The queued bytes of all streams
together have a budget; when it is used up, the session stops reading the connection, and TCP's
back-pressure reaches the sender.

Closing: between our own ends (`half_close`) FIN ends one direction of a stream, and an empty PSH
resets it. To others FIN ends both directions, and what such a peer still sends is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from mtt.errors import Cause, MttError, NetworkError, PeerError, describe
from mtt.layers import linger
from mtt.layers.arrivals import Arrivals
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.kernel import stalled_seconds
from mtt.layers.mux_stream import MuxStream
from mtt.layers.question import Question

# A session that takes nothing for so long gets no new streams, seconds: the peer does not read, and
# what new streams say would wait behind what is full. Go peers stop so when one reader is slow.
STALL_TIME = 2.0
# What the kernel may hold unsent. Without a limit it takes megabytes, and the small request of one
# stream waits behind the upload of another.
UNSENT_LIMIT = 128 * 1024

# What a peer that reads nothing can make us answer, bytes: ends of streams, signs of life. Such a
# frame has 7 or 8 bytes; one packet of an AnyTLS client may be padded to 64 KiB.
ANSWERS_LIMIT = 256 * 1024

Stream = TypeVar("Stream", bound=MuxStream)


class MuxSession(StreamProtocol, Generic[Stream]):
    """One multiplexed connection.

    Args:
        on_change: called when a stream ended, which may have made room or emptied the session.
        on_lost: called once when the session is over, with the reason (None: closed by us).
    """

    __slots__ = (
        "_ahead", "_answered", "_bottom", "_finishing", "_held", "_now", "_on_change", "_on_lost",
        "_paused_at", "_question", "_queued", "_seen_at", "_stalled", "_streams", "arrivals",
        "error", "lost", "lower", "write_paused", "writer", "written",
    )  # fmt: skip

    borrows = True
    name: ClassVar[str]  # for error messages
    psh: ClassVar[int]  # the command of a frame with a stream's data

    lower: StreamTransport
    _bottom: StreamTransport  # the socket

    def __init__(
        self,
        *,
        on_change: Callable[[Any], object] | None = None,
        on_lost: Callable[[Any, Exception | None], object] | None = None,
    ) -> None:
        self._on_change = on_change
        self._on_lost = on_lost
        self._streams: dict[int, Stream] = {}
        self.arrivals: Arrivals | None = None  # once the peer has opened a stream
        # Closed by us, the peer's FIN is still to come: when that was.
        self._finishing: dict[int, float] = {}
        self._queued = 0
        self._held = False  # we do not read the connection: the budget is used up
        self._now = asyncio.get_running_loop().time
        self._seen_at = 0.0  # when the last frame came
        self._ahead = b""  # frames that travel with what is sent next
        self._paused_at = 0.0  # when the connection was full
        self._stalled = False  # and nothing left for STALL_TIME; until it takes more again
        self._question: Question | None = None  # the last one
        self.write_paused = False
        self._answered = 0  # bytes of control frames, sent while the peer did not read
        self.writer = 0  # the stream that has written last
        self.lost = False
        self.error: Exception | None = None  # by what, if it was not us
        self.written = 0  # bytes handed to the connection

    # What the protocols do each in its way.

    @property
    def half_close(self) -> bool:
        """Whether streams can end each direction by itself: the peer is one of ours."""
        raise NotImplementedError

    @property
    def receive_budget(self) -> int:
        """Bytes queued for paused readers, all streams together."""
        raise NotImplementedError

    @property
    def _answers_fin(self) -> bool:
        """Whether the peer, too, says FIN at the end of a stream that we have closed."""
        raise NotImplementedError

    def _decode(self, data: Data) -> list[tuple[int, int, Data]]:
        """The frames in `data`: command, stream, payload."""
        raise NotImplementedError

    def _command(self, command: int, stream_id: int, payload: Data) -> None:
        """A frame has come that is neither data nor a reset."""
        raise NotImplementedError

    def _send_fin(self, stream_id: int) -> None:
        raise NotImplementedError

    def _send_reset(self, stream_id: int) -> None:
        """Only with half-close."""
        raise NotImplementedError

    def _forget(self) -> None:
        """The session is over: let go of timers and the like."""

    def send_noop(self) -> None:
        """Send a frame that means nothing."""
        raise NotImplementedError

    # State.

    @property
    def open_streams(self) -> int:
        """Streams that still carry something for a protocol of ours."""
        return len(self._streams)

    @property
    def used_slots(self) -> int:
        """Streams that are open here or still open on the peer's side."""
        return len(self._streams) + len(self._finishing)

    @property
    def heard_at(self) -> float:
        """Loop time of the last frame."""
        return self._seen_at

    @property
    def is_stalled(self) -> bool:
        """Whether one slow reader, of ours or of the peer, holds up all streams."""
        if self.write_paused and not self._stalled and self._now() - self._paused_at >= STALL_TIME:
            seconds = stalled_seconds(self.lower)
            self._stalled = seconds is None or seconds >= STALL_TIME
        return self._held or self._stalled

    @property
    def handed_over(self) -> int:
        """Bytes that the socket has been given so far, in its own count (after TLS)."""
        return self._bottom.handed_over

    @property
    def acknowledged(self) -> int:
        """How many of these the peer's kernel has, as far as the system tells: see
        `tells_acknowledged`."""
        lower = self.lower
        return self._bottom.handed_over - lower.tail - lower.unsent()

    # The protocol of the connection below.

    def connection_made(self, transport: Any) -> None:
        self.lower = transport
        self._bottom = transport.bottom
        self._seen_at = self._now()
        self._limit_unsent()

    def _limit_unsent(self) -> None:
        sock = self.lower.get_extra_info("socket")
        option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
        if sock is not None and option is not None:
            with contextlib.suppress(OSError):  # not a TCP socket
                sock.setsockopt(socket.IPPROTO_TCP, option, UNSENT_LIMIT)

    def data_received(self, data: Data) -> None:
        if self.lost:
            return
        self._heard()
        events = self._decode(data)
        streams, psh = self._streams, self.psh
        count = len(events)
        at = 0
        while at < count and not self.lost:
            command, stream_id, payload = events[at]
            at += 1
            if command != psh:
                self._command(command, stream_id, payload)
            elif payload:
                if at < count:
                    begin = at - 1
                    at = _end_of_run(events, begin)
                    if at > begin + 1:  # one write above for a run of frames
                        payload = b"".join([event[2] for event in events[begin:at]])
                stream = streams.get(stream_id)
                if stream is not None:
                    stream.receive(payload)
                elif stream_id in self._finishing:
                    self._late_data(stream_id)
            elif stream_id in streams and self.half_close:
                stream = streams[stream_id]
                if stream.begun:
                    stream.receive_reset()
                else:
                    stream.give_up()
        arrivals = self.arrivals
        if arrivals is not None and arrivals.waiting:
            arrivals.admit()

    def _heard(self) -> None:
        """The peer gives a sign of life."""
        self._seen_at = self._now()

    def eof_received(self) -> bool:
        self._end(NetworkError(f"the {self.name} was closed by the peer", cause=Cause.EOF))
        self.lower.close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if not isinstance(exc, MttError):  # a reset of the connection is no reset of a stream
            exc = NetworkError(f"the {self.name} was lost: {describe(exc)}")
        self._end(exc)

    def pause_writing(self) -> None:
        self.write_paused = True
        self._paused_at = self._now()
        # Whoever has filled the connection is the last to go on: its first read may fill it again,
        # and the others would wait for ever.
        if self.writer in self._streams:
            self._streams[self.writer] = self._streams.pop(self.writer)
        for stream in list(self._streams.values()):
            stream.pause_writing()

    def resume_writing(self) -> None:
        self.write_paused = self._stalled = False
        self._answered = 0
        for stream in list(self._streams.values()):
            if self.write_paused:
                break  # the connection is full again; the others are still paused
            stream.resume_writing()

    def has_sent(self, mark: int) -> bool:
        """Whether the peer's kernel has all of what had been `handed_over` at `mark`."""
        return self.acknowledged >= mark

    # For owners that want to use it again, see `mtt.outbound.reuse`.

    def ask(self) -> None:
        """Ask for a sign of life."""
        self._question = Question(self, self._now())

    def has_answered(self) -> bool:
        """Whether the peer has given the sign of life for which it was asked."""
        return self._question is None or self._question.is_answered(self)

    # For streams and owners.

    def gone(self, stream: Stream) -> bool:
        """Whether `stream` has been closed, or its session is over."""
        return self._streams.get(stream.id) is not stream

    def finish(self, stream: Stream, *, eof_seen: bool, say_fin: bool) -> None:
        """Be done with a stream that was closed or reset."""
        del self._streams[stream.id]
        if not eof_seen and self._answers_fin:
            self._finishing[stream.id] = self._now()
        if say_fin:
            self._send_fin(stream.id)
        self._changed()

    def queued(self, size: int) -> None:
        """Account for bytes that a stream has queued (or, negative, let go)."""
        self._queued += size
        if self.lost:
            return
        if self._queued >= self.receive_budget:
            if not self._held:
                self._held = True
                self.lower.pause_reading()
        elif self._held:
            self._held = False
            self._seen_at = self._now()
            self.lower.resume_reading()

    def send(self, frames: Data) -> None:
        """Hand frames to the connection."""
        if self._ahead:
            frames, self._ahead = b"".join((self._ahead, frames)), b""
        self.written += len(frames)
        self.lower.write(frames)

    def send_framed(self, head: bytes, data: Data) -> None:
        """The same for the header of a frame and its data."""
        if self._ahead:
            head, self._ahead = self._ahead + head, b""
        self.written += len(head) + len(data)
        self.lower.write_framed(head, data)

    def send_control(self, data: bytes) -> None:
        """Hand frames to the connection that are no data; a peer that reads none of them is cut."""
        if self._answered > ANSWERS_LIMIT:
            return  # it will be cut in a moment; what one read asks for may be megabytes
        before = self.written
        self._packet(data)
        if self.write_paused:
            self._answered += self.written - before
            if self._answered > ANSWERS_LIMIT:
                # Not here and now: who calls may be a stream in the middle of its end.
                asyncio.get_running_loop().call_soon(self._unread)

    def _packet(self, data: bytes) -> None:
        """Hand control frames to the connection."""
        self.send(data)

    def _unread(self) -> None:
        self.abort(PeerError(f"{self.name}: the peer wants answers but reads none"))

    def close(self, exc: Exception | None = None) -> None:
        """End the session and all its streams; what was written is delivered.

        `exc`: the reason, if it is the peer that broke the rules.
        """
        if not self.lost:
            self._end(exc)
            self.lower.close()

    def abort(self, exc: Exception | None = None) -> None:
        """Cut the session. `exc`: the reason, if the peer is gone, or takes nothing any more."""
        if not self.lost:
            self._end(exc)
            self.lower.abort()

    def _made(self, stream: Stream) -> None:
        """We have opened a stream."""
        self._streams[stream.id] = stream
        stream.begin()

    def _arrived(self, stream: Stream) -> None:
        """The peer has opened a stream."""
        self._streams[stream.id] = stream
        if self.arrivals is None:
            self.arrivals = Arrivals()
        self.arrivals.add(stream)

    def _fin_received(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.receive_fin()
        elif stream_id in self._finishing:
            del self._finishing[stream_id]
            self._changed()

    def _late_data(self, stream_id: int) -> None:
        """Data for a stream that we have closed: in the end the peer is told that it is in vain."""
        now = self._now()
        if self.half_close and now - self._finishing[stream_id] > linger.LINGER_TIME:
            self._send_reset(stream_id)
            self._finishing[stream_id] = float("inf")  # once is enough

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change(self)

    def _end(self, exc: Exception | None) -> None:
        if self.lost:
            return
        self.lost = True
        self.error = exc
        self._forget()
        streams = list(self._streams.values())
        self._streams.clear()  # and not replaced: data_received may be busy with it
        self._finishing.clear()
        for stream in streams:
            stream.session_ended(exc)
        if self._on_lost is not None:
            self._on_lost(self, exc)
        self._on_change = self._on_lost = None


def _end_of_run(events: list[tuple[int, int, Data]], begin: int) -> int:
    """Where the data end that `events[begin]` and those behind it bring for one stream."""
    run = events[begin][:2]
    for at in range(begin + 1, len(events)):
        if events[at][:2] != run or not events[at][2]:
            return at
    return len(events)
