"""The datagrams of many flows on one stream, between mtt-client and mtt-server with -udp.

    head      16 bytes                         client to server, once, first
    answer    16 bytes                         server to client, once, first
    datagram  u16 length | u32 flow | payload  both ways, after head and answer

Big-endian. The client numbers its flows; the server has a socket for each number, and answers carry
the number of their flow. Flows begin with their first datagram, and end on either side when they
are idle: no message says so. Numbers are not used again while a flow with that number may exist.
Number 0 is no flow: the server returns its datagrams, so the client can ask whether it is there.

The client sends no datagram before the answer, unless it knows already that the server carries
them. So no datagram reaches a destination through a server that knows nothing of this format, but
only the head.
"""

from __future__ import annotations

from struct import Struct

from mtt.wire.errors import WireError

Data = bytes | bytearray | memoryview

# Random numbers. They differ in the first byte from TLS, HTTP and smux.
HEAD = bytes.fromhex("af529060f49efeb5a4b1ae2423333175")
ANSWER = bytes.fromhex("8bb1f72cefd40287dff0d5d8fce600a7")

# The name that AnyTLS streams ask for. It never exists (RFC 6761, 6.4), so an AnyTLS proxy server
# reports an error.
HOST = "udp.tunnel.invalid"

# The most that UDP carries over IPv4: 65535 less both headers. IPv6 permits 20 bytes more, which
# would not fit into every destination's path.
MAX_DATAGRAM = 65507

# What a client says of a server that does not answer as one with -udp.
NO_ANSWER = "no UDP through this server: start it with -udp, in the mode of the client"
# What a server without -udp says of such a client.
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
