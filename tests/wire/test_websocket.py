"""WebSocket frames: recorded ones, every way to cut them, each rule of the RFC, and noise."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from typing import Any

import pytest

from mtt.wire.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    MAX_CONTROL,
    NO_MASK,
    NO_STATUS,
    NORMAL_CLOSURE,
    PING,
    PONG,
    TEXT,
    Decoder,
    WebSocketError,
    close_payload,
    frame,
    frame_header,
    parse_close,
    xor,
)
from tests.support.vectors import WSS, stream_of, vector
from tests.wire.pieces import bytewise, split

KEY = b"\x37\xfa\x21\x3d"  # of the examples in RFC 6455, 5.7

# One thing that the decoder said: payload of data frames runs together.
Event = tuple[int, bytes]


def frames_of(name: str, direction: str) -> bytes:
    """What went one way after the HTTP handshake."""
    return stream_of(vector(name), direction).partition(b"\r\n\r\n")[2]


def joined(events: Iterable[tuple[int, Any]]) -> list[Event]:
    """`events` with neighbouring pieces of the byte stream put together."""
    out: list[Event] = []
    for opcode, payload in events:
        if opcode == BINARY and out and out[-1][0] == BINARY:
            out[-1] = BINARY, out[-1][1] + bytes(payload)
        else:
            out.append((opcode, bytes(payload)))
    return out


def decode(pieces: Iterable[bytes], *, masked: bool) -> list[Event]:
    decoder = Decoder(masked=masked)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    assert decoder.at_boundary
    return joined(events)


# Recorded exchanges.


def test_there_are_recorded_exchanges() -> None:
    assert len(WSS) == 3


@pytest.mark.parametrize("direction", ["c2s", "s2c"])
@pytest.mark.parametrize("name", WSS)
def test_recorded_frames_decode_and_encode_to_the_same_bytes(name: str, direction: str) -> None:
    masked = direction == "c2s"
    stream = frames_of(name, direction)
    payloads = []
    encoded = b""
    rest = stream
    while rest:  # one frame at a time, cut by hand
        length = rest[1] & 0x7F
        start = 2
        if length == 126:
            length, start = int.from_bytes(rest[2:4], "big"), 4
        key = rest[start : start + 4] if masked else None
        size = start + (4 if masked else 0) + length
        (event,) = decode([rest[:size]], masked=masked)
        payloads.append(event)
        encoded += frame(event[0], event[1], key)
        rest = rest[size:]
    assert encoded == stream
    assert joined(payloads) == decode([stream], masked=masked)
    assert decode(bytewise(stream), masked=masked) == decode([stream], masked=masked)


def test_recorded_echo_conversation() -> None:
    name = next(name for name in WSS if name.startswith("b-"))
    said = b"hello" + 126 * b"P" + 1500 * b"Q"
    assert decode([frames_of(name, "s2c")], masked=False)[0] == (BINARY, said)
    up = decode([frames_of(name, "c2s")], masked=True)
    assert up[0] == (BINARY, said)
    assert up[-1] == (CLOSE, b"\x03\xe8")
    assert parse_close(up[-1][1]) == (NORMAL_CLOSURE, "")


# Examples of RFC 6455, 5.7.


@pytest.mark.parametrize(
    ("stream", "masked", "events"),
    [
        ("810548656c6c6f", False, [(BINARY, b"Hello")]),
        ("818537fa213d7f9f4d5158", True, [(BINARY, b"Hello")]),
        ("010348656c80026c6f", False, [(BINARY, b"Hello")]),
        ("890548656c6c6f", False, [(PING, b"Hello")]),
        ("8a8537fa213d7f9f4d5158", True, [(PONG, b"Hello")]),
    ],
)
def test_the_examples_of_the_rfc(stream: str, masked: bool, events: list[Event]) -> None:
    assert decode([bytes.fromhex(stream)], masked=masked) == events


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0, "8200"),
        (125, "827d"),
        (126, "827e007e"),
        (65535, "827effff"),
        (65536, "827f0000000000010000"),
        (1 << 40, "827f0000010000000000"),
    ],
)
def test_the_shortest_length_form(length: int, header: str) -> None:
    assert frame_header(BINARY, length).hex() == header
    masked = frame_header(BINARY, length, KEY)
    assert masked[1] & 0x80
    assert masked.endswith(KEY)
    assert len(masked) == len(header) // 2 + 4


# Masking.


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 7, 255, 256, 257, 258, 259, 1000, 70_001])
def test_xor_is_the_definition_of_the_rfc(size: int) -> None:
    data = random.Random(size).randbytes(size)
    for offset in (0, 1, 2, 3, 4, 7, 125):
        expected = bytes(byte ^ KEY[(at + offset) % 4] for at, byte in enumerate(data))
        assert xor(data, KEY, offset) == expected
        assert xor(memoryview(data), KEY, offset) == expected
        assert xor(expected, KEY, offset) == data


def test_the_zero_key_is_a_key() -> None:
    masked = frame(BINARY, b"plain", NO_MASK)
    assert masked == b"\x82\x85\0\0\0\0plain"
    assert decode([masked], masked=True) == [(BINARY, b"plain")]


# Cutting.


def mixed_stream(rng: random.Random, *, masked: bool) -> tuple[bytes, list[Event]]:
    """Valid frames of all kinds, and what they mean."""
    stream = b""
    events: list[Event] = []
    open_message = False

    def add(opcode: int, payload: bytes, final: bool = True) -> None:
        nonlocal stream
        data = bytearray(frame(opcode, payload, rng.randbytes(4) if masked else None))
        if not final:
            data[0] &= 0x7F
        stream += data

    for _ in range(rng.randrange(1, 25)):
        if rng.random() < 0.3:
            opcode = rng.choice((PING, PONG))
            payload = rng.randbytes(rng.choice((0, 1, 124, MAX_CONTROL)))
            add(opcode, payload)
            events.append((opcode, payload))
            continue
        payload = rng.randbytes(rng.choice((0, 1, 125, 126, 300, 65535, 65536)))
        final = rng.random() < 0.6
        opcode = CONTINUATION if open_message else rng.choice((TEXT, BINARY))
        add(opcode, payload, final)
        open_message = not final
        if payload:
            events.append((BINARY, payload))
        elif opcode == TEXT and final:
            events.append((TEXT, b""))
    return stream, joined(events)


@pytest.mark.parametrize("masked", [False, True])
def test_frames_may_be_cut_anywhere(masked: bool) -> None:
    rng = random.Random(11)
    for _ in range(40):
        stream, events = mixed_stream(rng, masked=masked)
        assert decode([stream], masked=masked) == events
        assert decode(split(stream, rng), masked=masked) == events
        if len(stream) < 2000:
            assert decode(bytewise(stream), masked=masked) == events


@pytest.mark.parametrize("key", [None, KEY, b"\0\0\0\0"])
@pytest.mark.parametrize("size", [6, 125, 126, 300, 65535])
def test_whole_short_messages_decode_at_once(size: int, key: bytes | None) -> None:
    payload = random.Random(size).randbytes(size)
    whole = frame(BINARY, payload, key)
    decoder = Decoder(masked=key is not None)
    for kind in (bytes, memoryview):
        found = decoder.whole_message(kind(whole))
        assert found is not None
        assert bytes(found) == payload
    assert decoder.whole_message(whole[:-1]) is None
    assert decoder.whole_message(whole + b"x") is None
    assert Decoder(masked=key is None).whole_message(whole) is None
    decoder.feed(whole[:-1])
    assert decoder.whole_message(whole) is None
    decoder.feed(whole[-1:])
    assert decoder.whole_message(whole) is not None


def test_other_frames_are_no_whole_short_messages() -> None:
    decoder = Decoder(masked=True)
    for other in (
        frame(PING, b"12345678", KEY),
        frame(TEXT, b"12345678", KEY),
        frame(BINARY, b"", KEY),
        frame(BINARY, bytes(65536), KEY),
        b"\x82\xfe\0\0" + KEY,
        b"\x02" + frame(BINARY, b"12345678", KEY)[1:],
    ):
        assert decoder.whole_message(other) is None
    decoder.feed(b"\x02\x81" + KEY + b"x")  # the message goes on
    assert decoder.whole_message(frame(BINARY, b"12345678", KEY)) is None


def test_an_unfinished_frame_is_not_at_a_boundary() -> None:
    whole = frame(BINARY, b"abc", KEY) + frame(PING, b"de", KEY)
    for size in range(1, len(whole)):
        decoder = Decoder(masked=True)
        decoder.feed(whole[:size])
        assert decoder.at_boundary == (size == len(frame(BINARY, b"abc", KEY)))


def test_payload_is_handed_out_as_it_arrives() -> None:
    decoder = Decoder(masked=False)
    header = frame_header(BINARY, 1 << 40)  # a frame that no receiver could buffer
    assert decoder.feed(header) == []
    for _ in range(10):
        ((opcode, piece),) = decoder.feed(b"x" * 1000)
        assert (opcode, bytes(piece)) == (BINARY, b"x" * 1000)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        ("8100", [(TEXT, b"")]),
        ("810161", [(BINARY, b"a")]),
        ("8200", []),
        ("0100800161", [(BINARY, b"a")]),
        ("01008000", []),
        ("0200" + "8000" + "8100", [(TEXT, b"")]),
        ("0201618900800162", [(BINARY, b"a"), (PING, b""), (BINARY, b"b")]),
        ("81008100820161", [(TEXT, b""), (TEXT, b""), (BINARY, b"a")]),
    ],
)
def test_text_is_data_unless_the_whole_message_is_empty(stream: str, events: list[Event]) -> None:
    assert decode([bytes.fromhex(stream)], masked=False) == events
    assert decode(bytewise(bytes.fromhex(stream)), masked=False) == events


def test_longer_length_forms_are_accepted() -> None:
    # Only senders must use the shortest form as far as any receiver of this field cares.
    assert decode([b"\x82\x7e\x00\x03abc"], masked=False) == [(BINARY, b"abc")]
    assert decode([b"\x82\x7f" + bytes(7) + b"\x03abc"], masked=False) == [(BINARY, b"abc")]


# What is refused.

MALFORMED = [
    ("reserved bit 1 (5.2)", "c20161", "reserved"),
    ("reserved bit 2 (5.2)", "a20161", "reserved"),
    ("reserved bit 3 (5.2)", "920161", "reserved"),
    ("a reserved bit on a control frame (5.2)", "c900", "reserved"),
    ("unknown data opcode (5.2)", "830161", "opcode 3"),
    ("last unknown data opcode (5.2)", "870161", "opcode 7"),
    ("unknown control opcode (5.2)", "8b00", "opcode 11"),
    ("last unknown control opcode (5.2)", "8f00", "opcode 15"),
    ("length with the top bit set (5.2)", "827f8000000000000000", "length"),
    ("fragmented ping (5.5)", "0900", "not final"),
    ("fragmented close (5.5)", "0800", "not final"),
    ("ping of 126 bytes (5.5)", "897e007e" + 126 * "61", "too long"),
    ("pong with a 64-bit length (5.5)", "8a7f0000000000000001", "too long"),
    ("continuation of nothing (5.4)", "800161", "continuation"),
    ("continuation after a whole message (5.4)", "820161800161", "continuation"),
    ("continuation after the last fragment (5.4)", "0201618001628000", "continuation"),
    ("message inside a message (5.4)", "020161820162", "before final"),
    ("text inside a binary message (5.4)", "0201610100", "before final"),
    ("masked frame of a server (5.1)", "828100000000ff", "mask"),
]


@pytest.mark.parametrize(("stream", "words"), [row[1:] for row in MALFORMED],
                         ids=[row[0] for row in MALFORMED])  # fmt: skip
def test_violations_are_refused_in_any_pieces(stream: str, words: str) -> None:
    data = bytes.fromhex(stream)
    for pieces in ([data], list(bytewise(data)), [data + b"trailing"]):
        decoder = Decoder(masked=False)
        with pytest.raises(WebSocketError, match=re.escape(words)):
            for piece in pieces:
                decoder.feed(piece)


@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, CLOSE])
def test_a_client_must_mask_even_nothing(opcode: int) -> None:
    with pytest.raises(WebSocketError, match="mask"):
        Decoder(masked=True).feed(bytes((0x80 | opcode, 0)))


# Close frames (5.5.1, 7.4).


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1013, 3000, 4999])
def test_close_codes_that_may_be_sent(code: int) -> None:
    assert parse_close(close_payload(code, "why é")) == (code, "why é")
    assert parse_close(close_payload(code)) == (code, "")


def test_a_close_frame_may_be_empty() -> None:
    assert close_payload(NO_STATUS) == b""
    assert parse_close(b"") == (NO_STATUS, "")


def test_a_long_reason_fits_into_a_control_frame() -> None:
    assert len(close_payload(1002, "x" * 500)) == MAX_CONTROL


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2999, 5000, 65535])
def test_close_codes_that_may_not_be_sent(code: int) -> None:
    with pytest.raises(WebSocketError, match="close code"):
        parse_close(code.to_bytes(2, "big"))


@pytest.mark.parametrize("payload", [b"\x03", b"\xff"])
def test_half_a_close_code(payload: bytes) -> None:
    with pytest.raises(WebSocketError, match="close code"):
        parse_close(payload)


@pytest.mark.parametrize("reason", [b"\xff", b"\xc3", b"ok\x80", b"\xed\xa0\x80"])
def test_a_close_reason_is_utf8(reason: bytes) -> None:
    with pytest.raises(WebSocketError, match="utf8"):
        parse_close(b"\x03\xe8" + reason)


# Noise.


@pytest.mark.parametrize("masked", [False, True])
def test_noise_gives_events_or_websocket_error(masked: bool) -> None:
    rng = random.Random(12)
    refused = accepted = 0
    for _ in range(3000):
        decoder = Decoder(masked=masked)
        if rng.random() < 0.7:  # mostly right, one byte wrong
            stream, _ = mixed_stream(rng, masked=masked) if rng.random() < 0.02 else (
                frame(rng.choice((TEXT, BINARY, PING)), rng.randbytes(rng.randrange(126)),
                      rng.randbytes(4) if masked else None) * 2, None)  # fmt: skip
            noise = bytearray(stream)
            noise[rng.randrange(min(20, len(noise)))] = rng.randrange(256)
        else:
            noise = bytearray(rng.randbytes(rng.randrange(1, 400)))
        fed = given = 0
        try:
            for piece in split(bytes(noise), rng):
                fed += len(piece)
                for opcode, payload in decoder.feed(piece):
                    assert opcode in (TEXT, BINARY, CLOSE, PING, PONG)
                    assert opcode == BINARY or len(payload) <= MAX_CONTROL
                    assert opcode != TEXT or not payload
                    given += len(payload)
                # Nothing is kept but an unfinished header or control payload.
                assert len(decoder._head) < 14
                assert len(decoder._control) <= MAX_CONTROL
                assert given <= fed
            accepted += 1
        except WebSocketError as error:
            assert str(error)
            assert len(str(error)) <= MAX_CONTROL - 2
            refused += 1
    assert refused > 300
    assert accepted > 300
