"""smux frames: recorded ones, every way to cut them, each rule, and noise."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from mtt.wire import websocket
from mtt.wire.smux import (
    FIN,
    HEADER_SIZE,
    MAX_LENGTH,
    MAX_PAYLOAD,
    NOP,
    PSH,
    SYN,
    Decoder,
    SmuxError,
    data_frames,
    frame,
)
from tests.support.vectors import names, stream_of, vector
from tests.wire.frames import Event, check_cut_anywhere, check_noise, check_refused, decode_all
from tests.wire.pieces import bytewise, joined

RECORDED = names("*-mux-*")
PLAIN = [name for name in RECORDED if "wss" not in name]


def decode(pieces: Iterable[bytes]) -> list[Event]:
    return decode_all(Decoder(), pieces, PSH)


# Recorded exchanges.


def test_there_are_recorded_exchanges() -> None:
    assert [name[0] for name in PLAIN] == ["c", "x"]


@pytest.mark.parametrize("direction", ["c2s", "s2c"])
@pytest.mark.parametrize("name", PLAIN)
def test_recorded_frames_decode_and_encode_to_the_same_bytes(name: str, direction: str) -> None:
    stream = stream_of(vector(name), direction)
    events = Decoder().feed(stream)
    assert len(events) > 1
    assert b"".join(frame(*event) for event in events) == stream
    assert decode(bytewise(stream)) == joined(events, PSH)


def test_recorded_conversation() -> None:
    assert decode([stream_of(vector(PLAIN[0]), "c2s")]) == [
        (SYN, 3, b""),
        (PSH, 3, b"stream one"),
        (SYN, 5, b""),
        (PSH, 5, b"stream two"),
        (PSH, 3, b"one again"),
        (FIN, 3, b""),
        (PSH, 5, b"two again"),
        (FIN, 5, b""),
    ]


def test_frames_inside_recorded_websocket_messages() -> None:
    (name,) = (name for name in RECORDED if "wss" in name)
    for direction in ("c2s", "s2c"):
        messages = websocket.Decoder(masked=direction == "c2s").feed(
            stream_of(vector(name), direction).partition(b"\r\n\r\n")[2]
        )
        stream = b"".join(payload for opcode, payload in messages if opcode == websocket.BINARY)
        events = Decoder().feed(stream)
        assert b"".join(frame(*event) for event in events) == stream
        said = {(stream_id, bytes(payload)) for command, stream_id, payload in events if payload}
        assert {(3, b"stream one"), (5, b"stream two"), (5, b"two again")} <= said


# The format.


def test_the_header_is_little_endian() -> None:
    assert frame(SYN, 3).hex() == "0100000003000000"
    assert frame(PSH, 3, b"hi").hex() == "01020200030000006869"
    assert frame(NOP, 0).hex() == "0103000000000000"
    assert frame(FIN, 0xFFFFFFFE).hex() == "01010000feffffff"
    assert HEADER_SIZE == 8


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


def test_default_frame_size_is_that_of_the_original() -> None:
    assert data_frames(9, bytes(MAX_LENGTH)) == data_frames(9, bytes(MAX_LENGTH), MAX_PAYLOAD)


def test_a_frame_of_the_largest_size_is_taken() -> None:
    data = bytes(65535)
    assert decode([frame(PSH, 1, data)]) == [(PSH, 1, data)]


def test_empty_data_is_an_event_of_its_own() -> None:
    stream = frame(PSH, 3, b"a") + frame(PSH, 3) + frame(PSH, 3, b"b") + frame(PSH, 5)
    events = [(PSH, 3, b"a"), (PSH, 3, b""), (PSH, 3, b"b"), (PSH, 5, b"")]
    assert decode([stream]) == events
    assert decode(bytewise(stream)) == events


# Cutting.


def mixed_stream(rng: random.Random) -> tuple[bytes, list[Event]]:
    stream = b""
    events: list[Event] = []
    for _ in range(rng.randrange(1, 30)):
        stream_id = rng.choice((0, 3, 5, 0xFFFFFFFF))
        command = rng.choice((SYN, FIN, NOP, PSH, PSH, PSH))
        payload = b""
        if command == PSH:
            payload = rng.randbytes(rng.choice((0, 1, 2, 9, 300, MAX_PAYLOAD, 65535)))
        stream += frame(command, stream_id, payload)
        events.append((command, stream_id, payload))
    return stream, joined(events, PSH)


def test_frames_may_be_cut_anywhere() -> None:
    check_cut_anywhere(decode, mixed_stream)


def test_views_are_taken_as_well() -> None:
    stream, events = mixed_stream(random.Random(22))
    decoder = Decoder()
    found = [*decoder.feed(memoryview(stream)[:5]), *decoder.feed(memoryview(stream)[5:])]
    assert joined(found, PSH) == events


def test_an_unfinished_frame_is_not_at_a_boundary() -> None:
    whole = frame(PSH, 3, b"abc") + frame(FIN, 3)
    for size in range(1, len(whole)):
        decoder = Decoder()
        decoder.feed(whole[:size])
        assert decoder.at_boundary == (size == len(frame(PSH, 3, b"abc")))


def test_payload_is_handed_out_as_it_arrives() -> None:
    decoder = Decoder()
    assert decoder.feed(frame(PSH, 7, bytes(60_000))[:HEADER_SIZE]) == []
    for _ in range(6):
        assert joined(decoder.feed(b"y" * 10_000), PSH) == [(PSH, 7, b"y" * 10_000)]
    assert decoder.at_boundary


# What is refused.

MALFORMED = [
    ("version 0", "0000000003000000", "version 0"),
    ("version 2", "0200000003000000", "version 2 instead of 1: .* set it to version 1"),
    ("a TLS record", "160301020001000f", "version 22"),
    ("HTTP", b"GET / HT".hex(), "version 71 instead of 1: the peer speaks HTTP; use"),
    ("an answer of HTTP", b"HTTP/1.1 400".hex(), "version 72 instead of 1: the peer speaks HTTP"),
    ("SSH", b"SSH-2.0-OpenSSH".hex(), "version 83 instead of 1: use the same mode, "),
    ("UPD, a command of version 2", "0104080003000000" + 16 * "0", "command 4"),
    ("the last command", "01ff000000000000", "command 255"),
    ("SYN with a payload", "010001000300000061", "payload"),
    ("FIN with a payload", "0101ffff03000000", "payload"),
    ("NOP with a payload", "0103010000000000", "payload"),
    ("the second frame", "0103000000000000" + "0300000000000000", "version 3"),
]


@pytest.mark.parametrize(("stream", "words"), [row[1:] for row in MALFORMED],
                         ids=[row[0] for row in MALFORMED])  # fmt: skip
def test_violations_are_refused_in_any_pieces(stream: str, words: str) -> None:
    check_refused(Decoder, bytes.fromhex(stream), SmuxError, words)


# Noise.


def noise_of(rng: random.Random) -> bytes:
    noise = bytearray(rng.randbytes(rng.randrange(1, 200)))
    if rng.random() < 0.9:
        noise = bytearray(
            b"".join(
                frame(PSH, rng.choice((3, 5)), rng.randbytes(rng.randrange(40)))
                for _ in range(rng.randrange(1, 10))
            )
        )
        if rng.random() < 0.8:
            noise[rng.randrange(len(noise))] = rng.randrange(256)
    return bytes(noise)


def test_noise_gives_events_or_smux_error() -> None:
    def check(command: int, stream_id: int, payload: bytes) -> None:
        assert command in (SYN, FIN, PSH, NOP)
        assert 0 <= stream_id <= 0xFFFFFFFF
        assert command == PSH or not payload

    check_noise(Decoder, noise_of, SmuxError, check, head=HEADER_SIZE)
