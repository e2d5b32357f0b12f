"""Datagrams on a stream: the format, every way to cut it, what is refused, and noise."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest

from mtt.wire.datagrams import (
    ANSWER,
    HEAD,
    HEADER_SIZE,
    MAX_DATAGRAM,
    MAX_FLOW,
    DatagramError,
    Decoder,
    encode,
    is_opening,
)
from mtt.wire.smux import VERSION

DATAGRAMS = [(1, b"first"), (MAX_FLOW, b""), (7, bytes(1400)), (1, b"x")]
STREAM = b"".join(encode(flow, payload) for flow, payload in DATAGRAMS)


def plain(datagrams: Any) -> list[tuple[int, bytes]]:
    return [(flow, bytes(payload)) for flow, payload in datagrams]


def in_pieces(decoder: Decoder, data: bytes, size: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    for at in range(0, len(data), size):
        found += plain(decoder.feed(data[at : at + size]))
    return found


def test_format() -> None:
    assert encode(0x01020304, b"hi").hex() == "000201020304" + "6869"
    assert encode(5, memoryview(b"")).hex() == "0000" + "00000005"


def test_opening_messages_are_the_documented_ones() -> None:
    for message, name in ((HEAD, "head"), (ANSWER, "answer")):
        text = f"mos-tls-tunnel udp {name} 1"
        assert message == hashlib.sha256(text.encode()).digest()[:16]


def test_head_is_not_the_start_of_another_protocol() -> None:
    tls_handshake, smux, http = 22, VERSION, b"G"[0]
    assert HEAD[0] not in (tls_handshake, smux, http, ANSWER[0])


@pytest.mark.parametrize("size", [1, 2, 3, 5, HEADER_SIZE, 7, 64, len(STREAM)])
def test_datagrams_in_pieces(size: int) -> None:
    decoder = Decoder()
    assert in_pieces(decoder, STREAM, size) == DATAGRAMS
    assert decoder.at_boundary


def test_decoder_knows_an_incomplete_datagram() -> None:
    decoder = Decoder()
    assert plain(decoder.feed(STREAM[:-1])) == DATAGRAMS[:-1]
    assert not decoder.at_boundary
    assert plain(decoder.feed(STREAM[-1:])) == DATAGRAMS[-1:]


def test_largest_datagram() -> None:
    largest = random.Random(1).randbytes(MAX_DATAGRAM)
    assert in_pieces(Decoder(), encode(1, largest), 16384) == [(1, largest)]


@pytest.mark.parametrize("size", range(MAX_DATAGRAM + 1, 0x10000, 7))
def test_larger_datagrams_are_refused(size: int) -> None:
    with pytest.raises(DatagramError, match=f"a datagram of {size} bytes"):
        Decoder().feed(size.to_bytes(2, "big") + bytes(4))


@pytest.mark.parametrize("most", [1, 2, len(DATAGRAMS)])
def test_decoder_leaves_the_rest_for_the_next_call(most: int) -> None:
    decoder = Decoder()
    buffer = bytearray(STREAM + encode(7, b"cut")[:-1])
    found = plain(decoder.feed(memoryview(buffer), most))
    assert len(found) == most
    assert not decoder.at_boundary
    buffer[:] = bytes(len(buffer))
    while decoder.has_more:
        found += plain(decoder.feed(b"", most))
    assert found == DATAGRAMS
    assert plain(decoder.feed(b"t")) == [(7, b"cut")]


def test_decoder_does_not_keep_what_it_was_fed() -> None:
    """The buffer that data arrives in is used again."""
    buffer = bytearray(STREAM[:100])
    decoder = Decoder()
    decoder.feed(memoryview(buffer))
    buffer[:] = bytes(len(buffer))
    assert plain(decoder.feed(STREAM[100:])) == DATAGRAMS[2:]


@pytest.mark.parametrize(
    ("received", "found"),
    [
        (b"", None),
        (HEAD[:1], None),
        (HEAD[:15], None),
        (HEAD, (True, 0)),
        (HEAD + b"more", (True, 0)),
        (b"\0", (False, 0)),
        (HEAD[:15] + b"\0", (False, 0)),
        (b"GET / HTTP/1.1", (False, 0)),
    ],
)
def test_opening(received: bytes, found: tuple[bool, int] | None) -> None:
    assert is_opening(received) == found


def test_noise() -> None:
    random_ = random.Random(2)
    for _ in range(300):
        noise = random_.randbytes(random_.randrange(400))
        results = []
        for size in (1, 13, 400):
            try:
                results.append(in_pieces(Decoder(), noise, size))
            except DatagramError:
                results.append([])
        assert results[0] == results[1]
