"""Mux.Cool frames: recorded ones, every way to cut them, each rule, and noise."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import pytest

from mtt.wire import websocket
from mtt.wire.mux_cool import (
    END,
    HEADER_SIZE,
    KEEP,
    KEEP_ALIVE,
    MAX_LENGTH,
    MAX_METADATA,
    MAX_PAYLOAD,
    NEW,
    NEW_OTHER,
    RESET,
    Decoder,
    MuxCoolError,
    data_frames,
    end,
    header,
    is_head,
    is_plugin_head,
    keep_alive,
    new,
)
from tests.support.vectors import stream_of, vector
from tests.wire.frames import Event, check_cut_anywhere, check_noise, check_refused, decode_all
from tests.wire.pieces import bytewise, joined

RECORDED = "v-v2ray-plugin-mux"


def decode(pieces: Iterable[bytes]) -> list[Event]:
    return decode_all(Decoder(), pieces, KEEP)


def recorded(direction: str) -> bytes:
    """The data inside the WebSocket messages of one direction."""
    messages = websocket.Decoder(masked=direction == "c2s").feed(
        stream_of(vector(RECORDED), direction).partition(b"\r\n\r\n")[2]
    )
    return b"".join(payload for opcode, payload in messages if opcode == websocket.BINARY)


# As recorded from v2ray-plugin 1.3.1.

WITH_DATA = bytes.fromhex("000c00010101010000017f000001000568656c6c6f")
WITHOUT = bytes.fromhex("000c00010100010000017f000001")


def test_recorded_client() -> None:
    bulk = bytes(range(256)) * 40
    assert decode([recorded("c2s")]) == [
        (NEW, 1, b""), (KEEP, 1, b"stream one"),
        (NEW, 2, b""), (KEEP, 2, b"stream two"),
        (KEEP, 1, bulk),
        (KEEP, 2, b"end please"),
        (RESET, 2, b""),  # the application has closed, after the destination
        (END, 1, b""),  # the application has ended one direction
        (NEW, 3, b""), (KEEP, 3, b"refused"), (RESET, 3, b""),
    ]  # fmt: skip
    assert decode(bytewise(recorded("c2s"))) == decode([recorded("c2s")])


def test_recorded_server() -> None:
    bulk = bytes(range(255, -1, -1)) * 40
    assert decode([recorded("s2c")]) == [
        (KEEP, 1, b"stream one"[::-1]),
        (KEEP, 2, b"stream two"[::-1]),
        (KEEP, 1, bulk),
        (KEEP, 2, b"bye"), (END, 2, b""),
        (RESET, 1, b""),  # its answer to END is the end of both directions
        (RESET, 3, b""),  # the destination refuses the connection
    ]  # fmt: skip


def test_frames_are_as_recorded() -> None:
    assert new(1) == WITHOUT
    assert header(1, 5) + b"hello" == bytes.fromhex("0004000102010005") + b"hello"
    assert len(header(1, 5)) == HEADER_SIZE
    assert end(2) == bytes.fromhex("000400020300")
    assert end(3, error=True) == bytes.fromhex("000400030302")
    assert keep_alive() == bytes.fromhex("000400000400")
    server = b"".join((
        data_frames(1, b"stream one"[::-1]), data_frames(2, b"stream two"[::-1]),
        data_frames(1, bytes(range(255, -1, -1)) * 40), data_frames(2, b"bye"), end(2),
        end(1, error=True), end(3, error=True),
    ))  # fmt: skip
    assert server == recorded("s2c")


# Recognition.


@pytest.mark.parametrize("is_known", [is_plugin_head, is_head])
@pytest.mark.parametrize("first", [WITH_DATA, WITHOUT, recorded("c2s")])
def test_v2ray_plugin_is_detected_in_pieces(
    is_known: Callable[[bytes], bool | None], first: bytes
) -> None:
    answers = [is_known(first[:size]) for size in range(len(WITHOUT) + 1)]
    enough = answers.index(True)
    assert answers == [None] * enough + [True] * (len(answers) - enough)
    assert enough == (len(WITHOUT) if is_known is is_plugin_head else 11)


def test_sing_box_is_recognised() -> None:
    """It names its destination as V2Ray names the mux, and its stream 0."""
    first = bytes.fromhex("0014" "0000" "01" "01" "01" "029a" "02" "0b") + b"v1.mux.cool"
    assert [is_plugin_head(first[:size]) for size in range(23)] == [None] * 22 + [True]
    assert is_plugin_head(first.replace(b"cool", b"c00l")) is False


@pytest.mark.parametrize("is_known", [is_plugin_head, is_head])
def test_end_of_unopened_stream_as_first_frame(
    is_known: Callable[[bytes], bool | None],
) -> None:
    for error in (False, True):
        frame = end(3, error=error)
        assert [is_known(frame[:size]) for size in range(7)] == [None] * 6 + [True]
        assert is_known(frame + WITHOUT) is True
    assert is_known(bytes.fromhex("000400030301")) is False
    assert is_known(bytes.fromhex("000400030200")) is False


def test_other_bytes_are_not_taken_for_v2ray_plugin() -> None:
    for at, right in enumerate(WITHOUT):
        for byte in range(256):
            changed = WITHOUT[:at] + bytes([byte]) + WITHOUT[at + 1 :]
            is_same = byte == right or (at == 5 and byte == 1) or at == 3  # of any stream
            assert is_plugin_head(changed) is is_same
    rng = random.Random(3)
    assert not any(is_plugin_head(rng.randbytes(20)) for _ in range(1000))


@pytest.mark.parametrize(
    ("first", "is_mux"),
    [
        ("000c00010100" "01" "01bb" "01" "c0000201", True),  # to an IPv4 address
        ("001400010101" "01" "0050" "02" "0b" + b"example.com".hex(), True),  # to a name
        ("001800010101" "01" "0050" "03" + 16 * "20", True),  # to an IPv6 address
        ("001800010101" "02" "0050" "03" + 16 * "20", False),  # UDP
        ("001300010101" "01" "0050" "02" "0b" + b"example.com".hex(), False),  # too short
        ("000d00010100" "01" "01bb" "01" "c000020100", False),  # too long
        ("001c00010100" "0001000000000000", False),  # a DNS query over TCP
        ("0000004c00030000", False),  # PostgreSQL
        ("0012deadbeef", False),
    ],
)  # fmt: skip
def test_other_destinations(first: str, is_mux: bool) -> None:
    assert is_head(bytes.fromhex(first)) is is_mux
    assert is_plugin_head(bytes.fromhex(first)) is False


# The format.


@pytest.mark.parametrize("most", [MAX_PAYLOAD, MAX_LENGTH])
@pytest.mark.parametrize("size", [1, MAX_PAYLOAD, MAX_PAYLOAD + 1, MAX_LENGTH, 200_000])
def test_data_is_split_into_frames(size: int, most: int) -> None:
    data = random.Random(size).randbytes(size)
    frames = data_frames(9, memoryview(data), most)
    assert decode([frames]) == [(KEEP, 9, data)]
    assert len(frames) - size == HEADER_SIZE * -(-size // most)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        ("0004000102000004000102010000", []),  # nothing, in two ways
        ("000400010401000361626300040001020100016b", [(KEEP_ALIVE, 1, b""), (KEEP, 1, b"k")]),
        ("0004000103030002616200040001020100016b", [(RESET, 1, b""), (KEEP, 1, b"k")]),
        ("000c00010101020035017f000001000361626300040001020100016b",
         [(NEW_OTHER, 1, b""), (KEEP, 1, b"k")]),
        # With more metadata than is known, as Xray sends for UDP.
        ("001400010101020035017f0000011234567812345678000161", [(NEW_OTHER, 1, b"")]),
        ("000600010201ffff000161", [(KEEP, 1, b"a")]),
    ],
    ids=["empty", "keep-alive with data", "end with data", "udp", "xudp", "longer metadata"],
)  # fmt: skip
def test_unusual_frames(stream: str, events: list[Event]) -> None:
    assert decode([bytes.fromhex(stream)]) == events
    assert decode(bytewise(bytes.fromhex(stream))) == events


# Cutting.


def mixed_stream(rng: random.Random) -> tuple[bytes, list[Event]]:
    stream = b""
    events: list[Event] = []
    for _ in range(rng.randrange(1, 30)):
        number = rng.choice((0, 1, 2, 0xFFFF))
        kind = rng.choice((NEW, END, RESET, KEEP_ALIVE, KEEP, KEEP, KEEP))
        payload = b""
        if kind == KEEP:
            payload = rng.randbytes(rng.choice((1, 2, 9, 300, MAX_PAYLOAD, MAX_LENGTH)))
            stream += header(number, len(payload)) + payload
        elif kind == NEW:
            stream += new(number)
        elif kind == KEEP_ALIVE:
            stream += keep_alive(number)
        else:
            stream += end(number, error=kind == RESET)
        events.append((kind, number, payload))
    return stream, joined(events, KEEP)


def test_frames_may_be_cut_anywhere() -> None:
    check_cut_anywhere(decode, mixed_stream)


def test_data_is_handed_out_as_it_arrives() -> None:
    decoder = Decoder()
    assert decoder.feed(header(7, 60_000)) == []
    assert not decoder.at_boundary
    for _ in range(6):
        assert joined(decoder.feed(b"y" * 10_000), KEEP) == [(KEEP, 7, b"y" * 10_000)]
    assert decoder.at_boundary


# What is refused.

MALFORMED = [
    ("metadata too short", "0003000102", "metadata of 3 bytes"),
    ("metadata too long", "0201000102", "metadata of 513 bytes"),
    ("status 0", "000400010000", "status 0"),
    ("status 5", "000400010500", "status 5"),
    ("no destination", "000400010100", "the destination is incomplete"),
    ("network 0", "000c00010100000000017f000001", "network 0"),
    ("address type 4", "000c00010100010000047f000001", "address type 4"),
    ("address cut", "000b00010100010000017f000001", "the destination is incomplete"),
    ("name cut", "000c000101000100000204616161", "the destination is incomplete"),
    ("the second frame", "000400010400" + "ffff", "metadata of 65535 bytes"),
]


@pytest.mark.parametrize(("stream", "words"), [row[1:] for row in MALFORMED],
                         ids=[row[0] for row in MALFORMED])  # fmt: skip
def test_violations_are_refused_in_any_pieces(stream: str, words: str) -> None:
    check_refused(Decoder, bytes.fromhex(stream), MuxCoolError, words)


def test_events_before_a_violation_are_handed_out() -> None:
    with pytest.raises(MuxCoolError) as caught:
        Decoder().feed(new(1) + b"\xff\xff")
    assert caught.value.events == [(NEW, 1, b"")]


# Noise.


def noise_of(rng: random.Random) -> bytes:
    noise = bytearray(
        b"".join(
            new(1) + data_frames(rng.choice((1, 2)), rng.randbytes(1 + rng.randrange(40)))
            for _ in range(rng.randrange(1, 10))
        )
    )
    if rng.random() < 0.8:
        noise[rng.randrange(len(noise))] = rng.randrange(256)
    return bytes(noise)


def test_noise_gives_events_or_an_error() -> None:
    def check(command: int, stream_id: int, payload: bytes) -> None:
        assert command in (NEW, KEEP, END, KEEP_ALIVE, RESET, NEW_OTHER)
        assert 0 <= stream_id <= 0xFFFF
        assert (command == KEEP) is bool(payload)

    check_noise(Decoder, noise_of, MuxCoolError, check, head=MAX_METADATA + 4)
