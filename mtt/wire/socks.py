"""The server side of SOCKS: version 5 (RFC 1928, RFC 1929), versions 4 and 4a.

    5:  05 n methods            -> 05 method
        01 n user n password    -> 01 status                    (if the method is 2)
        05 command 00 address   -> 05 reply 00 address
    4:  04 command port ip user 00 [name 00]  -> 00 reply port ip

Parsers take all unconsumed bytes and return the message with the offset after it, or None while it
is incomplete. No message is longer than MAX_MESSAGE. Version 4a marks a name by the IP address
0.0.0.x (SOCKS 4A: A Simple Extension to SOCKS 4 Protocol, Ying-Da Lee).
"""

from __future__ import annotations

from mtt.outcome import Outcome
from mtt.wire import addresses
from mtt.wire.addresses import MAX_NAME, AddressError
from mtt.wire.errors import WireError

VERSION4, VERSION5 = 4, 5  # the first byte of a connection
CONNECT, UDP_ASSOCIATE = 1, 3  # BIND (2) is obsolete and not supported
NO_LOGIN, LOGIN, NO_METHOD = 0, 2, 0xFF

# SOCKS 4 sets no limit to the user name, which is ignored here; identd (RFC 1413) allows 512, and
# real names are as short as a login.
MAX_USER = 255
# The longest message is a request of version 4a; version 5's login (513) and request (262) are
# shorter.
MAX_MESSAGE = 8 + MAX_USER + 1 + MAX_NAME + 1

# Precedes the address of a datagram from or to the client: two zeros and the fragment number.
_DATAGRAM = b"\0\0\0"


# Version 5 replies (RFC 1928, 6) to requests that were attempted. Proxies commonly use "TTL
# expired" (6) for connections that timed out.
_REPLIES = {
    Outcome.SUCCEEDED: 0,
    Outcome.GENERAL_FAILURE: 1,
    Outcome.NOT_ALLOWED: 2,
    Outcome.NETWORK_UNREACHABLE: 3,
    Outcome.HOST_UNREACHABLE: 4,
    Outcome.UNRESOLVABLE: 4,
    Outcome.CONNECTION_REFUSED: 5,
    Outcome.TIMED_OUT: 6,
    Outcome.NO_AGENT: 1,
    Outcome.OVERLOADED: 1,
}
# Version 5 replies to requests that are not attempted.
COMMAND_NOT_SUPPORTED, ADDRESS_TYPE_NOT_SUPPORTED = 7, 8


class SocksError(WireError):
    """The message is refused; send `answer`, then close the connection."""

    def __init__(self, text: str, answer: bytes = b"") -> None:
        super().__init__(text)
        self.answer = answer


# Version 5.


def parse_methods(data: bytes) -> tuple[bytes, int] | None:
    """The authentication methods that a client offers, one byte each."""
    if len(data) < 2 or len(data) < 2 + data[1]:
        return None
    end = 2 + data[1]
    return data[2:end], end


def method_reply(method: int) -> bytes:
    """The chosen method; close the connection after NO_METHOD."""
    return b"\x05%c" % method


def parse_login(data: bytes) -> tuple[bytes, bytes, int] | None:
    """User and password (RFC 1929). Raises SocksError."""
    if data[:1] not in (b"", b"\x01"):
        raise SocksError("a SOCKS login of an unknown version", login_reply(False))
    if len(data) < 2 or len(data) < 3 + data[1]:
        return None
    at = 2 + data[1]
    end = at + 1 + data[at]
    if len(data) < end:
        return None
    return data[2:at], data[at + 1 : end], end


def login_reply(good: bool) -> bytes:
    """The answer to a login; close the connection if it is not `good`."""
    return b"\x01\x00" if good else b"\x01\x01"


def parse_request(data: bytes) -> tuple[int, str, int, int] | None:
    """Command, host, port and end. The address of a UDP_ASSOCIATE may be an empty name.

    Raises SocksError.
    """
    if data[:1] not in (b"", b"\x05"):
        text = "a SOCKS request of another version than 5"
        raise SocksError(text, reply5(Outcome.GENERAL_FAILURE))
    if len(data) < 4:
        return None
    if data[3] not in addresses.SOCKS:
        text = f"a SOCKS request with address type {data[3]}"
        raise SocksError(text, refusal5(ADDRESS_TYPE_NOT_SUPPORTED))
    try:
        address = addresses.decode(data, 3, allow_empty=data[1] == UDP_ASSOCIATE)
    except AddressError as error:
        text = f"a SOCKS request with {error}"
        raise SocksError(text, reply5(Outcome.GENERAL_FAILURE)) from None
    if address is None:
        return None
    return data[1], *address


def reply5(outcome: Outcome, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """The answer to a request; the address is the UDP relay's, or 0.0.0.0 to reveal nothing."""
    return b"\x05%c\x00" % _REPLIES[outcome] + addresses.encode(host, port)


def refusal5(reply: int) -> bytes:
    """The answer to a request that is not attempted: one of the *_NOT_SUPPORTED replies."""
    return b"\x05%c\x00" % reply + addresses.encode("0.0.0.0", 0)


# Versions 4 and 4a.


def parse_request4(data: bytes) -> tuple[int, str, int, int] | None:
    """Command, host, port and end; the user name is ignored. Raises SocksError."""
    if len(data) < 9:
        return None
    end = _end_of_text(data, 8, MAX_USER)
    if end < 0:
        return None
    port, ip = int.from_bytes(data[2:4], "big"), data[4:8]
    if ip[:3] == b"\0\0\0" and ip[3]:
        start, end = end, _end_of_text(data, end, MAX_NAME)
        if end < 0:
            return None
        wire = b"%c%c%b" % (addresses.SOCKS.domain, end - 1 - start, data[start : end - 1])
    else:
        wire = b"%c%b" % (addresses.SOCKS.ipv4, ip)
    try:
        address = addresses.decode(wire + data[2:4])
    except AddressError as error:
        raise SocksError(f"a SOCKS request with {error}", reply4(False)) from None
    assert address is not None  # it was built above
    return data[1], address[0], port, end


def _end_of_text(data: bytes, at: int, limit: int) -> int:
    """The offset after the zero that ends a text; -1 if incomplete. Raises SocksError."""
    end = data.find(b"\0", at, at + limit + 1)
    if end < 0 and len(data) > at + limit:
        raise SocksError(f"a SOCKS request with a text of more than {limit} bytes", reply4(False))
    return end + 1 if end >= 0 else -1


def reply4(granted: bool) -> bytes:
    """The answer to a request: 91 is the only refusal that is not about identd."""
    return b"\0%c\0\0\0\0\0\0" % (0x5A if granted else 0x5B)


# Datagrams of an association.


def parse_datagram(data: bytes) -> tuple[str, int, int]:
    """Destination and offset of the payload. Raises SocksError if it must be dropped."""
    try:
        address = addresses.decode(data, len(_DATAGRAM))
    except AddressError as error:
        raise SocksError(str(error)) from None
    if address is None:
        raise SocksError("an incomplete header")
    if data[2]:
        raise SocksError("a fragment")  # support is optional (RFC 1928, 7); clients send none
    return address


def datagram_header(host: str, port: int) -> bytes:
    """The header before the payload of a datagram from `host`. Raises ValueError."""
    return _DATAGRAM + addresses.encode(host, port)
