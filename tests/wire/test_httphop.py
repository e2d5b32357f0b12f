"""Answers as a proxy passes them on: their framing, and the headers of one connection only."""

from __future__ import annotations

import random

import pytest

from mtt.wire.http1 import HttpError, parse_response
from mtt.wire.httphop import forwarded_answer, parse_answer
from tests.wire.http_heads import head


def test_hop_by_hop_headers_are_dropped() -> None:
    answer = parse_answer(
        head(
            "HTTP/1.1 200 Very OK", "ETag: x", "Connection: close, X-Mine", "x-mine: 1",
            "Keep-Alive: timeout=5", "Proxy-Connection: close", "Set-Cookie: a=1",
            "Set-Cookie: b=2", "Upgrade: h2c", "content-length: 3", "Content-Length: 3",
            "WWW-Authenticate: NTLM",
        ), "GET",
    )  # fmt: skip
    lines = (
        "HTTP/1.1 200 Very OK", "ETag: x", "Set-Cookie: a=1", "Set-Cookie: b=2",
        "content-length: 3", "WWW-Authenticate: NTLM",
    )  # fmt: skip
    assert forwarded_answer(answer, close=False) == head(*lines)
    assert forwarded_answer(answer, close=True) == head(*lines, "Connection: close")


def test_repeated_lines_are_one_list() -> None:
    lines = "Connection: X-One", "Connection: keep-alive, x-two", "X-One: 1", "X-Two: 2"
    answer = parse_answer(head("HTTP/1.1 200 OK", "Content-Length: 0", *lines), "GET")
    assert answer.says_so
    assert answer.reusable
    expected = head("HTTP/1.1 200 OK", "Content-Length: 0")
    assert forwarded_answer(answer, close=False) == expected
    lines = "Connection: keep-alive", "Connection: close"
    assert not parse_answer(head("HTTP/1.1 200 OK", "Content-Length: 0", *lines), "GET").reusable


def test_the_version_is_that_of_the_proxy() -> None:
    answer = parse_answer(head("HTTP/1.0 404", "Content-Length: 0"), "GET")
    assert forwarded_answer(answer, close=False) == head("HTTP/1.1 404 ", "Content-Length: 0")


NONE, LENGTH, CHUNKED, CONNECTION = "none", "length", "chunked", "connection"
FRAMING = ("Content-Length: 5",), ("Transfer-Encoding: chunked",), ()


@pytest.mark.parametrize(
    ("method", "status", "lines", "end"),
    [
        ("GET", 200, ["Content-Length: 5"], LENGTH),
        ("GET", 200, ["Content-Length: 5", "Content-Length: 5"], LENGTH),
        ("GET", 200, ["Transfer-Encoding: Chunked"], CHUNKED),
        ("GET", 200, [], CONNECTION),
        ("GET", 200, ["Content-Length: 0"], NONE),
        ("HEAD", 200, ["Content-Length: 5"], NONE),
        ("HEAD", 200, ["Transfer-Encoding: chunked"], NONE),
        ("HEAD", 200, [], NONE),
        ("GET", 304, ["Content-Length: 5"], NONE),
        ("GET", 304, [], NONE),
        ("GET", 204, ["Content-Length: 5"], NONE),
        ("GET", 204, ["Transfer-Encoding: chunked"], NONE),
        ("GET", 100, ["Content-Length: 5"], NONE),
        ("GET", 101, ["Transfer-Encoding: chunked"], NONE),
        ("GET", 205, ["Content-Length: 5"], LENGTH),
    ],
)
def test_where_the_body_ends(method: str, status: int, lines: list[str], end: str) -> None:
    answer = parse_answer(head(f"HTTP/1.1 {status} X", *lines), method)
    body = answer.body
    found = (
        NONE if body.over else CHUNKED if body.chunked
        else CONNECTION if body.ends_with_connection else LENGTH
    )  # fmt: skip
    assert found == end
    assert answer.reusable == (end != CONNECTION)
    assert answer.interim == (status == 100)
    passed = forwarded_answer(answer, close=False)
    # These have no body, so a length could only mislead (RFC 9110, 8.6).
    assert (b"5" in passed or b"hunked" in passed) == (bool(lines) and status not in (100, 101, 204)
                                                       and lines != ["Content-Length: 0"])


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5, 5"],
        ["Content-Length: -5"],
        ["Content-Length: 0x5"],
        ["Transfer-Encoding: gzip"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding: chunked, chunked"],
        ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding : chunked"],
        ["Transfer-Encoding: \x0bchunked"],
        ["X: a\rContent-Length: 5"],
        [" Content-Length: 5"],
        ["no colon"],
    ],
)
def test_ambiguous_framing_is_refused(lines: list[str]) -> None:
    with pytest.raises(HttpError) as raised:
        parse_answer(head("HTTP/1.1 200 OK", *lines), "GET")
    assert raised.value.status == 502


def test_chunks_of_http_1_0_are_refused() -> None:
    with pytest.raises(HttpError, match=r"HTTP/1\.0"):
        parse_answer(head("HTTP/1.0 200 OK", "Transfer-Encoding: chunked"), "GET")


@pytest.mark.parametrize(
    "first", ["HTTP/1.1 20 OK", "HTTP/1.1 2000", "HTTP/1.1 099 X", "ICY 200 OK", "HTTP/1.1", ""]
)
def test_invalid_responses_are_refused(first: str) -> None:
    with pytest.raises(HttpError) as raised:
        parse_answer(head(first), "GET")
    assert raised.value.status == 502


@pytest.mark.parametrize(
    ("version", "lines", "reusable", "says_so", "keep_time"),
    [
        ("1.1", [], True, False, None),
        ("1.1", ["Connection: close"], False, False, None),
        ("1.1", ["Connection: Keep-Alive", "Keep-Alive: timeout=5, max=99"], True, True, 5.0),
        ("1.1", ["Keep-Alive: max=3,timeout = 12"], True, False, 12.0),
        ("1.1", ["Keep-Alive: nontimeout=5"], True, False, None),
        ("1.0", [], False, False, None),
        ("1.0", ["Connection: keep-alive"], True, True, None),
    ],
)
def test_whether_the_origin_keeps_its_connection(
    version: str, lines: list[str], reusable: bool, says_so: bool, keep_time: float | None
) -> None:
    wire = head(f"HTTP/{version} 200 OK", "Content-Length: 1", *lines)
    answer = parse_answer(wire, "GET")
    assert (answer.reusable, answer.says_so, answer.keep_time) == (reusable, says_so, keep_time)


def test_an_upgrade_is_passed_on() -> None:
    lines = ("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Sec-WebSocket-Accept: x")
    answer = parse_answer(head(*lines, "Connection: upgrade"), "GET")
    assert not answer.interim
    assert forwarded_answer(answer, close=False) == head(*lines, "Connection: Upgrade")
    required = parse_answer(head("HTTP/1.1 426 X", "Upgrade: a", "Content-Length: 0"), "GET")
    assert forwarded_answer(required, close=True) == head(
        "HTTP/1.1 426 X", "Upgrade: a", "Content-Length: 0", "Connection: Upgrade, close"
    )


def test_interim_responses_do_not_affect_persistence() -> None:
    answer = parse_answer(head("HTTP/1.1 103 Hints", "Link: </x>", "Connection: close"), "GET")
    assert forwarded_answer(answer, close=True) == head("HTTP/1.1 103 Hints", "Link: </x>")


def test_an_answer_without_chunks() -> None:
    wire = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked", "Trailer: X", "A: 1")
    answer = parse_answer(wire, "GET")
    expected = head("HTTP/1.1 200 OK", "A: 1", "Connection: close")
    assert forwarded_answer(answer, close=True, unchunked=True) == expected


def test_noise_is_an_answer_or_refused() -> None:
    rng = random.Random(6)
    good = head("HTTP/1.1 200 OK", "Content-Length: 5", "Connection: close", "Keep-Alive: max=5")
    accepted = refused = 0
    for _ in range(3000):
        noise = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            noise[rng.randrange(len(noise) - 4)] = rng.choice(b"\0\r\n :,=C5\xff")
        try:
            answer = parse_answer(bytes(noise), "GET")
        except HttpError as error:
            assert error.status == 502
            refused += 1
            continue
        accepted += 1
        # What is passed on is one answer with the same framing, for every parser.
        passed = parse_response(forwarded_answer(answer, close=True))
        assert passed.status == answer.status
        again = parse_answer(forwarded_answer(answer, close=True), "GET")
        assert (again.body.left, again.body.over) == (answer.body.left, answer.body.over)
    assert min(accepted, refused) > 300
