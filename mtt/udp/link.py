"""A link: one stream that carries the datagrams of many flows. See `mtt.wire.datagrams`.

Theory of operation
-------------------
Client and server each have a `Link` as the protocol of the stream. Until the opening messages have
been exchanged, and under back-pressure of the stream (`pause_writing`), datagrams wait in the
flows' queues, which drop what does not fit. Otherwise, all datagrams that are sent in one turn of
the event loop leave in one write at its end.

The amount of unsent data in the kernel is limited, so that the queues decide what is sent next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from mtt.errors import Cause, MttError, NetworkError, PeerError, describe
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.kernel import limit_unsent
from mtt.layers.parked import hand_over
from mtt.udp.counters import UdpCounters
from mtt.udp.queues import FairQueues
from mtt.wire.datagrams import ANSWER, HEAD, HEADER, NO_ANSWER, PING, DatagramError, Decoder

# Seconds for the peer's opening message: the same as for a whole dial.
OPENING_TIME = 10.0
# Bytes that one turn collects before they are written, so that the stream can apply back-pressure.
WRITE_SIZE = 64 * 1024
# Bytes of waiting datagrams written at a time when the stream resumes: one TLS record.
TAKE_SIZE = 16 * 1024
# Datagrams handled in one turn of the event loop, in fairness to other connections. One read has
# about as many of ordinary size, but 40,000 empty ones, which take half a second to send.
TURN_DATAGRAMS = 256
# Bytes that the kernel holds unsent, see `limit_unsent`: what a fast sender fills between two turns
# of the event loop, as for multiplexed connections.
UNSENT_LIMIT = 128 * 1024


class Owner(Protocol):
    """The receiver of a link's datagrams."""

    def deliver(self, datagrams: Sequence[tuple[int, Data]]) -> int:
        """Called with received datagrams, each with its flow; valid only during the call.

        Returns how many it has taken, at least one. The others come again in the next turn.
        """


class Link(StreamProtocol):
    """The protocol of the stream; a `Carrier` of the service's open tunnels.

    Args:
        stream: the stream, parked; the link owns it after `start()`.
        owner: gets the datagrams.
        counters: counts them.
        is_client: whether this side sends the head, or the answer.
        is_agreed: whether the server has already agreed to carry datagrams, so that a client need
            not wait for the answer.
        done: called once when the stream is lost.
        queues: datagrams that are already waiting.

    Attributes:
        is_open: whether the opening messages have been exchanged.
        heard_at: loop time when data last arrived.
    """

    __slots__ = (
        "_batch", "_batch_size", "_decoder", "_done", "_has_stopped", "_in", "_is_agreed",
        "_is_asked", "_is_blocked", "_is_client", "_is_over", "_is_paused", "_is_scheduled",
        "_left", "_loop", "_out", "_owner", "_received", "_timer", "counters", "error", "heard_at",
        "is_open", "lower", "queues", "reason", "started",
    )  # fmt: skip

    borrows = True

    def __init__(
        self,
        stream: StreamTransport,
        owner: Owner,
        counters: UdpCounters,
        *,
        is_client: bool,
        is_agreed: bool = False,
        done: Callable[[Link], None],
        queues: FairQueues,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.lower = stream
        self._owner: Owner | None = owner  # None at the end
        self._done = done
        self._is_client = is_client
        self._is_agreed = is_agreed
        self.counters = counters
        self.queues = queues
        self._decoder = Decoder()
        self._batch: list[bytes] = []
        self._batch_size = 0
        self._is_scheduled = False  # the batch is written at the end of the turn
        self._is_paused = False  # by the stream
        self._left: Sequence[tuple[int, Data]] = ()  # received, for the next turn
        self._has_stopped = False  # reading, until the next turn
        self._is_blocked = True  # paused, or not open yet
        self._is_over = False
        self._is_asked = False  # the server has not answered a ping
        self._received = b""  # of the opening message
        self._in = self._out = 0  # payload bytes
        self.is_open = False
        self.started = self.heard_at = self._loop.time()
        self.reason = ""
        self.error: Exception | None = None
        self._timer = self._loop.call_later(OPENING_TIME, self._expired)

    @property
    def sent(self) -> int:
        """Payload bytes towards the destination."""
        return self._out if self._is_client else self._in

    @property
    def received(self) -> int:
        """Payload bytes towards the application."""
        return self._in if self._is_client else self._out

    def start(self) -> None:
        """Take over the stream."""
        hand_over(self.lower, self)

    def close(self, reason: str) -> None:
        """Deliver what was sent, and end the stream."""
        if not self._is_over:
            if self._batch:
                self._write_batch()
            self._release(reason)
            self.lower.close()

    def abort(self, reason: str) -> None:
        """End the stream at once, also one that is still delivering after `close()`."""
        if not self._is_over:
            self._release(reason)
        self.lower.abort()

    def fail(self, error: MttError) -> None:
        """End the stream at once because of `error`."""
        self.error = error
        self.abort(str(error))

    # For the reuse guard of the client.

    def ping(self) -> None:
        self._is_asked = True
        self.send(PING, b"")

    def ping_answered(self) -> bool:
        return not self._is_asked

    def pong(self) -> None:
        """Called by the owner: the server has answered."""
        self._is_asked = False

    # Sending.

    def send(self, flow: int, payload: bytes) -> None:
        """Send a datagram of at most MAX_DATAGRAM bytes, or let it wait."""
        if self._is_blocked:
            self.counters.dropped_full += self.queues.add(flow, payload)
            return
        self._append(flow, payload)
        if self._batch_size >= WRITE_SIZE:
            self._write_batch()
        elif not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._end_turn)

    def _append(self, flow: int, payload: bytes) -> None:
        size = len(payload)
        self._out += size
        self._batch += (HEADER.pack(size, flow), payload)
        self._batch_size += size

    def _end_turn(self) -> None:
        self._is_scheduled = False
        if self._batch:
            self._write_batch()

    def _write_batch(self) -> None:
        data = b"".join(self._batch)
        self._batch.clear()
        self._batch_size = 0
        if not self._is_over:
            self.lower.write(data)

    def pause_writing(self) -> None:
        self._is_paused = self._is_blocked = True

    def resume_writing(self) -> None:
        self._is_paused = False
        self._unblock()

    def _unblock(self) -> None:
        """Send what waits, if the link is open and not paused."""
        if self._is_paused or self._is_over or not (self.is_open or self._is_agreed):
            return
        self._is_blocked = False
        if self._batch:  # of this turn, from before the pause
            self._write_batch()
        # Each write may pause again.
        while self.queues and not self._is_blocked:
            while self.queues and self._batch_size < TAKE_SIZE:
                self._append(*self.queues.pop())
            self._write_batch()

    # The protocol of the stream.

    def connection_made(self, transport: Any) -> None:
        self.lower = transport
        limit_unsent(transport, UNSENT_LIMIT)
        if self._is_client:
            transport.write(HEAD)
            self._unblock()

    def data_received(self, data: Data) -> None:
        if self._owner is None:
            return
        self.heard_at = self._loop.time()
        if not self.is_open:
            data = self._read_opening(data)
            if not data:
                return
        self._deliver(data)

    def _deliver(self, data: Data) -> None:
        """Pass on what one turn permits; the stream is not read until the rest has followed."""
        owner, datagrams = self._owner, self._left
        if owner is None:
            return
        if not datagrams:
            try:
                datagrams = self._decoder.feed(data, TURN_DATAGRAMS)
            except DatagramError as error:
                self.fail(PeerError(f"UDP: {error}"))
                return
            self._in += sum(len(payload) for _, payload in datagrams)
        taken = owner.deliver(datagrams) if datagrams else 0
        self._left = [(flow, bytes(payload)) for flow, payload in datagrams[taken:]]
        if self._owner is None:
            return
        if self._left or self._decoder.has_more:
            if not self._has_stopped:
                self._has_stopped = True
                self.lower.pause_reading()
            self._loop.call_soon(self._deliver, b"")
        elif self._has_stopped:
            self._has_stopped = False
            self.lower.resume_reading()

    def _read_opening(self, data: Data) -> Data:
        """Read the opening message, and return what follows."""
        wanted = ANSWER if self._is_client else HEAD
        received = self._received + data
        if not wanted.startswith(received[: len(wanted)]):
            self._refuse()
        elif len(received) < len(wanted):
            self._received = received
        else:
            self._received = b""
            self._timer.cancel()
            self.is_open = True
            if not self._is_client:
                self.lower.write(ANSWER)
            self._unblock()
            return received[len(wanted) :]
        return b""

    def _refuse(self) -> None:
        """Fail because the opening message is none."""
        text = NO_ANSWER if self._is_client else "UDP: the peer is not a client with -udp"
        self.fail(PeerError(text))

    def _expired(self) -> None:
        text = NO_ANSWER if self._is_client else f"UDP: no opening within {OPENING_TIME:g} s"
        self.fail(PeerError(text, cause=Cause.TIMEOUT))

    def eof_received(self) -> bool:
        self._end(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        done = self._done
        del self._done  # break a reference cycle
        done(self)

    def _end(self, exc: Exception | None) -> None:
        """The peer has ended the stream, or it has failed."""
        if self._is_over:
            return
        if not self.is_open and self._is_client and not isinstance(exc, NetworkError):
            exc = PeerError(NO_ANSWER)
        self.error = exc
        self._release(describe(exc))

    def _release(self, reason: str) -> None:
        self._is_over = self._is_blocked = True
        self._owner = None
        self.reason = reason
        self._timer.cancel()
