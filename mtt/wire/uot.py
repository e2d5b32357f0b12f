"""UDP over TCP, versions 1 and 2 (uot of github.com/sagernet/sing): datagrams on a stream.

    request    u8 connect | address            version 2, client to server, once, first
    datagram   address | u16 length | payload  no address after a request to connect

Big-endian. Requests use the address types of SOCKS5; datagrams have their own. An address is the
destination towards the server, and the source towards the client. A stream carries UDP if its
destination is one of two reserved names.
"""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache

from mtt.wire.addresses import MAX_SIZE, UOT, AddressError, unmapped_ip
from mtt.wire.addresses import decode as decode_address
from mtt.wire.addresses import encode as encode_address
from mtt.wire.errors import WireError

Data = bytes | memoryview

MAGIC = "sp.v2.udp-over-tcp.arpa"
LEGACY_MAGIC = "sp.udp-over-tcp.arpa"
_VERSIONS = {MAGIC: 2, LEGACY_MAGIC: 1}

# The UDP maximum: 65535 less the header of 8 bytes (65507 over IPv4, where the system refuses
# more).
MAX_DATAGRAM = 65527
# The Go programs read datagrams into 16 KiB, and end the stream on a larger one.
MAX_FOREIGN = 16 * 1024

# Cached answers of `unfit_for_go`: the same few destinations are checked for every datagram.
_CACHED = 512

# Address, length and payload: the most that a decoder holds.
MAX_HELD = MAX_SIZE + 2 + MAX_DATAGRAM


class UotError(WireError):
    """The peer does not speak UDP over TCP, or a datagram is too large for it."""


# A name that Go's resolver accepts; it does not look up any other.
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\.?$)(?=.*[A-Za-z_-])(?:{_LABEL}\.)*{_LABEL}\.?")


@lru_cache(maxsize=_CACHED)
def unfit_for_go(host: str, port: int) -> str:
    """Why a Go server cannot send a datagram to `host` (IP literal or name) and `port`, or "".

    A Go server ends the whole stream, with all its destinations, on a datagram it cannot send.
    """
    if port == 0:
        return "there is no port 0"
    try:
        address = unmapped_ip(ipaddress.ip_address(host))
    except ValueError:
        return "" if _NAME.fullmatch(host) else "it is not a domain name"
    # For IPv6, is_reserved includes ::/8, which contains host addresses.
    other = address.is_reserved if address.version == 4 else address.is_link_local
    if other or address.is_multicast or address.is_unspecified:
        return "it is not the address of a host"
    return ""


def version(host: str) -> int:
    """The UDP over TCP version of a stream to `host`; 0 for an ordinary stream."""
    return _VERSIONS.get(host.lower(), 0)


def encode_request(host: str, port: int, *, connect: bool) -> bytes:
    """The request of version 2.

    With `connect`, all datagrams go to and come from `host`, and carry no address; otherwise host
    and port are ignored. Raises ValueError if the address is invalid.
    """
    return bytes((connect,)) + encode_address(host, port)


# The start of a client's stream: destination and request. It names no peer, so datagrams may go
# anywhere. The reference sends the request with the first datagram, because it does not know until
# then whether UDP is used.
DESTINATION = encode_address(MAGIC, 0) + encode_request("0.0.0.0", 0, connect=False)


def encode_datagram(payload: Data, host: str, port: int) -> bytes:
    """One datagram with its address. Raises ValueError if the address or size is invalid."""
    return encode_address(host, port, UOT) + encode_connected(payload)


def encode_connected(payload: Data) -> bytes:
    """One datagram after a request to connect. Raises ValueError if it is too long."""
    size = len(payload)
    if size > MAX_DATAGRAM:
        raise ValueError(f"a datagram of {size} bytes; UDP carries {MAX_DATAGRAM} at most")
    return size.to_bytes(2, "big") + payload


class Decoder:
    """Turns a stream's data into datagrams `(host, port, payload)`.

    Payloads are views of the bytes fed where possible. `request`: whether a request comes first (on
    a server, version 2). `peer`: the address that the client asked to connect to, if any; datagrams
    then carry no address, and are returned with this one.
    """

    __slots__ = ("_awaits_request", "_held", "_need", "_peer", "request")

    def __init__(self, *, request: bool = False, peer: tuple[str, int] | None = None) -> None:
        # Connect, host, port; the host may be empty without connect. None until received.
        self.request: tuple[bool, str, int] | None = None
        self._awaits_request = request
        self._peer = peer
        self._held = bytearray()  # an incomplete request or datagram
        self._need = 1  # bytes of it needed before parsing again

    @property
    def at_boundary(self) -> bool:
        """Whether the bytes received so far end after the request or a whole datagram."""
        return not (self._held or self._awaits_request)

    def feed(self, data: Data) -> list[tuple[str, int, Data]]:
        """Decode received bytes and return the datagrams in them.

        Raises UotError on an invalid address or length. Datagrams before it in `data` are lost; do
        not use the decoder after it.
        """
        if self._held:
            self._held += data
            if len(self._held) < self._need:
                return []
            data = bytes(self._held)
            self._held = bytearray()
        found: list[tuple[str, int, Data]] = []
        try:
            at = self._parse(memoryview(data), found)
        except AddressError as error:
            raise UotError(str(error)) from None
        self._held += memoryview(data)[at:]
        return found

    def _parse(self, data: memoryview, found: list[tuple[str, int, Data]]) -> int:
        """Find whole datagrams, set `_need`, and return the offset of the incomplete one."""
        at, end = 0, len(data)
        if self._awaits_request:
            self._need = end + 1
            if not end:
                return 0
            connect = data[0] != 0
            address = decode_address(data, 1, allow_empty=not connect)
            if address is None:
                return 0
            host, port, at = address
            self._awaits_request = False
            self.request = connect, host, port
            if connect:
                self._peer = host, port
        while True:
            if self._peer is not None:
                host, port = self._peer
                start = at
            else:
                address = decode_address(data, at, UOT)
                if address is None:
                    self._need = end - at + 1
                    return at
                host, port, start = address
            start += 2
            if start > end:
                self._need = start - at
                return at
            size = int.from_bytes(data[start - 2 : start], "big")
            if size > MAX_DATAGRAM:
                raise UotError(f"a datagram of {size} bytes; UDP carries {MAX_DATAGRAM} at most")
            if start + size > end:
                self._need = start + size - at
                return at
            found.append((host, port, data[start : start + size]))
            at = start + size
