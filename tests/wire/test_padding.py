"""Padding schemes: the grammar, the limits, the sizes, and what becomes of packets."""

from __future__ import annotations

import hashlib
import random

import pytest

from mtt.wire.anytls import HEADER_SIZE, PSH, WASTE, Decoder, frame
from mtt.wire.padding import (
    CHECK,
    DEFAULT,
    MAX_LINES,
    MAX_PACKET,
    MAX_PADDING0,
    MAX_SCHEME,
    MAX_SEGMENTS,
    MAX_SIZE,
    Padder,
    Scheme,
    SchemeError,
)


def lowest(low: int, high: int) -> int:
    assert low < high
    return low


def highest(low: int, high: int) -> int:
    assert low < high
    return high - 1


def sizes(text: str, packet: int) -> list[int]:
    return Scheme.parse(text.encode()).generate(packet, lowest)


# The grammar.


def test_the_default_scheme() -> None:
    assert DEFAULT.md5 == "75cff2ad89aadf5e257059ee571ebe11"
    assert len(DEFAULT.raw) == 137
    assert DEFAULT.stop == 8
    assert DEFAULT.padding0(lowest) == 30
    assert [DEFAULT.generate(packet, lowest) for packet in range(9)] == [
        [30], [100], [400, CHECK, 500, CHECK, 500, CHECK, 500, CHECK, 500], [9, 500],
        [500], [500], [500], [500], [],
    ]  # fmt: skip
    assert DEFAULT.generate(2, highest) == [499, CHECK, 999, CHECK, 999, CHECK, 999, CHECK, 999]


def test_the_md5_is_over_the_exact_bytes() -> None:
    scheme = Scheme.parse(DEFAULT.raw + b"\n", strict=True)
    assert scheme.md5 == hashlib.md5(DEFAULT.raw + b"\n").hexdigest() != DEFAULT.md5
    assert scheme.packets == DEFAULT.packets
    assert scheme.raw == DEFAULT.raw + b"\n"


def test_the_upper_end_is_not_in_the_range() -> None:
    rng = random.Random(61)
    scheme = Scheme.parse(b"stop=2\n1=10-13")
    drawn = {scheme.generate(1, rng.randrange)[0] for _ in range(200)}
    assert drawn == {10, 11, 12}


SEGMENTS = [
    ("7-7", [7]),
    ("400-100", [100]),
    ("10-11", [10]),
    ("c", [CHECK]),
    ("c,c,5-5", [CHECK, CHECK, 5]),
    ("+5-5", [5]),
    ("007-007", [7]),
    # What the reference skips.
    ("", []),
    ("5", []),
    ("0-10", []),
    ("10-0", []),
    ("-5-5", []),
    ("5--5", []),
    ("1-2-3", []),
    ("x-y", []),
    ("5-", []),
    (" 5-5", []),
    ("5-5 ", []),
    ("C", []),
    ("c ,6-6", [6]),
    ("0x5-5", []),
    ("1_0-1_0", []),
    ("\u0665-\u0665", []),
    ("5-9223372036854775808", []),
    ("0-10,x-y,25-25", [25]),
]


@pytest.mark.parametrize(("value", "expected"), SEGMENTS)
def test_segments(value: str, expected: list[int]) -> None:
    assert sizes(f"stop=8\n3={value}", 3) == expected
    if not expected or "x-y" in value or "C" in value or " " in value:
        with pytest.raises(SchemeError, match=r"^line 2: .* is neither a size .* nor c$"):
            Scheme.parse(f"stop=8\n3={value}".encode(), strict=True)
    else:
        Scheme.parse(f"stop=8\n3={value}".encode(), strict=True)


@pytest.mark.parametrize("stop", ["0", "1", "8", "+8", "008", "4294967295"])
def test_stop(stop: str) -> None:
    assert Scheme.parse(f"stop={stop}".encode()).stop == int(stop)


def test_lines() -> None:
    assert sizes("3=5-5\n\nstop=8\n3=6-6", 3) == [6]  # the last one wins
    assert sizes("stop=8\n03=5-5", 3) == []
    assert sizes("stop=8\n3=5-5\r\n4=6-6", 3) == []
    assert sizes("stop=8\n 3=5-5", 3) == []
    assert sizes("stop=x\nstop=8\n3=5-5\nwords\n\xff=\xff\njitter=0-10", 3) == [5]
    assert Scheme.parse(b"stop=8").padding0(lowest) == 0
    assert Scheme.parse(b"stop=8\n0=").padding0(lowest) == 0
    assert Scheme.parse(b"stop=8\n0=0-9,7-7,8-8").padding0(lowest) == 7


def test_scheme_files_may_have_comments() -> None:
    text = b"# sizes of packets\n#3=4-4\n\nstop=8\n3=5-5\n"
    assert Scheme.parse(text, strict=True).packets == {3: ((5, 5),)}
    assert Scheme.parse(text).packets == {3: ((5, 5),)}


STRICT = [
    (b"stop=8\nwords", "line 2 is not key=value: 'words'"),
    (b"stop=8\n \n3=5-5", "line 2 is not key=value: ' '"),
    (b"stop=8\njitter=0-10", "line 2: 'jitter' is neither stop nor the number of a packet"),
    (b"stop=8\n03=5-5", "line 2: '03' is neither"),
    (b"stop=8\n-3=5-5", "line 2: '-3' is neither"),
    (b"stop=8\n\xd9\xa5=5-5", "line 2: .* is neither"),
    (b"stop=8\n3=5-5\n3=6-6", "line 3: 3 is in line 2 already"),
    (b"stop=8\nstop=9", "line 2: stop is in line 1 already"),
    (b"stop=8\r\n3=5-5\r\n", "line 1 ends with CR and LF: save the file with LF alone"),
    (b"stop=8\n" + b"x" * 1000, "line 2 is not key=value: 'x{37}\\.\\.\\.'"),
]


@pytest.mark.parametrize(("text", "words"), STRICT)
def test_mistakes_in_scheme_files(text: bytes, words: str) -> None:
    with pytest.raises(SchemeError, match=words):
        Scheme.parse(text, strict=True)


BROKEN = [
    ("empty", b"", "needs a line like stop=8"),
    ("no stop", b"3=5-5", "needs a line like stop=8"),
    ("stop is no number", b"3=5-5\nstop=x", "line 2: stop is a number.* not 'x'"),
    ("stop with a CR", b"stop=8\r\n3=5-5", r"line 1: stop is a number.* not '8\\r'"),
    ("stop is empty", b"stop=", "line 1: stop is a number"),
    ("stop is negative", b"stop=-1", "line 1: stop is a number"),
    ("stop is huge", b"stop=4294967296", "line 1: stop is a number"),
    ("stop has many digits", b"stop=" + b"9" * 9000, "line 1: stop is a number"),
    ("a size above a record's", b"stop=8\n3=16378-16378", "line 2: .*too large; 16377 bytes"),
    ("one of a range", b"stop=8\n3=5-16379", "line 2: '5-16379' is too large; 16377 bytes"),
    ("one that breaks the length", b"stop=8\n\n3=c,65536-65536", "line 3: .*too large"),
    ("one that cannot be allocated", b"stop=8\n3=1-9223372036854775807", "line 2: .*too large"),
    ("packet 0 begins with c", b"stop=8\n0=c,30-30", "line 2: packet 0, the preamble"),
    ("packet 0 begins with c in effect", b"stop=8\n0=0-9,c", "line 2: packet 0, the preamble"),
    ("packet 0 beyond a read", b"stop=8\n0=16351-16351", "line 2: .*too large; 16350 bytes"),
    ("a long packet", b"stop=8\n1=" + b",".join([b"16000-16000"] * 5), "line 2 makes up to 80000"),
    ("segments", b"stop=8\n1=" + b"c," * MAX_SEGMENTS + b"c", "line 2 has 129 segments; 128"),
    ("lines", b"stop=8" + b"\n" * MAX_LINES, "at most 256 lines, not 257"),
    ("bytes", b"stop=8\n" + b"x" * MAX_SCHEME, "at most 16384 bytes, not 16391"),
]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(("text", "words"), [row[1:] for row in BROKEN],
                         ids=[row[0] for row in BROKEN])  # fmt: skip
def test_harmful_schemes_are_refused(text: bytes, words: str, strict: bool) -> None:
    if strict and (b"\r" in text or b"0=0-9" in text):
        words = "line"  # the mistake is named earlier
    with pytest.raises(SchemeError, match=words) as caught:
        Scheme.parse(text, strict=strict)
    assert len(str(caught.value)) < 150
    assert str(caught.value).isprintable()


def test_the_limits_themselves_are_allowed() -> None:
    assert sizes(f"stop=8\n3={MAX_SIZE}-{MAX_SIZE}", 3) == [MAX_SIZE]
    assert Scheme.parse(f"stop=8\n3=1-{MAX_SIZE + 1}".encode()).generate(3, highest) == [MAX_SIZE]
    assert sizes(f"stop=8\n0={MAX_PADDING0}-{MAX_PADDING0}", 0) == [MAX_PADDING0]
    line = f"{MAX_SIZE}-{MAX_SIZE}," * 4
    assert sum(sizes(f"stop=8\n3={line}27-27", 3)) == MAX_PACKET
    assert len(sizes("stop=8\n3=" + ",".join("c" * MAX_SEGMENTS), 3)) == MAX_SEGMENTS


# What becomes of packets. Sizes of records by the reference; 15 is a PSH frame with 8 bytes.


@pytest.mark.parametrize(
    ("line", "size", "records"),
    [
        ("", 15, [15]),
        ("15-15", 15, [15]),
        ("16-16", 15, [15]),  # no room for the header of a waste frame
        ("22-22", 15, [15]),
        ("23-23", 15, [23]),
        ("300-300", 15, [300]),
        ("14-14", 15, [14, 1]),
        ("5-5,5-5", 15, [5, 5, 5]),
        ("5-5,5-5,5-5,50-50", 15, [5, 5, 5, 57]),
        ("5-5,5-5,5-5,c,50-50", 15, [5, 5, 5]),
        ("c,30-30,c,99-99", 15, [30]),
        ("10-10,40-40,12-12", 15, [10, 40, 19]),
        ("15-15,1-1", 15, [15, 8]),
        ("c,c", 15, [15]),
        ("9-9,500-501", 5000, [9, 500, 4491]),
    ],
)
def test_records_of_a_packet(line: str, size: int, records: list[int]) -> None:
    scheme = Scheme.parse(f"stop=8\n1={line}".encode())
    data = frame(PSH, 1, random.Random(size).randbytes(size - HEADER_SIZE))
    for packet in (data, memoryview(data)):
        written = Padder(scheme, lowest).write(packet)
        assert [len(record) for record in written] == records
        assert unpadded(b"".join(written)) == data


def unpadded(stream: bytes) -> bytes:
    """`stream` without waste frames, which must be zeros on stream 0."""
    out = b""
    while stream:
        size = HEADER_SIZE + int.from_bytes(stream[5:7], "big")
        assert len(stream) >= size
        if stream[0] == WASTE:
            assert stream[1:5] == bytes(4)
            assert stream[HEADER_SIZE:size] == bytes(size - HEADER_SIZE)
        else:
            out += stream[:size]
        stream = stream[size:]
    return out


def test_padding_stays_ended() -> None:
    data = frame(PSH, 1, b"packet")
    padder = Padder(Scheme.parse(b"stop=3\n1=50-50\n2=60-60\n3=70-70"), lowest)
    assert [list(map(len, padder.write(data))) for _ in range(2)] == [[50], [60]]
    assert padder.active
    assert padder.write(data) == [data]
    assert not padder.active
    padder.scheme = Scheme.parse(b"stop=9\n4=80-80\n5=80-80")
    assert padder.write(data) == [data]
    assert not padder.active


@pytest.mark.parametrize("stop", [0, 1])
def test_padding_may_end_before_it_begins(stop: int) -> None:
    padder = Padder(Scheme.parse(b"stop=%d\n1=50-50" % stop), lowest)
    assert padder.write(b"data") == [b"data"]
    assert not padder.active


def test_a_new_scheme_goes_on_with_the_count() -> None:
    data = frame(PSH, 1, b"packet")
    padder = Padder(DEFAULT, lowest)
    assert list(map(len, padder.write(data))) == [100]
    padder.scheme = Scheme.parse(b"stop=4\n1=9-9\n2=60-60\n3=10-10,20-20,100-100")
    assert list(map(len, padder.write(data))) == [60]
    assert list(map(len, padder.write(data))) == [10, 20, 107]
    assert padder.write(data) == [data]


def test_packets_without_a_line_count_as_well() -> None:
    data = frame(PSH, 1, b"packet")
    padder = Padder(Scheme.parse(b"stop=9\n3=50-50"), lowest)
    assert [sum(map(len, padder.write(data))) for _ in range(4)] == [13, 13, 50, 13]


# Noise.


def test_random_schemes_are_refused_or_preserve_the_data() -> None:
    rng = random.Random(62)
    read = refused = 0
    for _ in range(1500):
        lines = [f"stop={rng.choice((0, 3, 8, 8, 8, 'x', -1))}"]
        for packet in range(rng.randrange(6)):
            lines.append(f"{packet}=" + ",".join(segment(rng) for _ in range(rng.randrange(7))))
        text = bytearray("\n".join(lines).encode())
        for _ in range(rng.randrange(3)):
            text[rng.randrange(len(text))] = rng.choice(b"\n=-,c05\xff ")
        try:
            scheme = Scheme.parse(bytes(text))
        except SchemeError as error:
            assert str(error).isprintable()
            refused += 1
            continue
        read += 1
        assert 0 <= scheme.padding0(rng.randrange) <= MAX_PADDING0
        padder = Padder(scheme, rng.randrange)
        sent = b""
        stream = b""
        for _ in range(10):
            data = frame(PSH, 1, rng.randbytes(rng.choice((0, 1, 8, 500, 3000))))
            records = padder.write(data)
            assert all(records)
            assert len(records) <= MAX_SEGMENTS + 1
            # A scheme costs its own sizes at most, and a header for each record of waste.
            assert sum(map(len, records)) <= len(data) + MAX_PACKET + MAX_SEGMENTS * HEADER_SIZE
            sent += data
            stream += b"".join(records)
        assert unpadded(stream) == sent
        decoder = Decoder()
        decoder.feed(stream)
        assert decoder.at_boundary
    assert min(read, refused) > 300


def segment(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return "c"
    ends = [rng.choice((0, 1, 7, 8, 30, 100, 1000, 9000, 16377, 16378, 70000)) for _ in range(2)]
    if rng.random() < 0.7:
        ends = [min(end, 1000) for end in ends]
    return f"{ends[0]}-{ends[1]}"


def test_the_largest_scheme_there_may_be() -> None:
    most_lines = b"stop=8" + b"\n" * (MAX_LINES - 1)
    assert Scheme.parse(most_lines).raw == most_lines
    most_bytes = b"stop=8\n".ljust(MAX_SCHEME, b"x")
    assert Scheme.parse(most_bytes).raw == most_bytes
    with pytest.raises(SchemeError, match="at most 16384 bytes, not 16385"):
        Scheme.parse(most_bytes + b"x")
