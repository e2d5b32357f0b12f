"""The header of the PROXY protocol, versions 1 and 2, which tells a target who its user is.

    v1    PROXY TCP4 192.0.2.7 198.51.100.1 56324 443 CR LF
    v2    12 bytes signature | u8 0x21 | u8 family, protocol | u16 size | addresses | u16 ports

Specification: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt
"""

from __future__ import annotations

import ipaddress

V1, V2 = "v1", "v2"
VERSIONS = (V1, V2)

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_PROXY = b"\x21"  # version 2, a proxied connection
_TCP4, _TCP6, _UNSPECIFIED = b"\x11", b"\x21", b"\0"

Address = tuple[str, int]


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


_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def _encode_v2(hosts: list[_Ip], ports: list[int]) -> bytes:
    kind = _UNSPECIFIED if not hosts else _TCP4 if hosts[0].version == 4 else _TCP6
    body = b"".join([host.packed for host in hosts] + [port.to_bytes(2, "big") for port in ports])
    return b"".join((_SIGNATURE, _PROXY, kind, len(body).to_bytes(2, "big"), body))


def _parsed(host: str) -> _Ip:
    """Sockets of both IP versions report IPv4 peers as IPv4-mapped (RFC 4291, 2.5.5.2)."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def _mapped(address: _Ip) -> ipaddress.IPv6Address:
    return ipaddress.IPv6Address(bytes(10) + b"\xff\xff" + address.packed)


def _name(address: _Ip) -> str:
    """Version 1 has hexadecimal groups only; Python writes mapped addresses with dots."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is None:
        return str(address)
    packed = mapped.packed
    return f"::ffff:{int.from_bytes(packed[:2], 'big'):x}:{int.from_bytes(packed[2:], 'big'):x}"
