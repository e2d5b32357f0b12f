"""The header of the PROXY protocol, against the examples and tables of its specification."""

from __future__ import annotations

import pytest

from mtt.wire.proxy_protocol import (
    V1,
    V2,
    VERSIONS,
    Address,
    Header,
    HeaderError,
    encode,
    may_begin,
    parse,
)

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


# Reading.

USER, OWN = ("192.0.2.7", 56324), ("198.51.100.1", 443)
USER6, OWN6 = ("2001:db8::7", 56324), ("2001:db8::1", 443)
HEADERS = [encode(version, *ends) for version in VERSIONS for ends in ((USER, OWN), (USER6, OWN6))]
LOCAL = SIGNATURE + bytes.fromhex("20 00 00 00")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("ends", [(USER, OWN), (USER6, OWN6), (None, None)])
def test_what_is_written_is_read(version: str, ends: tuple[Address | None, Address | None]) -> None:
    data = encode(version, *ends)
    assert parse(data + b"\x16\x03\x01") == Header(*ends, len(data))


@pytest.mark.parametrize(
    "data, source",
    [
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:: ffff:: 65535 65535\r\n", None),
        (b"PROXY UNKNOWN anything else\r\n", None),
        (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 0 65535\r\n", ("192.0.2.7", 0)),
        # LOCAL, with and without addresses, which must be ignored.
        (LOCAL, None),
        (SIGNATURE + bytes.fromhex("20 11 000c c0000207 c6336401 dc04 01bb"), None),
        # Datagrams, unix sockets, and a family that is not defined.
        (SIGNATURE + bytes.fromhex("21 12 000c c0000207 c6336401 dc04 01bb"), None),
        (SIGNATURE + bytes.fromhex("21 31 00d8") + bytes(216), None),
        (SIGNATURE + bytes.fromhex("21 41 0000"), None),
        # Values behind the addresses.
        (SIGNATURE + bytes.fromhex("21 11 0013 c0000207 c6336401 dc04 01bb 04 0004") + bytes(4),
         USER),
        (SIGNATURE + bytes.fromhex("21 11 0ff0 c0000207 c6336401 dc04 01bb") + bytes(4068), USER),
    ],
)  # fmt: skip
def test_headers_of_other_programs(data: bytes, source: Address | None) -> None:
    header = parse(data + b"more")
    assert header is not None
    assert (header.source, header.size) == (source, len(data))


@pytest.mark.parametrize("data", [*HEADERS, LOCAL, b"PROXY UNKNOWN\r\n"])
def test_every_beginning_of_a_header_is_incomplete(data: bytes) -> None:
    for size in range(len(data)):
        assert may_begin(data[:size])
        assert parse(data[:size]) is None


@pytest.mark.parametrize(
    "data, text",
    [
        (b"\x16\x03\x01\x02\x00", "no PROXY header"),
        (b"GET / HTTP/1.1\r\n", "no PROXY header"),
        (b"PROPFIND / HTTP/1.1\r\n", "no PROXY header"),
        (b"\r\nGET / HTTP/1.1\r\n", "no PROXY header"),
        (b"PROXY " + b"x" * 101, "more than 107 bytes"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 5 22\n" + b"x" * 90, "more than 107 bytes"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 5\r\n", "not of version 1"),
        (b"PROXY  TCP4 192.0.2.7 198.51.100.1 5 22\r\n", "not of version 1"),
        (b"PROXY UDP4 192.0.2.7 198.51.100.1 5 22\r\n", "not of version 1"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 -5 22\r\n", "not of version 1"),
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 5 65536\r\n", "invalid port"),
        (b"PROXY TCP4 192.0.2.256 198.51.100.1 5 22\r\n", "invalid address"),
        (b"PROXY TCP6 192.0.2.7 198.51.100.1 5 22\r\n", "other IP version"),
        (SIGNATURE + bytes.fromhex("11 11 0000"), "version or command, 0x11"),
        (SIGNATURE + bytes.fromhex("22 11 0000"), "version or command, 0x22"),
        (SIGNATURE + bytes.fromhex("21 11 000b") + bytes(11), "too short"),
        (SIGNATURE + bytes.fromhex("21 21 0023") + bytes(35), "too short"),
        (SIGNATURE + bytes.fromhex("21 11 0ff1"), "more than 4096 bytes"),
    ],
)  # fmt: skip
def test_invalid_headers(data: bytes, text: str) -> None:
    with pytest.raises(HeaderError, match=text):
        parse(data)
