"""The header of the PROXY protocol, against the examples and tables of its specification."""

from __future__ import annotations

import pytest

from mtt.wire.proxy_protocol import V1, V2, encode

LONGEST = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
SIGNATURE = bytes.fromhex("0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A")


@pytest.mark.parametrize(
    "source, destination, header",
    [
        # The example of section 2.1, and the longest lines of each kind.
        (("192.168.0.1", 56324), ("192.168.0.11", 443),
         b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"),
        (("255.255.255.255", 65535), ("255.255.255.255", 65535),
         b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n"),
        ((LONGEST, 65535), (LONGEST, 65535),
         f"PROXY TCP6 {LONGEST} {LONGEST} 65535 65535\r\n".encode()),
        (None, ("192.168.0.11", 443), b"PROXY UNKNOWN\r\n"),
        # Addresses as sockets report them.
        (("::ffff:192.0.2.7", 5), ("::ffff:198.51.100.1", 22),
         b"PROXY TCP4 192.0.2.7 198.51.100.1 5 22\r\n"),
        (("fe80::1%eth0", 5), ("fe80::2%eth0", 22), b"PROXY TCP6 fe80::1 fe80::2 5 22\r\n"),
        # Both families: no dots in an IPv6 address of version 1.
        (("192.0.2.7", 5), ("2001:db8::1", 22),
         b"PROXY TCP6 ::ffff:c000:207 2001:db8::1 5 22\r\n"),
    ],
)  # fmt: skip
def test_version_1(
    source: tuple[str, int] | None, destination: tuple[str, int], header: bytes
) -> None:
    assert encode(V1, source, destination) == header
    assert len(header) <= 107  # the buffer that the specification recommends, less its NUL


@pytest.mark.parametrize(
    "source, destination, rest",
    [
        (("192.168.0.1", 56324), ("192.168.0.11", 443),
         "21 11 00 0C  C0 A8 00 01  C0 A8 00 0B  DC 04  01 BB"),
        (("2001:db8::7", 56324), ("2001:db8::1", 443),
         "21210024 20010DB8000000000000000000000007 20010DB8000000000000000000000001 DC04 01BB"),
        (("192.0.2.7", 5), ("2001:db8::1", 22),
         "21210024 00000000000000000000FFFFC0000207 20010DB8000000000000000000000001 0005 0016"),
        (None, None, "21 00 00 00"),
    ],
)  # fmt: skip
def test_version_2(
    source: tuple[str, int] | None, destination: tuple[str, int] | None, rest: str
) -> None:
    assert encode(V2, source, destination) == SIGNATURE + bytes.fromhex(rest)


@pytest.mark.parametrize("version", [V1, V2])
def test_host_that_is_not_an_address_is_an_error(version: str) -> None:
    with pytest.raises(ValueError):
        encode(version, ("user.example", 1), ("192.0.2.1", 2))
