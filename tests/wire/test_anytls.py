"""AnyTLS frames, settings and preambles: the format, every way to cut them, and noise."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
from collections.abc import Iterable

import pytest

from mtt.wire.anytls import (
    ALERT,
    FIN,
    HEADER_SIZE,
    HEART_REQUEST,
    HEART_RESPONSE,
    MAX_LENGTH,
    MAX_PAYLOAD,
    MAX_SETTINGS,
    PSH,
    SERVER_SETTINGS,
    SETTINGS,
    SYN,
    SYNACK,
    UPDATE_PADDING,
    WASTE,
    Decoder,
    PreambleReader,
    client_settings,
    data_frames,
    encode_settings,
    frame,
    integer,
    parse_settings,
    password_hash,
    preamble,
    server_settings,
    shown,
    version_of,
)
from tests.wire.pieces import bytewise, joined, split

WHOLE = [SETTINGS, ALERT, UPDATE_PADDING, SYNACK, SERVER_SETTINGS]
BARE = [SYN, FIN, HEART_REQUEST, HEART_RESPONSE]

Event = tuple[int, int, bytes]


def decode(pieces: Iterable[bytes], whole: int = 0) -> list[Event]:
    decoder = Decoder(whole=whole)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    assert decoder.at_boundary
    return joined(events, PSH)


# The format.


def test_the_header_is_big_endian() -> None:
    assert frame(SYN, 2).hex() == "01000000020000"
    assert frame(PSH, 3, b"hi").hex() == "020000000300026869"
    assert frame(HEART_RESPONSE, 0xFFFFFFFE).hex() == "09fffffffe0000"
    assert frame(SERVER_SETTINGS, 0, memoryview(b"v=2")).hex() == "0a000000000003763d32"
    assert HEADER_SIZE == 7


def test_a_frame_has_a_largest_size() -> None:
    data = bytes(MAX_LENGTH)
    for command in (PSH, UPDATE_PADDING):
        assert decode([frame(command, 1, data)]) == [(command, 1, data)]
        with pytest.raises(ValueError, match="65535 bytes, not 65536"):
            frame(command, 1, data + b"x")


@pytest.mark.parametrize("size", [1, MAX_PAYLOAD - 1, MAX_PAYLOAD])
@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_data_that_fits_into_one_frame(size: int, kind: type) -> None:
    data = random.Random(size).randbytes(size)
    assert data_frames(9, kind(data)) == frame(PSH, 9, data)


@pytest.mark.parametrize("most", [MAX_PAYLOAD, MAX_LENGTH])
@pytest.mark.parametrize("more", [1, MAX_PAYLOAD, MAX_PAYLOAD + 1, 200_000])
def test_data_that_needs_several_frames(more: int, most: int) -> None:
    size = most + more
    data = random.Random(size).randbytes(size)
    frames = data_frames(9, memoryview(data), most)
    assert decode([frames]) == [(PSH, 9, data)]
    sizes = [len(payload) for _, _, payload in Decoder().feed(frames)]
    assert max(sizes) == most
    assert len(frames) - size == HEADER_SIZE * -(-size // most)


def test_default_frame_size_is_that_of_the_reference() -> None:
    assert data_frames(9, bytes(MAX_LENGTH)) == data_frames(9, bytes(MAX_LENGTH), MAX_PAYLOAD)


def test_empty_frames_are_events() -> None:
    events = [(command, 4, b"") for command in (PSH, *WHOLE, *BARE)]
    stream = b"".join(frame(*event) for event in events)
    assert decode([stream]) == events
    assert decode(bytewise(stream)) == events


def test_waste_is_no_event() -> None:
    stream = (
        frame(WASTE, 0, bytes(300)) + frame(PSH, 1, b"a") + frame(WASTE, 7) + frame(PSH, 1, b"b")
    )
    assert Decoder().feed(stream) == [(PSH, 1, b"a"), (PSH, 1, b"b")]
    assert decode(bytewise(stream)) == [(PSH, 1, b"ab")]


def test_data_where_none_belongs_is_skipped() -> None:
    stream = b"".join(frame(command, 3, b"\2\0\0\0\1\0\5") for command in BARE)
    events = [(command, 3, b"") for command in BARE]
    assert decode([stream]) == events
    assert decode(bytewise(stream)) == events


@pytest.mark.parametrize("command", [11, 71, 255])
def test_unknown_commands_are_skipped_with_their_data(command: int) -> None:
    stream = frame(command, 9, bytes(500)) + frame(command, 0) + frame(FIN, 1)
    assert decode([stream]) == [(FIN, 1, b"")]
    assert decode(bytewise(stream)) == [(FIN, 1, b"")]


# Cutting.


def mixed_stream(rng: random.Random) -> tuple[bytes, list[Event]]:
    stream = b""
    events: list[Event] = []
    for _ in range(rng.randrange(1, 30)):
        stream_id = rng.choice((0, 1, 2, 0xFFFFFFFF))
        command = rng.choice((*range(12), PSH, PSH, PSH))
        payload = rng.randbytes(rng.choice((0, 1, 2, 9, 300, MAX_PAYLOAD, MAX_LENGTH)))
        if rng.random() < 0.5:
            payload = payload[:300]
        stream += frame(command, stream_id, payload)
        if command in (PSH, *WHOLE):
            events.append((command, stream_id, payload))
        elif command in BARE:
            events.append((command, stream_id, b""))
    return stream, joined(events, PSH)


def test_frames_may_be_cut_anywhere() -> None:
    rng = random.Random(41)
    short = 0
    for _ in range(80):
        stream, events = mixed_stream(rng)
        for whole in (0, 1, 300, MAX_LENGTH):
            assert decode([stream], whole) == events
            assert decode(split(stream, rng), whole) == events
            if len(stream) < 5000:
                short += 1
                assert decode(bytewise(stream), whole) == events
    assert short > 10


def test_small_frames_are_given_whole() -> None:
    for size in (1, 299, 300):
        data = frame(PSH, 3, b"d" * size) + frame(FIN, 3)
        decoder = Decoder(whole=300)
        events = [event for piece in bytewise(data) for event in decoder.feed(piece)]
        assert events == [(PSH, 3, b"d" * size), (FIN, 3, b"")]


def test_larger_frames_are_given_as_they_come() -> None:
    decoder = Decoder(whole=300)
    data = frame(PSH, 3, bytes(301))
    events = [event for piece in bytewise(data) for event in decoder.feed(piece)]
    assert events == [(PSH, 3, b"\0")] * 301


def test_a_released_frame_goes_on_in_pieces() -> None:
    data = frame(PSH, 3, b"abcdef") + frame(PSH, 3, b"ghi")
    decoder = Decoder(whole=300)
    assert decoder.feed(data[: HEADER_SIZE + 2]) == []
    assert decoder.held == 2
    assert decoder.release() == (3, b"ab")
    assert decoder.held == 0
    assert decoder.feed(data[HEADER_SIZE + 2 : HEADER_SIZE + 4]) == [(PSH, 3, b"cd")]
    assert decoder.feed(data[HEADER_SIZE + 4 : -1]) == [(PSH, 3, b"ef")]
    assert decoder.held == 2  # the next frame is whole again
    assert decoder.feed(b"i") == [(PSH, 3, b"ghi")]


def test_data_is_a_view_of_what_was_fed() -> None:
    data = frame(PSH, 1, b"one") + frame(FIN, 1) + frame(PSH, 2, bytes(50_000))
    first, rest = data[:5], data[5:]
    decoder = Decoder()
    assert decoder.feed(first) == []
    events = decoder.feed(memoryview(rest))
    assert joined(events, PSH) == [(PSH, 1, b"one"), (FIN, 1, b""), (PSH, 2, bytes(50_000))]
    for command, _, payload in events:
        assert command != PSH or (isinstance(payload, memoryview) and payload.obj is rest)


def test_data_is_handed_out_as_it_arrives() -> None:
    decoder = Decoder()
    assert decoder.feed(frame(PSH, 7, bytes(60_000))[:HEADER_SIZE]) == []
    for _ in range(6):
        assert not decoder.at_boundary
        assert joined(decoder.feed(b"y" * 10_000), PSH) == [(PSH, 7, b"y" * 10_000)]
    assert decoder.at_boundary


def test_an_unfinished_frame_is_not_at_a_boundary() -> None:
    whole = frame(ALERT, 0, b"abc") + frame(FIN, 3)
    for size in range(1, len(whole)):
        decoder = Decoder()
        decoder.feed(whole[:size])
        assert decoder.at_boundary == (size == HEADER_SIZE + 3)


# Settings.


def test_settings_of_both_ends() -> None:
    settings = client_settings("mtt/1", "75cff2ad89aadf5e257059ee571ebe11")
    assert settings == b"v=2\nclient=mtt/1\npadding-md5=75cff2ad89aadf5e257059ee571ebe11"
    assert server_settings() == b"v=2"
    assert version_of(parse_settings(settings)) == version_of(parse_settings(b"v=2")) == 2


def test_settings_are_lines() -> None:
    assert parse_settings(b"") == {}
    assert parse_settings(b"a=1\nno line\n\nb==2=\nc=\na=3\r\n=x") == {
        "a": "3\r", "b": "=2=", "c": "", "": "x",
    }  # fmt: skip
    assert parse_settings(b"v=2\nclient=\xff\xfe") == {"v": "2", "client": "\ufffd\ufffd"}


def test_settings_are_bounded() -> None:
    many = b"".join(b"%d=x\n" % number for number in range(10_000)) + b"0=y\n"
    settings = parse_settings(many[-MAX_LENGTH:])
    assert len(settings) == MAX_SETTINGS
    settings = parse_settings(many)
    assert (len(settings), settings["0"]) == (MAX_SETTINGS, "y")


@pytest.mark.parametrize("settings", [{"a=": "b"}, {"a\n": "b"}, {"a": "b\nv=1"}])
def test_unencodable_settings_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="settings cannot hold"):
        encode_settings(settings)


@pytest.mark.parametrize(
    ("value", "version"),
    [
        ("2", 2), ("1", 1), ("0", 0), ("3", 3), ("256", 256), ("+2", 2), ("02", 2), ("-2", 0),
        ("", 0), (" 2", 0), ("2 ", 0), ("2.0", 0), ("0x2", 0), ("1_0", 0), ("\u0662", 0),
        ("two", 0), ("9223372036854775807", 2**63 - 1), ("9223372036854775808", 0),
        ("9" * 60_000, 0), ("2\n", 0),
    ],
)  # fmt: skip
def test_the_version_is_a_number_as_go_reads_it(value: str, version: int) -> None:
    assert version_of({"v": value}) == version


def test_missing_version_is_version_1() -> None:
    assert version_of({}) == 0
    assert integer("-9223372036854775808") == -(2**63)
    assert integer("-9223372036854775809") is None


def test_peer_texts_fit_into_a_log_line() -> None:
    assert shown(b"no route to host") == "no route to host"
    assert shown(b"a\r\nb\x1b[31m\0\xff\xe2\x80\xae") == "a  b [31m \ufffd "
    assert len(shown(b"x" * MAX_LENGTH)) == 200
    assert shown(b"x" * 200) == "x" * 200
    assert shown(b"x" * 201) == "x" * 197 + "..."


# The preamble.

HASHED = password_hash("test-password")


def test_the_hash() -> None:
    assert HASHED.hex() == "c638833f69bbfb3c267afa0a74434812436b8f08a81fd263c6be6871de4f1265"
    assert password_hash("pä") == hashlib.sha256(b"p\xc3\xa4").digest()


@pytest.mark.parametrize("padding", [0, 1, 30, 255, 256, MAX_LENGTH])
def test_preamble_round_trip(padding: int) -> None:
    data = preamble(HASHED, padding)
    assert data == HASHED + bytes((padding >> 8, padding & 255)) + bytes(padding)
    reader = PreambleReader()
    reader.feed(memoryview(data + b"frames"))
    assert (reader.hash, reader.rest, reader.received) == (HASHED, b"frames", data + b"frames")
    reader = PreambleReader()
    reader.feed(data[:-1])
    assert reader.rest is None
    reader.feed(data[-1:])
    assert (reader.hash, reader.rest) == (HASHED, b"")


@pytest.mark.parametrize("padding", [-1, MAX_LENGTH + 1])
def test_too_much_preamble_padding_is_refused(padding: int) -> None:
    with pytest.raises(ValueError, match="0 to 65535"):
        preamble(HASHED, padding)


def test_a_preamble_in_single_bytes() -> None:
    data = preamble(HASHED, 40) + b"frames"
    reader = PreambleReader()
    for number, byte in enumerate(bytewise(data)):
        assert reader.hash == (HASHED if number >= 32 else None)
        assert reader.rest == (data[74:number] if number >= 74 else None)
        assert reader.received == data[:number]
        reader.feed(byte)
    assert reader.rest == b"frames"


def test_the_padding_need_not_be_zeros() -> None:
    reader = PreambleReader()
    reader.feed(HASHED + b"\0\3abcdef")
    assert reader.rest == b"def"


# Noise.


def test_any_bytes_are_events() -> None:
    rng = random.Random(42)
    seen = set()
    for _ in range(1500):
        noise = bytearray(rng.randbytes(rng.randrange(1, 300)))
        if rng.random() < 0.8:
            noise = bytearray(
                b"".join(
                    frame(rng.randrange(13), rng.randrange(4), rng.randbytes(rng.randrange(40)))
                    for _ in range(rng.randrange(1, 12))
                )
            )
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        decoder = Decoder()
        fed = given = 0
        for piece in split(bytes(noise), rng):
            fed += len(piece)
            for command, stream_id, payload in decoder.feed(piece):
                assert command in (PSH, *WHOLE, *BARE)
                assert 0 <= stream_id <= 0xFFFFFFFF
                assert command not in BARE or not payload
                assert command == PSH or isinstance(payload, bytes)
                given += len(payload)
                seen.add(command)
            assert given <= fed
            assert len(decoder._head) < HEADER_SIZE
            assert len(decoder._whole) + given <= fed
            assert len(decoder._whole) <= MAX_LENGTH
    assert seen == {PSH, *WHOLE, *BARE}


def test_a_slow_frame_holds_no_more_than_itself() -> None:
    # A peer that sends a long one in small pieces: neither memory nor time may grow out of bounds.
    decoder = Decoder()
    decoder.feed(frame(SETTINGS, 0, bytes(MAX_LENGTH))[:HEADER_SIZE])
    tracemalloc.start()
    try:
        for _ in range(MAX_LENGTH // 3 - 1):
            assert decoder.feed(b"abc") == []
        assert tracemalloc.get_traced_memory()[1] < 3 * MAX_LENGTH
    finally:
        tracemalloc.stop()
    assert decoder.feed(b"abc") == [(SETTINGS, 0, b"abc" * (MAX_LENGTH // 3))]
    assert len(decoder._whole) == 0


def test_noise_leaves_the_settings_readable() -> None:
    rng = random.Random(43)
    for _ in range(1000):
        noise = bytes(rng.choice(b"v=2\n\xff\0 client") for _ in range(rng.randrange(60)))
        settings = parse_settings(noise)
        assert len(settings) <= MAX_SETTINGS
        assert version_of(settings) >= 0
        assert encode_settings(parse_settings(encode_settings(settings))) == encode_settings(
            settings
        )
        assert shown(noise).isprintable()
