"""The ALPN names that a ClientHello offers, which `ssl` does not report to a server.

Everything else, malformed messages included, is left to OpenSSL (RFC 8446, 4.1.2 and 5.1;
RFC 7301, 3.1).
"""

from __future__ import annotations

from mtt.wire.errors import WireError

# A ClientHello with a post-quantum key share has 2 KiB.
MAX_SIZE = 16 * 1024

_HANDSHAKE = 22
_CLIENT_HELLO = 1
_ALPN = 16


class ClientHelloError(WireError):
    """The bytes are not a ClientHello."""


def offered_alpn(records: bytes | bytearray) -> list[bytes] | None:
    """The ALPN names in the ClientHello at the start of `records`; empty if it has none.

    Returns None while the ClientHello is incomplete. Raises ClientHelloError if it is not one.
    """
    message = bytearray()
    at = 0
    while at + 5 <= len(records):
        if records[at] != _HANDSHAKE or len(records) > MAX_SIZE:
            raise ClientHelloError("no handshake message, or too many bytes")
        size = int.from_bytes(records[at + 3 : at + 5], "big")
        message += records[at + 5 : at + 5 + size]
        at += 5 + size
        if len(message) >= 4:
            if message[0] != _CLIENT_HELLO:
                raise ClientHelloError("no ClientHello")
            end = 4 + int.from_bytes(message[1:4], "big")
            if len(message) >= end:
                return _names(bytes(message[4:end]))
    return None


def _names(hello: bytes) -> list[bytes]:
    try:
        at = 2 + 32  # version, random
        at += 1 + hello[at]  # session id
        at += 2 + int.from_bytes(hello[at : at + 2], "big")  # cipher suites
        at += 1 + hello[at]  # compression methods
    except IndexError:
        raise ClientHelloError("a ClientHello that is cut short") from None
    at += 2  # total size of the extensions
    while at + 4 <= len(hello):
        kind = int.from_bytes(hello[at : at + 2], "big")
        size = int.from_bytes(hello[at + 2 : at + 4], "big")
        at += 4
        if kind == _ALPN:
            return _split(hello[at + 2 : at + size])
        at += size
    return []


def _split(names: bytes) -> list[bytes]:
    found = []
    at = 0
    while at < len(names):
        size = names[at]
        found.append(names[at + 1 : at + 1 + size])
        at += 1 + size
    return found
