"""Addresses of SOCKS5, AnyTLS and UDP over TCP: the format, what is refused, and noise."""

from __future__ import annotations

import random

import pytest

from mtt.wire.addresses import MAX_SIZE, SOCKS, UOT, AddressError, Types, decode, encode

GOOD = [
    (SOCKS, "127.0.0.1", 33255, "017f00000181e7"),
    (SOCKS, "localhost", 33255, "03096c6f63616c686f737481e7"),
    (SOCKS, "sp.v2.udp-over-tcp.arpa", 0, "031773702e76322e7564702d6f7665722d7463702e617270610000"),
    (SOCKS, "2001:db8::1", 443, "0420010db800000000000000000000000101bb"),
    (SOCKS, "bücher.example", 80, "030f62c3bc636865722e6578616d706c650050"),
    (UOT, "127.0.0.1", 36827, "007f0000018fdb"),
    (UOT, "localhost", 36827, "02096c6f63616c686f73748fdb"),
    (UOT, "::1", 65535, "0100000000000000000000000000000001ffff"),
]


@pytest.mark.parametrize(("types", "host", "port", "wire"), GOOD)
def test_encode_and_decode_round_trip(types: Types, host: str, port: int, wire: str) -> None:
    data = bytes.fromhex(wire)
    assert encode(host, port, types) == data
    assert decode(data, 0, types) == (host, port, len(data))
    assert decode(memoryview(data), 0, types) == (host, port, len(data))
    assert decode(b"xy" + data + b"trailing", 2, types) == (host, port, 2 + len(data))
    assert len(data) <= MAX_SIZE
    for size in range(len(data)):
        assert decode(data[:size], 0, types) is None


def test_the_longest_name() -> None:
    name = "a" * 255
    assert len(encode(name, 1)) == MAX_SIZE
    assert decode(encode(name, 1)) == (name, 1, MAX_SIZE)


SAME = [
    ("mapped", "0400000000000000000000ffff7f0000010050", "127.0.0.1"),
    ("name that is an IPv4 literal", b"\3\x09127.0.0.1\0\x50".hex(), "127.0.0.1"),
    ("name that is an IPv6 literal", b"\3\x0d2001:DB8:0::1\0\x50".hex(), "2001:db8::1"),
    ("name that is a mapped literal", b"\3\x10::ffff:127.0.0.1\0\x50".hex(), "127.0.0.1"),
    ("IPv6 literal in brackets", b"\3\x0d[2001:db8::1]\0\x50".hex(), "2001:db8::1"),
    ("mapped literal in brackets", b"\3\x12[::ffff:127.0.0.1]\0\x50".hex(), "127.0.0.1"),
    ("literal with a zone", b"\3\x0cfe80::1%eth0\0\x50".hex(), "fe80::1"),
]


@pytest.mark.parametrize(("wire", "host"), [row[1:] for row in SAME], ids=[row[0] for row in SAME])
def test_an_address_has_one_form(wire: str, host: str) -> None:
    data = bytes.fromhex(wire)
    assert decode(data) == (host, 80, len(data))


@pytest.mark.parametrize(
    ("host", "same"),
    [("::ffff:192.0.2.1", "192.0.2.1"), ("fe80::1%eth0", "fe80::1"), ("[::1]", "::1")],
)
def test_an_address_is_sent_in_one_form(host: str, same: str) -> None:
    assert encode(host, 80) == encode(same, 80)


REFUSED = [
    ("type 0", "0000000000", "unknown address type 0"),
    ("type 2", "02", "unknown address type 2"),
    ("type 255", "ff", "unknown address type 255"),
    ("empty name", "03000050", "empty"),
    ("not UTF-8", "0302fffe0050", "UTF-8"),
    ("a NUL", "030361006200" + "50", "control"),
    ("a line break", b"\3\3a\nb\0\x50".hex(), "control"),
    ("a space", b"\3\3a b\0\x50".hex(), "spaces"),
    ("a name in brackets", b"\3\3[a]\0\x50".hex(), "brackets"),
    ("IPv4 in brackets", b"\3\x0b[127.0.0.1]\0\x50".hex(), "brackets"),
    ("half a bracket", b"\3\4[::1\0\x50".hex(), "brackets"),
    ("no address in brackets", b"\3\2[]\0\x50".hex(), "brackets"),
]


@pytest.mark.parametrize(("wire", "words"), [row[1:] for row in REFUSED],
                         ids=[row[0] for row in REFUSED])  # fmt: skip
def test_invalid_bytes_are_refused(wire: str, words: str) -> None:
    with pytest.raises(AddressError, match=words):
        decode(bytes.fromhex(wire))


def test_an_empty_name_where_the_address_does_not_matter() -> None:
    assert decode(bytes.fromhex("03000050"), allow_empty=True) == ("", 80, 4)


@pytest.mark.parametrize(
    ("host", "port", "words"),
    [
        ("", 80, "1 to 255"),
        ("a" * 256, 80, "1 to 255"),
        ("ü" * 128, 80, "1 to 255"),
        ("a b", 80, "spaces"),
        ("[a]", 80, "brackets"),
        ("a\r\nb", 80, "control"),
        ("a\udcff", 80, "not valid Unicode"),
        ("a", -1, "-1 is not a port"),
        ("a", 65536, "65536 is not a port"),
    ],
)
def test_invalid_addresses_are_not_encoded(host: str, port: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        encode(host, port)


def test_noise_gives_an_address_or_address_error() -> None:
    rng = random.Random(31)
    found = missing = refused = 0
    for _ in range(4000):
        types = rng.choice((SOCKS, UOT))
        noise = bytearray(rng.randbytes(rng.randrange(0, 30)))
        if noise and rng.random() < 0.9:
            noise[0] = rng.choice(types)
        if len(noise) > 1 and rng.random() < 0.5:
            noise[1] = rng.randrange(12)
            noise[2:12] = bytes(rng.choice(b"abc.1") for _ in noise[2:12])
        try:
            address = decode(bytes(noise), 0, types)
        except AddressError as error:
            assert str(error)
            refused += 1
            continue
        if address is None:
            assert len(noise) < MAX_SIZE
            missing += 1
            continue
        host, port, end = address
        assert 0 < end <= len(noise)
        # What was understood can be said again, and means the same.
        again = encode(host, port, types)
        assert decode(again, 0, types) == (host, port, len(again))
        found += 1
    assert min(found, missing, refused) > 300
