"""What all layers share: the two contracts.

Theory of operation
-------------------
A connection is a stack. At the bottom is a socket (`tcp`); each layer above (TLS, WebSocket) is a
*protocol* to the layer below it and a *transport* to the one above. All transports, that of the
socket included, obey one contract, `StreamTransport`; all protocols obey `StreamProtocol`. Both
extend asyncio's own. So any protocol runs on any stack, and none asks which it is.

Data goes up as immutable bytes (`bytes`, or a `memoryview` of one); a protocol that keeps it longer
than the call copies it. Data goes down with `write()`, which takes it at once.

Back-pressure goes down-up as `pause_writing` / `resume_writing` and up-down as
`pause_reading` / `resume_reading`; a layer holds at most what one read of the layer below
gave it, because a paused layer pauses the one below.

A protocol above a layer gets `connection_made` when that layer is ready to carry its data. If
the layer fails before, it gets `connection_lost` alone.

Transport and protocol refer to each other, which is a cycle that only the garbage collector would
break, rarely and late. So a transport lets go of its protocol when it says `connection_lost`, and
nothing that a connection is made of may refer back to what is above it after that. An exception
that is kept loses its traceback first: that refers to every frame it went through.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

Data = bytes | memoryview


class StreamProtocol(asyncio.Protocol):
    """A protocol of ours: what is above a transport.

    `borrows`: it keeps nothing of what it is given, so that may be a view of memory that is used
    again afterwards.
    """

    __slots__ = ()

    borrows: bool = False

    @property
    def sends_no_more(self) -> bool:
        """Whether it is known to have written its last byte."""
        return False

    @property
    def wants_rest(self) -> bool:
        """Whether data still to be read are of use when sending has failed.

        They are not to a server that could not answer them. It would wait for its answers to be
        taken, and read nothing meanwhile, so it would not hear of the failure.
        """
        return True

    def data_received(self, data: Data) -> None:
        """Take data from the transport below; unless `borrows`, it stays unchanged afterwards."""
        raise NotImplementedError


class _Gone(StreamProtocol):
    """Stands above a transport that is over."""

    __slots__ = ()

    borrows = True  # what comes is dropped

    def data_received(self, data: Data) -> None:
        pass


GONE = _Gone()


class StreamTransport(asyncio.Transport):
    """The transport of a byte stream: a socket, a layer, or a stream of a session.

    There are three ways to end it. Each calls `connection_lost` of the protocol once, when the
    stream is gone, and no other method of it any more:

    * `close()`: deliver what was written, however the peer behaves (see `linger`), then end.
    * `cut()`: deliver what was written, then have the peer see a failure.
    * `abort()`: have the peer see a failure at once.

    `borrows`: it keeps nothing of what it is given. `shares`: others write to the same
    connection, and wait for as long as it takes to send what was written before.
    """

    __slots__ = ("upper", "write_paused")

    borrows: bool = False
    shares: ClassVar[bool] = False
    name: ClassVar[str] = "stream"  # for `repr`
    upper: StreamProtocol
    write_paused: bool  # the protocol above has been told to pause writing

    def __init__(self) -> None:
        # Without asyncio's, which makes a dictionary for what is known of the connection.
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
        """Hand the stream over; `protocol` is told at once if nothing can be taken now."""
        self.upper = protocol
        if self.write_paused:
            protocol.pause_writing()

    def get_protocol(self) -> Any:
        return self.upper

    def tell_lost(self, exc: Exception | None) -> None:
        """Tell the protocol above that this is over, and let go of it.

        Without the traceback, which refers to every frame that `exc` went through: it may be kept.
        """
        upper, self.upper, self.write_paused = self.upper, GONE, False
        upper.connection_lost(exc if exc is None else exc.with_traceback(None))

    # Sending.

    def write_framed(self, head: bytes, data: Data | bytearray) -> None:
        """Write `data` behind the header of its frame, in one piece."""
        self.write(b"".join((head, data)))

    def unsent(self) -> int:
        """How many of the bytes written by the protocol above the peer's kernel has not
        acknowledged yet."""
        raise NotImplementedError

    def held_back(self) -> int:
        """How many bytes from the peer wait here although the protocol above would take them: a
        rate limit's. Above zero, the stream is slow, not quiet."""
        return 0

    @property
    def handed_over(self) -> int:
        """Bytes given to the socket so far, in its own count."""
        raise NotImplementedError

    @property
    def tail(self) -> int:
        """How many of the last of these are not from the protocol above: see `SpeakingLayer`."""
        return 0

    def limit_reads(self) -> None:
        """Read little at a time from the socket, if this is one, however fast it comes."""

    # Ends.

    def half_closes(self) -> bool | None:
        """Whether both ends can end each direction by itself; None while that is not known."""
        raise NotImplementedError

    def ask_half_close(self) -> None:
        """Ask the peer, if that helps, for what `half_closes` does not know yet."""

    def can_write_eof(self) -> bool:
        """As asyncio has it; what is ours asks `half_closes`."""
        return self.half_closes() is True

    def close_silently(self) -> None:
        """As `close()`, without the last word that the layer owes its peer, if it has one."""
        self.close()

    def cut(self) -> None:
        """Deliver what was written, then have the peer see a failure."""
        raise NotImplementedError

    # The peer.

    def ask(self) -> bool:
        """Ask the peer's program for a sign of life; false if that is not possible."""
        return False

    def has_answered(self) -> bool:
        """Whether the answer to the last question has come."""
        return False

    def peer_is_ours(self) -> None:
        """Learn that the peer's program is ours: it never leaves without saying so."""

    def engage(self, count: int) -> None:
        """Learn that something has begun (1) or ceased (-1) to carry what comes from here."""
