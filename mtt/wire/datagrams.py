"""The datagrams of many flows on one stream, between mtt-client and mtt-server with -udp.

    head      16 bytes                         client to server, once, first
    answer    16 bytes                         server to client, once, first
    datagram  u16 length | u32 flow | payload  both ways, after head and answer

Big-endian. The client numbers its flows; the server has a socket for each number, and answers carry
the number of their flow. A flow begins with its first datagram. It ends when it is idle, on each
side separately and without a message. A number is not reused while its flow may exist. Number 0 is
a ping: the server returns its datagrams.

The client sends no datagram before the answer, unless the server has already agreed to carry them.
So a server that does not support this format delivers only the head to its destination.
"""

from __future__ import annotations

from struct import Struct

from mtt.wire.errors import WireError

Data = bytes | bytearray | memoryview

# SHA-256 of "mos-tls-tunnel udp head 1" and "... answer 1", 16 bytes. Their first bytes differ from
# those of TLS, HTTP and smux.
HEAD = bytes.fromhex("af529060f49efeb5a4b1ae2423333175")
ANSWER = bytes.fromhex("8bb1f72cefd40287dff0d5d8fce600a7")

# The destination of AnyTLS streams for datagrams. The name never exists (RFC 6761, 6.4), so an
# AnyTLS server that is a proxy reports an error.
HOST = "udp.tunnel.invalid"

# The largest payload over IPv4: 65535 less both headers. IPv6 permits 20 bytes more, which a
# destination with IPv4 could not receive.
MAX_DATAGRAM = 65507

# The client's error if the server does not answer like one with -udp.
NO_ANSWER = "no UDP through this server: start it with -udp, in the mode of the client"
# The error of a server without -udp.
NOT_SERVED = "a client with -udp: start the server with -udp, too"

HEADER = Struct(">HI")
HEADER_SIZE = HEADER.size
PING = 0
MAX_FLOW = 0xFFFF_FFFF


class DatagramError(WireError):
    """The peer does not speak this format."""


def is_opening(received: bytes) -> tuple[bool, int] | None:
    """Whether a stream begins with the head, and 0, as for `StreamHead`; None while that is open.
    """
    if HEAD.startswith(received[: len(HEAD)]):
        return (True, 0) if len(received) >= len(HEAD) else None
    return False, 0


def encode(flow: int, payload: Data) -> bytes:
    """One datagram of at most MAX_DATAGRAM bytes."""
    return HEADER.pack(len(payload), flow) + payload


class Decoder:
    """Turns received bytes into datagrams `(flow, payload)`.

    Payloads are views of the bytes fed, or of a copy. At most one incomplete datagram is kept, and
    what `feed` has left for the next call.

    Attributes:
        has_more: whether `feed` has returned as many datagrams as it was asked for.
    """

    __slots__ = ("_held", "_need", "has_more")

    def __init__(self) -> None:
        self._held = bytearray()  # an incomplete datagram, or more
        self._need = 0  # its size, as far as it is known
        self.has_more = False

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes received so far end after a whole datagram."""
        return not self._held

    def feed(self, data: Data, most: int = 2**31) -> list[tuple[int, memoryview]]:
        """Decode received bytes and return the datagrams in them, but not more than `most`.

        Raises DatagramError on an invalid length. Datagrams before it in `data` are lost; do not
        use the decoder after it.
        """
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return []
            data = self._held
            self._held = bytearray()
        view = memoryview(data)
        found: list[tuple[int, memoryview]] = []
        at, end = 0, len(view)
        unpack = HEADER.unpack_from
        self.has_more = False
        while (start := at + HEADER_SIZE) <= end:
            if len(found) == most:
                self.has_more = True
                self._need = HEADER_SIZE
                break
            size, flow = unpack(view, at)
            if size > MAX_DATAGRAM:
                raise DatagramError(f"a datagram of {size} bytes; UDP carries {MAX_DATAGRAM}")
            if start + size > end:
                self._need = HEADER_SIZE + size
                break
            found.append((flow, view[start : start + size]))
            at = start + size
        else:
            self._need = HEADER_SIZE
        if at < end:
            self._held += view[at:]
        return found
