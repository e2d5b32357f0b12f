"""The two contracts of all layers: transport and protocol of a byte stream.

Theory of operation
-------------------
A connection is a stack. At the bottom is a socket (`tcp`). Each layer above (TLS, WebSocket) is a
*protocol* to the layer below it and a *transport* to the one above. All transports obey
`StreamTransport`, and all protocols `StreamProtocol`; both extend asyncio's. So any protocol runs
on any stack.

Data goes up as immutable bytes (`bytes`, or a `memoryview` of one); a protocol that keeps it longer
than the call copies it. Data goes down with `write()`, which takes it at once.

Back-pressure goes up as `pause_writing` / `resume_writing`, and down as `pause_reading` /
`resume_reading`. A paused layer pauses the one below, so it holds at most one read of that.

A protocol gets `connection_made` when the layer below is ready to carry its data. If that layer
fails before, the protocol gets `connection_lost` alone.

Transport and protocol refer to each other, a cycle that only the garbage collector breaks, rarely
and late. So a transport drops its protocol when it calls `connection_lost`; after that, no part of
a connection may refer to what is above it. An exception that is kept loses its traceback, which
refers to every frame that it passed.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

Data = bytes | memoryview


class StreamProtocol(asyncio.Protocol):
    """The protocol above a transport.

    `borrows`: keeps nothing of the data it is given, so that may be a view of a buffer that is
    reused after the call.
    """

    __slots__ = ()

    borrows: bool = False

    @property
    def has_finished_writing(self) -> bool:
        """Whether it is known to have written its last byte."""
        return False

    @property
    def reads_after_send_error(self) -> bool:
        """Whether it wants the data still to be read after sending has failed.

        A server that cannot answer them does not: it would pause reading until its answers are
        sent, and so never see the failure.
        """
        return True

    @property
    def is_throttled(self) -> bool:
        """Whether a rate limit keeps it from taking more data."""
        return False

    def data_received(self, data: Data) -> None:
        """Take data from the transport below; unless `borrows`, it stays unchanged afterwards."""
        raise NotImplementedError


class Discarding(StreamProtocol):
    """Discards all data."""

    __slots__ = ()

    borrows = True

    def data_received(self, data: Data) -> None:
        pass


# Takes the place of the protocol above a transport that has ended.
NO_PROTOCOL = Discarding()


class StreamTransport(asyncio.Transport):
    """The transport of a byte stream: a socket, a layer, or a stream of a session.

    There are three ways to end it. Each leads to one call of the protocol's `connection_lost` when
    the stream has ended, and to no other call:

    * `close()`: deliver what was written, however the peer behaves (see `linger`), then end.
    * `cut()`: deliver what was written, then have the peer see a failure.
    * `abort()`: have the peer see a failure at once.

    `borrows`: keeps nothing of the data it is given. `shares_connection`: others write to the same
    connection, and have to wait until everything written before is sent.
    """

    __slots__ = ("upper", "write_paused")

    borrows: bool = False
    shares_connection: ClassVar[bool] = False
    name: ClassVar[str] = "stream"  # for `repr`
    upper: StreamProtocol
    write_paused: bool  # the protocol above has been told to pause writing

    def __init__(self) -> None:
        # Does not call asyncio's, which creates a dictionary for extra information.
        self.write_paused = False

    def __repr__(self) -> str:
        """The stack of layers, from this one down to the socket, for logs and debuggers."""
        return self.name

    # Below and above.

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    @property
    def bottom(self) -> StreamTransport:
        """The socket at the bottom of the stack."""
        return self

    def set_protocol(self, protocol: Any) -> None:
        """Replace the protocol above; pauses its writing at once if no more data can be taken."""
        self.upper = protocol
        if self.write_paused:
            protocol.pause_writing()

    def get_protocol(self) -> Any:
        return self.upper

    def report_lost(self, exc: Exception | None) -> None:
        """Call `connection_lost` of the protocol above, and drop the protocol."""
        upper, self.upper, self.write_paused = self.upper, NO_PROTOCOL, False
        upper.connection_lost(exc if exc is None else exc.with_traceback(None))

    # Sending.

    def write_framed(self, head: bytes, data: Data | bytearray) -> None:
        """Write `data` after the header of its frame, in one piece."""
        self.write(b"".join((head, data)))

    def unsent(self) -> int:
        """Bytes from the protocol above that the peer's kernel has not acknowledged yet."""
        raise NotImplementedError

    def throttled_bytes(self) -> int:
        """Bytes from the peer that a rate limit holds back, although the protocol above would take
        them. Above zero, the stream is slow, not idle."""
        return 0

    @property
    def socket_written(self) -> int:
        """Total bytes written to the socket so far, as the socket counts them."""
        raise NotImplementedError

    @property
    def own_tail(self) -> int:
        """Of these, the bytes at the end that do not come from above: see `SignalingLayer`."""
        return 0

    def limit_reads(self) -> None:
        """Keep reads from the socket small, if this is one, however fast data arrives."""

    # Ends.

    def half_closes(self) -> bool | None:
        """Whether each direction can end separately; None while that is not known."""
        raise NotImplementedError

    @property
    def drops_data_at_end(self) -> bool:
        """Whether a peer without half-close drops data when it gets the end: data that it has
        received, but not yet passed on."""
        return False

    def ask_half_close(self) -> None:
        """Have the peer say, if possible, what `half_closes` does not know yet."""

    def can_write_eof(self) -> bool:
        """For asyncio's contract; `half_closes` says more."""
        return self.half_closes() is True

    def close_silently(self) -> None:
        """Close without the layer's closing message to the peer, if it has one."""
        self.close()

    def cut(self) -> None:
        """Deliver what was written, then have the peer see a failure."""
        raise NotImplementedError

    # The peer.

    def ping(self) -> bool:
        """Ask the peer's program for a sign of life; false if that is not possible."""
        return False

    def ping_answered(self) -> bool:
        """Whether the last `ping` has been answered."""
        return False

    def set_peer(self, peer: tuple[str, int], own: tuple[str, int] | None = None) -> None:
        """Set the addresses of a connection whose user is behind a proxy; for the socket only.

        Args:
            peer: the user's IP literal and port, 0 if unknown: from now on "peername".
            own: the address that the user connected to, if known: from now on "sockname".
        """

    def set_peer_is_ours(self) -> None:
        """Note that the peer runs this program, which always announces its end."""

    def add_carried(self, count: int) -> None:
        """Count one more (1) or one less (-1) tunnel that carries data of this connection."""


class Pausable(StreamTransport):
    """A transport that may hold data that arrived while the protocol above had paused it.

    It delivers that data, before anything that is read later, in a separate turn of the event loop:
    the caller of `resume_reading` may be in the middle of something.
    """

    __slots__ = ("_paused", "_scheduled")

    _paused: bool  # by the protocol above
    _scheduled: bool  # delivery is due in the next turn

    def is_reading(self) -> bool:
        return not self._paused

    def pause_reading(self) -> None:
        self._paused = True
        self._pause_below()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            if self._has_more:
                self._deliver_soon()
            else:
                self._resume_below()

    def _deliver_soon(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver_scheduled)

    def _deliver_scheduled(self) -> None:
        self._scheduled = False
        if not self._paused:
            self._deliver()
            if not self._paused:
                self._resume_below()

    @property
    def _has_more(self) -> bool:
        """Whether the transport holds, or may hold, data for the protocol above."""
        return False

    def _deliver(self) -> None:
        """Hand up the held data, until the protocol above pauses again."""

    def _pause_below(self) -> None:
        """Pause the source of the data, if possible."""

    def _resume_below(self) -> None:
        """Resume the source of the data."""
