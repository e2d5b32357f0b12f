from __future__ import annotations

import random
import struct
from itertools import pairwise

import pytest

from mtt.wire.dns import (
    MAX_ADDRESSES,
    MAX_ALIASES,
    MAX_POINTERS,
    MAX_RECORDS,
    TYPE_A,
    TYPE_AAAA,
    DnsError,
    RcodeError,
    build_query,
    encode_name,
    parse_response,
)
from tests.net.fake_dns import QNAME, Record, address, alias, reply, wire_name

QUERY = build_query(0x1234, "www.example.com", TYPE_A)
QUERY6 = build_query(0x1234, "www.example.com", TYPE_AAAA)


def test_query_bytes():
    header, name, type_and_class = "1234 0100 0001 0000 0000 0000", QUERY[12:-4], "0001 0001"
    assert name == b"\3www\7example\3com\0"
    assert bytes.fromhex(header) + name + bytes.fromhex(type_and_class) == QUERY
    assert QUERY6[-4:] == b"\0\x1c\0\1"


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("a", b"\1a\0"),
        ("example.com.", b"\7example\3com\0"),
        ("bücher.example", b"\x0dxn--bcher-kva\7example\0"),
        ("_dmarc.Example", b"\6_dmarc\7Example\0"),
        ("x" * 63 + ".y", b"\x3f" + b"x" * 63 + b"\1y\0"),
        (".".join(["a" * 63] * 3 + ["b" * 61]), None),  # 253 characters, the longest
    ],
)
def test_names(name, wire):
    encoded = encode_name(name)
    assert len(encoded) <= 255
    if wire is not None:
        assert encoded == wire


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a..b",
        ".a",
        "x" * 64,
        ".".join(["a" * 63] * 4),
        "a b",
        "a\0b",
        "a\n",
        "ü" * 70,
        "\ud800",
        "x" * 100_000,
        "é" * 100_000,
    ],
)
def test_names_that_dns_cannot_carry(name):
    with pytest.raises(ValueError):
        build_query(1, name, TYPE_A)


def test_typical_answer():
    """Written out byte by byte: names compressed in the usual way, two addresses."""
    query = build_query(0xABCD, "dns.google", TYPE_A)
    data = bytes.fromhex(
        "abcd 8180 0001 0002 0000 0000 03646e73 06676f6f676c65 00 0001 0001"
        "c00c 0001 0001 00000384 0004 08080808  c00c 0001 0001 00000384 0004 08080404"
    )
    assert parse_response(query, data) == (("8.8.8.8", "8.8.4.4"), 900, False)


def test_ipv6_answer_and_smallest_ttl():
    data = reply(QUERY6, address("2001:db8::1", 300), address("2001:db8::2", 20))
    assert parse_response(QUERY6, data) == (("2001:db8::1", "2001:db8::2"), 20, False)


def test_cname_is_followed_in_any_order_of_records():
    records = [
        address("192.0.2.7", 50, wire_name("c.example")),
        alias("c.example", 30, wire_name("b.example")),
        address("192.0.2.66", 1, wire_name("stranger.example")),
        alias("b.example", 40),
    ]
    assert parse_response(QUERY, reply(QUERY, *records)) == (("192.0.2.7",), 30, False)


@pytest.mark.parametrize("last", [61, 62])
def test_the_longest_name_in_an_answer(last):
    name = ".".join(["a" * 63] * 3 + ["b" * last])  # 255 bytes on the wire with 61
    records = [alias(name), address("192.0.2.7", owner=wire_name(name))]
    if last == 61:
        assert parse_response(QUERY, reply(QUERY, *records))[0] == ("192.0.2.7",)
    else:
        with pytest.raises(DnsError):
            parse_response(QUERY, reply(QUERY, *records))


def test_a_label_in_an_answer_has_at_most_63_bytes():
    with pytest.raises(DnsError):
        parse_response(QUERY, reply(QUERY, address("192.0.2.7", owner=wire_name("a" * 64))))


def test_names_compare_without_case():
    data = reply(QUERY, address("192.0.2.7", 50, wire_name("WWW.Example.COM")))
    data = data.replace(b"\3www\7example", b"\3wWw\7eXample", 1)
    assert parse_response(QUERY, data)[0] == ("192.0.2.7",)


def test_records_of_other_names_and_types_are_ignored():
    other_class = list(reply(QUERY, address("192.0.2.7")))
    other_class[-11] = 3  # CHAOS
    assert parse_response(QUERY, bytes(other_class)) == ((), 0, False)
    records = address("2001:db8::1"), address("192.0.2.9", owner=wire_name("example.com"))
    assert parse_response(QUERY, reply(QUERY, *records)) == ((), 0, False)


def test_alias_without_address_is_no_address():
    assert parse_response(QUERY, reply(QUERY, alias("b.example"))) == ((), 0, False)


def test_ttl_with_the_top_bit_is_zero():
    assert parse_response(QUERY, reply(QUERY, address("192.0.2.1", 1 << 31)))[1] == 0


def test_truncated_answer_says_only_that():
    data = reply(QUERY, address("192.0.2.1"), truncated=True)
    assert parse_response(QUERY, data) == ((), 0, True)
    assert parse_response(QUERY, data[:-3]) == ((), 0, True)


@pytest.mark.parametrize(
    ("rcode", "words"), [(2, "failed"), (3, "no such name"), (5, "refuses"), (11, "code 11")]
)
def test_error_codes(rcode, words):
    with pytest.raises(RcodeError, match=words) as caught:
        parse_response(QUERY, reply(QUERY, rcode=rcode))
    assert caught.value.rcode == rcode


def test_answers_to_another_query_are_refused():
    good = reply(QUERY, address("192.0.2.1"))
    for bad in (
        b"\x12\x35" + good[2:],  # another id
        QUERY,  # no response but a query
        good[:2] + b"\xa9\x80" + good[4:],  # another opcode
        reply(build_query(0x1234, "www.example.org", TYPE_A), address("192.0.2.1")),
        reply(QUERY6, address("192.0.2.1")),
        good[:4] + b"\0\0" + good[6:],  # no question
        reply(build_query(0x1234, "www.example.org", TYPE_A), rcode=3),
    ):
        with pytest.raises(DnsError, match=r"another question|this query") as caught:
            parse_response(QUERY, bad)
        assert not isinstance(caught.value, RcodeError)


def pointer(offset: int) -> bytes:
    return struct.pack("!H", 0xC000 | offset)


END = len(QUERY)  # where the first record of an answer begins


@pytest.mark.parametrize(
    "record",
    [
        (pointer(END), 1, 1, b"\0" * 4),  # to itself
        (pointer(END + 2), 1, 1, b"\0" * 4),  # forward
        (b"\1a" + pointer(END), 1, 1, b"\0" * 4),  # a loop with a label in it
        (pointer(0x3FFF), 1, 1, b"\0" * 4),  # out of the message
        (b"\x40abc", 1, 1, b"\0" * 4),  # the label type 01 is reserved
        (b"\x80", 1, 1, b"\0" * 4),
        ((b"\x3f" + b"x" * 63) * 4 + b"\0", 1, 1, b"\0" * 4),  # 257 octets
        (QNAME, 1, 1, b"\0" * 5),  # no IPv4 address
        (QNAME, 5, 1, wire_name("b.example") + b"x"),
        (QNAME, 5, 1, pointer(END)[:1]),
    ],
)
def test_malformed_records(record: Record):
    with pytest.raises(DnsError):
        parse_response(QUERY, reply(QUERY, record))


def test_chain_of_pointers_is_bounded():
    """Each pointer leads back, so it would end; but a hostile answer repeats it many times."""

    def answer(length: int) -> bytes:
        text = END + 12  # where the data of the first record begins
        steps = [12, *(text + 2 * i for i in range(length - 2))]
        txt = QNAME, 16, 60, b"".join(map(pointer, steps))
        return reply(QUERY, txt, address("192.0.2.1", owner=pointer(text + 2 * (length - 2))))

    assert parse_response(QUERY, answer(MAX_POINTERS))[0] == ("192.0.2.1",)
    with pytest.raises(DnsError, match="pointer"):
        parse_response(QUERY, answer(MAX_POINTERS + 1))


def test_chain_of_cnames_ends_or_fails():
    def chain(length: int) -> list[Record]:
        names = ["www.example.com"] + [f"n{i}.example" for i in range(length)]
        links = [alias(target, owner=wire_name(name)) for name, target in pairwise(names)]
        return [*links, address("192.0.2.1", owner=wire_name(names[-1]))]

    assert parse_response(QUERY, reply(QUERY, *chain(MAX_ALIASES)))[0] == ("192.0.2.1",)
    for records in (
        chain(MAX_ALIASES + 1),
        [alias("www.example.com")],
        [alias("b.example"), alias("www.example.com", owner=wire_name("b.example"))],
    ):
        with pytest.raises(DnsError, match="does not end"):
            parse_response(QUERY, reply(QUERY, *records))


def test_huge_answers_are_cut():
    many = [address(f"10.0.{i // 256}.{i % 256}") for i in range(MAX_RECORDS + 100)]
    assert len(parse_response(QUERY, reply(QUERY, *many))[0]) == MAX_ADDRESSES
    late = [address("2001:db8::1")] * MAX_RECORDS + [address("192.0.2.1")]
    assert parse_response(QUERY, reply(QUERY, *late)) == ((), 0, False)


def test_every_prefix_is_malformed():
    data = reply(QUERY, alias("b.example"), address("192.0.2.1", owner=wire_name("b.example")))
    assert parse_response(QUERY, data)[0] == ("192.0.2.1",)
    for size in range(len(data)):
        with pytest.raises(DnsError):
            parse_response(QUERY, data[:size])


def test_anything_after_the_answers_is_ignored():
    data = reply(QUERY, address("192.0.2.1")) + b"\xff" * 40
    assert parse_response(QUERY, data)[0] == ("192.0.2.1",)


def test_fuzz_gives_an_answer_or_dns_error():
    rng = random.Random(6)
    base = reply(
        QUERY, alias("b.example"), address("192.0.2.1", owner=wire_name("b.example")), alias("c.d")
    )
    outcomes = set()
    for _ in range(20_000):
        data = bytearray(base)
        for _ in range(rng.randrange(1, 6)):
            # Mostly behind the question: before it nearly each change ends at once.
            at = rng.randrange(END, len(data)) if rng.random() < 0.95 else rng.randrange(END)
            data[at] = rng.choice((rng.randrange(256), 0xC0, 0x0C, 0))
        if rng.random() < 0.2:
            data += rng.randbytes(rng.randrange(50))
        try:
            addresses, ttl, truncated = parse_response(QUERY, bytes(data))
        except DnsError as error:
            outcomes.add(type(error))
        else:
            assert 0 <= ttl < 1 << 31
            assert all(text.count(".") == 3 for text in addresses)
            outcomes.add(truncated)
    assert outcomes == {DnsError, RcodeError, True, False}


def test_fuzz_of_whole_messages():
    rng = random.Random(7)
    for _ in range(5_000):
        data = QUERY[:2] + b"\x81\x80\0\1\xff\xff\0\0\0\0" + QUERY[12:]
        data += rng.randbytes(rng.randrange(300))
        try:
            parse_response(QUERY, data)
        except DnsError:
            continue
