"""The header of the PROXY protocol, versions 1 and 2, which carries the user's address.

    v1    PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 CR LF
    v2    12 bytes signature | u8 0x21 | u8 family, protocol | u16 size | addresses | u16 ports

A header can also say that it has no address: `PROXY UNKNOWN` in version 1, command LOCAL or another
family in version 2. Load balancers send those with health checks.

Specification: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
"""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

from mtt.errors import Cause
from mtt.wire.addresses import Ip, unmapped_ip
from mtt.wire.errors import WireError

V1, V2 = "v1", "v2"
VERSIONS = (V1, V2)

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_PROXY = b"\x21"  # version 2, a proxied connection
_LOCAL = b"\x20"  # version 2, a connection of the proxy itself
_TCP4, _TCP6, _UNSPECIFIED = b"\x11", b"\x21", b"\0"

# Bytes of a line of version 1, its end included (specification, 2.1).
MAX_LINE = 107
# Bytes of a header of version 2, as in nginx. Addresses take 52; proxies append further values,
# such as names of certificates.
MAX_HEADER = 4096

_PREFIX = b"PROXY "
_FIXED = len(_SIGNATURE) + 4  # bytes of version 2 before the addresses
_LINE = re.compile(rb"PROXY TCP([46]) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) ([0-9]{1,5}) ([0-9]{1,5})")

Address = tuple[str, int]


class HeaderError(WireError):
    """The bytes are no valid header."""

    cause = Cause.PROXY_HEADER


class Header(NamedTuple):
    """What a header says.

    Attributes:
        source: IP literal and port of the user; None if the header has no address.
        destination: the address that the user connected to; None likewise.
        size: bytes of the header.
    """

    source: Address | None
    destination: Address | None
    size: int


def may_begin(data: bytes) -> bool:
    """Whether `data` is the beginning of a header, or could become one."""
    return any(
        data[: len(mark)] == mark[: len(data)] for mark in (_PREFIX, _SIGNATURE)
    )


def parse(data: bytes) -> Header | None:
    """The header at the start of `data`; None while it is incomplete.

    Raises HeaderError.
    """
    if not may_begin(data):
        raise HeaderError("no PROXY header")
    return _parse_v1(data) if data[:1] == _PREFIX[:1] else _parse_v2(data)


def _parse_v1(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, MAX_LINE)
    if end < 0:
        if len(data) >= MAX_LINE:
            raise HeaderError(f"a PROXY header of more than {MAX_LINE} bytes")
        return None
    line, size = data[:end], end + 2
    if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
        return Header(None, None, size)  # the rest must be ignored (specification, 2.1)
    match = _LINE.fullmatch(line)
    if match is None:
        raise HeaderError("a PROXY header that is not of version 1")
    version = int(match[1])
    source, destination = (
        (_literal(match[2 + end], version), _port(match[4 + end])) for end in (0, 1)
    )
    return Header(source, destination, size)


def _literal(text: bytes, version: int) -> str:
    try:
        address = ipaddress.ip_address(text.decode("ascii"))
    except ValueError:
        raise HeaderError("a PROXY header with an invalid address") from None
    if address.version != version:
        raise HeaderError("a PROXY header with an address of the other IP version")
    return str(unmapped_ip(address))


def _port(digits: bytes) -> int:
    port = int(digits)
    if port > 0xFFFF:
        raise HeaderError("a PROXY header with an invalid port")
    return port


def _parse_v2(data: bytes) -> Header | None:
    if len(data) < _FIXED:
        return None
    command, family = data[12:13], data[13:14]
    size = _FIXED + int.from_bytes(data[14:16], "big")
    if command not in (_LOCAL, _PROXY):
        raise HeaderError(f"a PROXY header of an unknown version or command, 0x{data[12]:02x}")
    if size > MAX_HEADER:
        raise HeaderError(f"a PROXY header of more than {MAX_HEADER} bytes")
    if len(data) < size:
        return None
    width = {_TCP4: 4, _TCP6: 16}.get(family, 0)
    if command == _LOCAL or not width:  # the real addresses count (specification, 2.2)
        return Header(None, None, size)
    at = _FIXED + 2 * width
    if size < at + 4:
        raise HeaderError("a PROXY header that is too short for its addresses")
    hosts = (data[_FIXED : _FIXED + width], data[_FIXED + width : at])
    ports = (data[at : at + 2], data[at + 2 : at + 4])
    source, destination = (
        (str(unmapped_ip(ipaddress.ip_address(host))), int.from_bytes(port, "big"))
        for host, port in zip(hosts, ports, strict=True)
    )
    return Header(source, destination, size)


def encode(version: str, source: Address | None, destination: Address | None) -> bytes:
    """The header for a TCP connection.

    Args:
        version: one of VERSIONS.
        source: IP literal and port of the user; None if unknown.
        destination: IP literal and port that the user connected to; None if unknown.

    Raises ValueError if a host is not an IP literal, or a port is out of range.
    """
    ends = () if source is None or destination is None else (source, destination)
    hosts = [_parsed(host) for host, _ in ends]
    ports = [port for _, port in ends]
    if any(host.version == 6 for host in hosts):
        # A header has one address family for both ends.
        hosts = [_mapped(host) if host.version == 4 else host for host in hosts]
    if version == V2:
        return _encode_v2(hosts, ports)
    if not hosts:
        return b"PROXY UNKNOWN\r\n"
    names = " ".join(map(_name, hosts))
    return f"PROXY TCP{hosts[0].version} {names} {ports[0]} {ports[1]}\r\n".encode("ascii")


def _encode_v2(hosts: list[Ip], ports: list[int]) -> bytes:
    kind = _UNSPECIFIED if not hosts else _TCP4 if hosts[0].version == 4 else _TCP6
    body = b"".join([host.packed for host in hosts] + [port.to_bytes(2, "big") for port in ports])
    return b"".join((_SIGNATURE, _PROXY, kind, len(body).to_bytes(2, "big"), body))


def _parsed(host: str) -> Ip:
    return unmapped_ip(ipaddress.ip_address(host.partition("%")[0]))


def _mapped(address: Ip) -> ipaddress.IPv6Address:
    return ipaddress.IPv6Address(bytes(10) + b"\xff\xff" + address.packed)


def _name(address: Ip) -> str:
    """Version 1 has hexadecimal groups only; Python writes mapped addresses with dots."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is None:
        return str(address)
    packed = mapped.packed
    return f"::ffff:{int.from_bytes(packed[:2], 'big'):x}:{int.from_bytes(packed[2:], 'big'):x}"
