"""Where bodies end: whole, byte by byte, with other bytes behind them, and noise."""

from __future__ import annotations

import random

import pytest

from mtt.wire.http1 import HttpError
from mtt.wire.httpbody import MAX_LINE, MAX_TRAILERS, Body

CHUNKED = (
    b"5\r\nhello\r\n"
    b"00a ;name=\"value\"\r\n0123456789\r\n"
    b"1\r\n\n\r\n"
    b"0\r\nX-Trailer: 1\r\nX-Other: 2\r\n\r\n"
)  # fmt: skip
CONTENT = b"hello0123456789\n"


@pytest.mark.parametrize(
    ("length", "chunked", "body"),
    [(0, False, b""), (11, False, b"hello world"), (None, True, CHUNKED)],
)
def test_the_end_of_a_body(length: int | None, chunked: bool, body: bytes) -> None:
    def fresh() -> Body:
        return Body(length, chunked=chunked)

    whole = fresh()
    assert whole.take(body) == len(body)
    assert whole.over
    assert whole.take(b"more") == 0
    view = fresh()
    assert view.take(memoryview(body + b"more")) == len(body)
    trailing = fresh()
    assert trailing.take(body + b"GET http://b/ HTTP/1.1\r\n") == len(body)
    assert trailing.over
    piecemeal = fresh()
    for number, byte in enumerate(body, 1):
        assert not piecemeal.over
        assert piecemeal.take(bytes([byte])) == 1
        assert piecemeal.over == (number == len(body))
    rng = random.Random(7)
    for _ in range(200):
        pieces, rest, at = fresh(), body + b"5\r\nhello\r\n0\r\n\r\n", 0
        while rest:
            size = rng.randint(1, 12)
            at += pieces.take(rest[:size])
            rest = rest[size:]
        assert (at, pieces.over) == (len(body), True)


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n",
        b"5\nhello",
        b"5 \nhello",
        b"-5\r\n",
        b"+5\r\n",
        b"0x5\r\n",
        b"5 5\r\n",
        b"1" * 16 + b"\r\n",
        b"5;\0\r\n",
        b"5\r\nhello!\r\n",
        b"5\r\nhello\n",
        b"0\r\n\n",
        b"0\r\nX: 1\n\r\n",
        b"5;" + b"a" * MAX_LINE,
        b"0\r\n" + b"a" * (MAX_LINE + 1),
        b"0\r\nno colon\r\n",
        b"0\r\nX : 1\r\n",
        b"0\r\n folded: 1\r\n",
        b"0\r\nX: 1\r2\r\n",
        b"0\r\nContent-Length: 5\r\n",
        b"0\r\ntransfer-encoding: chunked\r\n",
        b"0\r\nHost: b\r\n",
    ],
)
def test_ambiguous_body_framing_is_refused(body: bytes) -> None:
    with pytest.raises(HttpError) as raised:
        Body(None, chunked=True).take(body)
    assert raised.value.status == 400
    with pytest.raises(HttpError):
        piecemeal = Body(None, chunked=True)
        for byte in body:
            piecemeal.take(bytes([byte]))


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_the_content_of_a_body(step: int) -> None:
    for body, length in ((CHUNKED, 0), (b"hello", 5)):
        content = bytearray()
        framing = Body(length or None, chunked=not length)
        received = bytearray(body + b"GET /")
        while not framing.over:
            del received[: framing.take(received[:step], content)]
        assert received == b"GET /"
        assert content == (b"hello" if length else CONTENT)


def test_trailers_are_bounded() -> None:
    line = b"a: " + b"b" * 995 + b"\r\n"
    framing = Body(None, chunked=True)
    framing.take(b"0\r\n" + line * (MAX_TRAILERS // len(line)))
    with pytest.raises(HttpError) as raised:
        framing.take(line)
    assert raised.value.status == 431


def test_a_body_that_ends_with_its_connection() -> None:
    body, content = Body(None), bytearray()
    assert body.ends_with_connection
    assert body.take(b"hello", content) == 5
    assert body.take(memoryview(b" world"), content) == 6
    assert content == b"hello world"
    assert not body.over
    for other in (Body(0), Body(1), Body(None, chunked=True)):
        assert not other.ends_with_connection


def test_a_length_at_its_bounds() -> None:
    for length in (1, 2**62):
        body = Body(length)
        assert body.take(b"x" * 3) == min(length, 3)
        assert body.over == (length == 1)
    body = Body(None, chunked=True)
    body.take(b"f" * 15 + b"\r\n")
    assert body.left == 16**15 - 1


def test_the_longest_line() -> None:
    line = b"5;" + b"a" * (MAX_LINE - 4) + b"\r\n"
    assert len(line) == MAX_LINE
    assert Body(None, chunked=True).take(line) == MAX_LINE
    with pytest.raises(HttpError):
        Body(None, chunked=True).take(b"5;a" + line[2:])


def test_the_status_of_a_malformed_body_is_the_senders_fault() -> None:
    trailers = b"0\r\n" + (b"a: " + b"b" * 995 + b"\r\n") * 40
    for wire in (b"no\r\n", b"5\r\nhello!\r\n", trailers):
        with pytest.raises(HttpError) as raised:
            Body(None, chunked=True, status=502).take(wire)
        assert raised.value.status == 502


def test_noise_has_an_end_or_is_refused() -> None:
    rng = random.Random(4)
    over = refused = 0
    for _ in range(3000):
        noise = bytearray(CHUNKED)
        for _ in range(rng.randrange(3)):
            noise[rng.randrange(len(noise))] = rng.choice(b"\0\r\n;0f:a ")
        whole, piecemeal = Body(None, chunked=True), Body(None, chunked=True)
        taken, error = 0, False
        try:
            taken = whole.take(bytes(noise))
        except HttpError:
            error = True
        content, at = bytearray(), 0
        try:
            while at < len(noise) and not piecemeal.over:
                step = rng.randrange(1, 9)
                at += piecemeal.take(memoryview(noise)[at : at + step], content)
        except HttpError:
            assert error
            refused += 1
        else:
            assert not error
            assert (at, piecemeal.over) == (taken, whole.over)
            over += whole.over
    assert min(over, refused) > 300
