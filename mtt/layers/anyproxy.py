"""A session with a Go program of AnyProxy: many streams in the messages of one WebSocket.

Theory of operation, as far as it is specific to AnyProxy
---------------------------------------------------------
The gateway opens streams with CONNECT and the target's address. The agent connects, and answers
with CONNECT_RESPONSE. CLOSE ends both directions of a stream; its receiver may say CLOSE, too, or
not. This module is either side, towards a peer that is the Go program.

Receiving: there is no flow control. The Go programs never stop reading for a slow stream. Their
writes fail after 10 s, and their session is useless then. So a session may stop
reading for some seconds only. A stream queues data for a reader that has paused. Above a limit the
session stops reading, for PAUSE_TIME at most, and then ends the streams that are above it.

Sending: see `anyproxy_stream`. A peer that takes nothing for STALL_LIMIT is cut, so that it
connects again.

What is an error for the Go programs ends the session: types of the other side, bodies
that are cut short. Messages for streams that have ended are ignored.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any, ClassVar

from mtt.errors import Cause, NetworkError, PeerError, RefusedError, StuckError
from mtt.layers.anyproxy_stream import PILE, PILES, GoDatagramStream, GoStream
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.mux import MuxSession
from mtt.layers.mux_stream import StreamAdmission
from mtt.layers.parked import Parked
from mtt.layers.stall import StallWatch
from mtt.layers.websocket_messages import MessageLayer
from mtt.log import logger
from mtt.outcome import Outcome
from mtt.wire import agent
from mtt.wire.agent import Head
from mtt.wire.anyproxy import (
    CLOSE,
    DATA,
    DATA_HEAD,
    DATA_OFFSET,
    FROM_AGENT,
    FROM_GATEWAY,
    ID_SIZE,
    MAX_MESSAGE,
    TCP,
    UDP,
    VERSION,
    AnyproxyError,
    Close,
    Connect,
    ConnectResponse,
    Error,
    ForwardedPort,
    PortForward,
    PortForwardResponse,
    cut,
    error_text,
    join_address,
    new_id,
    outcome_of,
    padded,
    parse,
    split_address,
)

# Bytes queued for paused readers: of one stream, and of all streams of a session.
STREAM_LIMIT = 8 * 1024 * 1024
SESSION_LIMIT = 64 * 1024 * 1024
# Bytes below the limits at which reading resumes. A reader of 256 KiB/s gets there in PAUSE_TIME.
RESUME_BELOW = 1024 * 1024
# The longest time without reading, seconds. The Go programs fail after 10 s.
PAUSE_TIME = 4.0
# Reading that counts: so many bytes or seconds of it, and the peer's writes have made progress.
READ_ENOUGH_BYTES = 1024 * 1024
READ_ENOUGH_TIME = 1.0
# A peer that takes nothing of what we write for so many seconds is cut.
STALL_LIMIT = 8.0
# A session on which nothing has arrived for so many seconds gets no new streams. The peer answers
# our pings, which come every 24 to 30 s.
STALE_TIME = 35.0
# Streams of a session: see `outbound.agent.MAX_STREAMS`.
MAX_STREAMS = 4096

_CLOSE_HEAD = bytes((VERSION, CLOSE))
_NETWORKS = {TCP: agent.TCP, UDP: agent.UDP}
_NAMES = {number: name for name, number in _NETWORKS.items()}

# Tells the gateway how an attempt ended, with the address that was reached.
Tell = Callable[[Outcome, tuple[str, int] | None], object]
# Serves a stream of the gateway, parked.
Serve = Callable[[StreamTransport, Head, Tell], None]


class GoSession(MuxSession[GoStream]):
    """One session; `message_layer` makes the layer below.

    Args:
        serve: called with each stream that the gateway opens: this is the agent. Without it, this
            is the gateway.
        max_streams: streams of the session; further ones are refused.
        on_ports: called with this session and a PORT_FORWARD of the agent, on a gateway; it calls
            `answer_ports`. Without it, ports are refused.
        on_ports_answer: called with this session and the gateway's one answer, on an agent.
        on_change, on_lost: see `MuxSession`.
    """

    __slots__ = (
        "_full", "_layer", "_max_streams", "_on_ports", "_on_ports_answer", "_pause_left",
        "_pause_timer", "_read", "_read_since", "_serve", "_stall_watch", "_types", "_unread_since",
    )  # fmt: skip

    name: ClassVar[str] = "AnyProxy session"
    psh: ClassVar[int] = DATA
    half_close = False
    receive_budget = SESSION_LIMIT
    _answers_fin = False  # not always, so it is not awaited

    _layer: MessageLayer  # below

    def __init__(
        self,
        *,
        serve: Serve | None = None,
        max_streams: int = MAX_STREAMS,
        on_ports: Callable[[GoSession, PortForward], object] | None = None,
        on_ports_answer: Callable[[GoSession, PortForwardResponse], object] | None = None,
        on_change: Callable[[GoSession], object] | None = None,
        on_lost: Callable[[GoSession, Exception | None], object] | None = None,
    ) -> None:
        super().__init__(on_change=on_change, on_lost=on_lost)
        self._serve = serve
        self._types = FROM_AGENT if serve is None else FROM_GATEWAY
        self._max_streams = max_streams
        self._on_ports = on_ports
        self._on_ports_answer = on_ports_answer
        if serve is not None:
            self.admission = StreamAdmission(max_streams)
        self._full: set[GoStream] = set()  # above STREAM_LIMIT
        self._pause_timer: asyncio.TimerHandle | None = None
        self._pause_left = PAUSE_TIME  # until reading has to go on
        self._unread_since = 0.0  # when reading was paused
        self._read = 0  # bytes, since it was resumed
        self._read_since = 0.0
        self._stall_watch = StallWatch(self, STALL_LIMIT)

    def message_layer(self, *, client: bool, random_mask: bool = False) -> MessageLayer:
        """The WebSocket layer for this session; call its `start`."""
        return MessageLayer(self, client=client, limit=MAX_MESSAGE, random_mask=random_mask)

    # State.

    @property
    def now(self) -> Callable[[], float]:
        return self._now

    @property
    def is_healthy(self) -> bool:
        """Whether the session can take a new stream, as far as it knows."""
        return self._now() - self._layer.heard_at < STALE_TIME and not self.is_stalled

    @property
    def has_room(self) -> bool:
        """Whether another stream fits."""
        return len(self._streams) < self._max_streams

    @property
    def pile_limit(self) -> int:
        """Bytes that may pile up on a stream while the connection is full."""
        return min(PILE, PILES // max(1, len(self._streams)))

    # The protocol of the layer below, which hands up whole messages.

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._layer = transport

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self.lost:
            self._stall_watch.begin()

    def data_received(self, data: Data) -> None:
        if self.lost:
            return
        self.heard_at = self._now()
        self._read += len(data)
        if data[:2] == DATA_HEAD and len(data) >= DATA_OFFSET:
            stream = self._streams.get(int.from_bytes(cut(bytes(data[2:DATA_OFFSET])), "big"))
            if stream is not None:
                stream.receive(memoryview(data)[DATA_OFFSET:])
        else:
            self._message_received(data)
        admission = self.admission
        if admission is not None and admission.waiting:
            admission.admit()

    def _message_received(self, data: Data) -> None:
        try:
            message = parse(data, self._types)
        except AnyproxyError as error:
            self.close(PeerError(f"{self.name}: {error}"))
            return
        if isinstance(message, Connect):
            self._connect_received(message)
        elif isinstance(message, ConnectResponse):
            stream = self._streams.get(_number(message.id))
            if stream is not None:
                stream.receive_answer(
                    Outcome.SUCCEEDED if message.ok else _failure(stream, message.error)
                )
        elif isinstance(message, Close):
            self._fin_received(_number(message.id))
        elif isinstance(message, PortForward):
            if self._on_ports is not None:
                self._on_ports(self, message)
            else:
                self.answer_ports(PortForwardResponse(False, "this gateway forwards no ports"))
        elif isinstance(message, PortForwardResponse):
            on_answer, self._on_ports_answer = self._on_ports_answer, None  # one per session
            if on_answer is not None:
                on_answer(self, message)
        elif isinstance(message, Error) and self._serve is not None:
            text = f"the gateway refuses this agent: {message.text[:200]!r}"
            self.close(RefusedError(text, cause=Cause.OTHER))

    def _connect_received(self, message: Connect) -> None:
        number = _number(message.id)
        if number in self._streams or self._serve is None:
            return
        head = _head(message)
        if head is None or not self.has_room:
            text = error_text(Outcome.GENERAL_FAILURE, message.network[:16], message.address)
            self.send_control(ConnectResponse(message.id, False, text).encode())
            return
        begin = _Begin(self._serve, head)
        self._stream_arrived(self._stream(number, Parked(begin), message, is_ours=False))

    def _stream(
        self, number: int, upper: StreamProtocol, connect: Connect, *, is_ours: bool
    ) -> GoStream:
        if connect.network == UDP:
            return GoDatagramStream(self, number, upper, connect.address, is_ours=is_ours)
        return GoStream(self, number, upper, TCP, connect.address, is_ours=is_ours)

    # For streams and owners.

    def open_stream(self, upper: StreamProtocol, head: Head) -> GoStream:
        """Ask the agent for a stream, which begins when the agent has reached the target.

        Raises NetworkError when the session is over.
        """
        if self.lost:
            raise NetworkError(f"the {self.name} is over")
        wire_id = new_id(os.urandom(12))
        address = join_address(head.host, head.port)
        connect = Connect(wire_id, _NAMES[head.network], address)
        stream = self._stream(_number(wire_id), upper, connect, is_ours=True)
        self._streams[stream.id] = stream
        self.send(connect.encode())
        return stream

    def ask_ports(self, client_id: str, ports: tuple[ForwardedPort, ...]) -> None:
        """Ask the gateway for ports, once, before anything else."""
        self.send(PortForward(client_id, ports).encode())

    def answer_ports(self, answer: PortForwardResponse) -> None:
        """Answer the agent's request for ports."""
        if not self.lost:
            self.send_control(answer.encode())

    def send_error(self, text: str) -> None:
        """Tell an agent why it is refused; close the session afterwards."""
        if not self.lost:
            self.send(Error(text).encode())

    def send_data(self, stream_id: int, data: Data) -> None:
        self.send_framed(DATA_HEAD + stream_id.to_bytes(ID_SIZE, "big"), data)

    def send_fin(self, stream_id: int) -> None:
        self.send_control(_CLOSE_HEAD + stream_id.to_bytes(ID_SIZE, "big"))

    def close(self, exc: Exception | None = None) -> None:
        for stream in list(self._streams.values()):
            stream.flush()
        super().close(exc)

    def _release(self) -> None:
        self._stall_watch.stop()
        if self._pause_timer is not None:
            self._pause_timer.cancel()
        self._full.clear()
        self._serve = self._on_ports = self._on_ports_answer = None

    # Limits of what is queued for paused readers.

    def count_queued(self, size: int) -> None:
        self._queued += size
        if self.lost:
            return
        if size > 0:
            if self._queued > SESSION_LIMIT:
                self._pause()
        elif self._reading_paused:
            self._resume_if_possible()

    def note_queue(self, stream: GoStream, size: int) -> None:
        """Note that a stream's queue has grown."""
        if size > STREAM_LIMIT and not self.lost:
            self._full.add(stream)
            self._pause()

    def _pause(self) -> None:
        """Stop reading, for the time that is left until the peer would suffer."""
        if self._reading_paused:
            return
        now = self._now()
        if self._read >= READ_ENOUGH_BYTES or now - self._read_since >= READ_ENOUGH_TIME:
            self._pause_left = PAUSE_TIME
        self._reading_paused = True
        self._unread_since = now
        self.lower.pause_reading()
        self._pause_timer = asyncio.get_running_loop().call_later(
            max(0.0, self._pause_left), self._pause_over
        )

    def _resume_if_possible(self) -> None:
        for stream in list(self._full):
            if self.is_gone(stream) or stream.queued <= STREAM_LIMIT - RESUME_BELOW:
                self._full.discard(stream)
        if not self._full and self._queued <= SESSION_LIMIT - RESUME_BELOW:
            self._resume()

    def _resume(self) -> None:
        now = self._now()
        if self._pause_timer is not None:
            self._pause_timer.cancel()
        self._pause_left -= now - self._unread_since
        self._reading_paused = False
        self._read = 0
        self._read_since = now
        self.lower.resume_reading()

    def _pause_over(self) -> None:
        """End the streams with the slowest readers, so that reading can go on."""
        victims = list(self._full)
        left = self._queued - sum(stream.queued for stream in victims)
        for stream in sorted(self._streams.values(), key=lambda stream: -stream.queued):
            if left <= SESSION_LIMIT - RESUME_BELOW:
                break
            if stream not in self._full:
                victims.append(stream)
                left -= stream.queued
        for stream in victims:
            if not self.is_gone(stream):
                size = stream.queued
                stream.kill(StuckError(f"the reader is too slow: {size} bytes queued"))
        self._full.clear()
        if self._reading_paused and not self.lost:
            self._resume()


class _Begin:
    """Serves a stream when it begins, as the `ready` of its `Parked`."""

    __slots__ = ("_head", "_serve")

    def __init__(self, serve: Serve, head: Head) -> None:
        self._serve = serve
        self._head = head

    def __call__(self, stream: Any) -> None:
        self._serve(stream, self._head, stream.answer)


def _number(wire_id: bytes) -> int:
    """A stream's id as a number."""
    return int.from_bytes(padded(wire_id), "big")


def _head(message: Connect) -> Head | None:
    """What the gateway asks for; None if it is not TCP or UDP to a host and port."""
    network, target = _NETWORKS.get(message.network), split_address(message.address)
    if network is None or target is None:
        return None
    head = Head(network, *target)
    try:
        head.encode()  # as strict as our own gateway
    except ValueError:
        return None
    return head


def _failure(stream: GoStream, error: str) -> Outcome:
    logger.debug("%r: the agent did not connect: %r", stream, error[:200])
    return outcome_of(error)
