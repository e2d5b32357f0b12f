"""Addresses on the wire, as in SOCKS5 (RFC 1928, 5), AnyTLS and UDP over TCP.

    u8 type | 4 bytes, 16 bytes, or u8 length and a name | u16 port

Big-endian. An address here is a host and a port. The host is an IP literal in canonical form,
without brackets, or a domain name, which is UTF-8 on the wire and is validated by the resolver.
IPv4-mapped IPv6 addresses (RFC 4291, 2.5.5.2) become IPv4 addresses, and names that are IP
literals, with or without brackets, become addresses, as some clients send them: rules about
addresses must see the address that will be dialled.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import NamedTuple

from mtt.wire.errors import WireError

Data = bytes | memoryview


class Types(NamedTuple):
    """Type numbers of the three kinds of address."""

    ipv4: int
    domain: int
    ipv6: int


SOCKS = Types(ipv4=1, domain=3, ipv6=4)  # RFC 1928, 5
# UDP over TCP has its own numbers in datagrams (uot.AddrParser of github.com/sagernet/sing).
UOT = Types(ipv4=0, domain=2, ipv6=1)

MAX_NAME = 255  # bytes: the maximum of the length field
MAX_SIZE = 1 + 1 + MAX_NAME + 2

# Entries per cache: datagrams repeat the same few addresses. An entry has at most 255 bytes, so the
# caches stay small.
_CACHED = 512

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressError(WireError):
    """The bytes are not an address."""


def unmapped_ip(address: Ip) -> Ip:
    """The IPv4 address in an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2); others unchanged.

    IPv6 sockets report IPv4 peers in that form.
    """
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=_CACHED)
def _literal(packed: bytes) -> str:
    """The IP literal of 4 or 16 bytes."""
    return str(unmapped_ip(ipaddress.ip_address(packed)))


@lru_cache(maxsize=_CACHED)
def _packed(host: str) -> bytes | None:
    """`host` as 4 or 16 bytes; None if it is not an IP literal."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    # A zone ("%eth0") has no meaning on another machine, so it is dropped.
    return unmapped_ip(address).packed


def unbracketed(host: str) -> str:
    """`host` without the brackets around an IPv6 literal (RFC 3986, 3.2.2).

    Other hosts are returned unchanged. Raises ValueError if the brackets hold anything else.
    """
    if host[:1] != "[":
        return host
    literal = host[1:-1]
    if host[-1:] != "]" or ":" not in literal or _packed(literal) is None:
        raise ValueError("no IPv6 address in the brackets")
    return literal


def _check_name(name: str) -> None:
    # A name with a NUL, a space or a line break never resolves and would corrupt log lines.
    if not name.isprintable() or " " in name:
        raise ValueError("a domain name with spaces or control characters")


def encode(host: str, port: int, types: Types = SOCKS) -> bytes:
    """`host` (IP literal or name) and `port` on the wire.

    Brackets around an IPv6 literal are dropped.

    Raises ValueError if the host is empty, longer than 255 bytes, or contains spaces or control
    characters, or if the port is out of range.
    """
    if not 0 <= port <= 0xFFFF:
        raise ValueError(f"{port} is not a port")
    host = unbracketed(host)
    packed = _packed(host)
    if packed is not None:
        kind = types.ipv4 if len(packed) == 4 else types.ipv6
        return b"%c%b%b" % (kind, packed, port.to_bytes(2, "big"))
    try:
        name = host.encode()
    except UnicodeEncodeError:
        raise ValueError("a domain name that is not valid Unicode") from None
    if not 0 < len(name) <= MAX_NAME:
        raise ValueError(f"a domain name has 1 to {MAX_NAME} bytes")
    _check_name(host)
    return b"%c%c%b%b" % (types.domain, len(name), name, port.to_bytes(2, "big"))


def decode(
    data: Data, at: int = 0, types: Types = SOCKS, *, allow_empty: bool = False
) -> tuple[str, int, int] | None:
    """The address at offset `at` of `data`: host, port, and the offset after it.

    Returns None while the address is incomplete, that is, for at most MAX_SIZE - 1 bytes. An empty
    name, which some peers send where the address does not matter, is an error unless
    `allow_empty`: a resolver would take it for the local machine.

    Raises AddressError on an unknown type or an invalid name.
    """
    left = len(data) - at
    if left < 1:
        return None
    kind = data[at]
    if kind == types.domain:
        if left < 2:
            return None
        at += 2
        size = data[at - 1]
    elif kind == types.ipv4:
        at += 1
        size = 4
    elif kind == types.ipv6:
        at += 1
        size = 16
    else:
        raise AddressError(f"unknown address type {kind}")
    end = at + size
    if len(data) < end + 2:
        return None
    raw = bytes(data[at:end])
    host = _name(raw, allow_empty) if kind == types.domain else _literal(raw)
    return host, int.from_bytes(data[end : end + 2], "big"), end + 2


def _name(raw: bytes, allow_empty: bool) -> str:
    if not raw and not allow_empty:
        raise AddressError("an empty domain name")
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise AddressError("a domain name that is not UTF-8") from None
    try:
        packed = _packed(unbracketed(name))
        if packed is not None:
            return _literal(packed)
        _check_name(name)
    except ValueError as error:
        raise AddressError(str(error)) from None
    return name
