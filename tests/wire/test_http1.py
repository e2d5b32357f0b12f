"""Heads of HTTP requests: what is understood, what is refused, and with which words; noise."""

from __future__ import annotations

import random
import time

import pytest

from mtt.wire.http1 import (
    MAX_HEAD,
    HttpError,
    find_head_end,
    may_be_request,
    parse_request,
    parse_request_line,
    parse_response,
)
from tests.support.vectors import WSS, handshake
from tests.wire.http_heads import get

# Finding the end of a head.


def test_head_end_is_found_whole_in_pieces_and_before_more_data() -> None:
    for name in WSS:
        for head in handshake(name):
            assert find_head_end(head) == len(head)
            assert find_head_end(head + b"\x82\x05hello") == len(head)
            buffer, scanned = bytearray(), 0
            for byte in head[:-1]:
                buffer.append(byte)
                assert find_head_end(buffer, scanned) == -1
                scanned = len(buffer)
            buffer += head[-1:]
            assert find_head_end(buffer, scanned) == len(head)


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n"])
def test_lines_may_end_in_a_bare_lf(end: bytes) -> None:
    head = b"GET / HTTP/1.1\nHost: a" + end
    assert find_head_end(head) == len(head)
    assert parse_request(head).headers == [("host", "a")]


# Requests.


@pytest.mark.parametrize("name", WSS)
def test_recorded_requests_are_understood(name: str) -> None:
    request = parse_request(handshake(name)[0])
    assert (request.method, request.version, request.host) == ("GET", (1, 1), "test.local")
    assert request.path == request.target == ("/tunnel" if name.startswith("d-") else "/")
    assert [name for name, _ in request.headers] == [
        "host",
        "user-agent",
        "connection",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "upgrade",
    ]
    assert request.tokens("connection") == ["upgrade"]
    assert not request.has_body


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", ""),
        ("/%77s?x=1", "/ws", "x=1"),
        ("/a%2Fb+c", "/a/b+c", ""),
        ("/a#b", "/a#b", ""),
        ("/%C3%A9", "/é", ""),
        ("/é", "/é", ""),
        ("/%FF%00", "/\udcff\0", ""),
        ("//ws", "//ws", ""),
        ("/a?b?c", "/a", "b?c"),
        ("/?%zz", "/", "%zz"),
        ("*", "*", ""),
    ],
)
def test_targets_are_split_and_paths_decoded(target: str, path: str, query: str) -> None:
    request = get(target=target)
    assert (request.target, request.path, request.query) == (target, path, query)
    assert request.host == "a"


def test_every_byte_of_a_path_survives() -> None:
    escaped = "".join(f"%{byte:02x}" for byte in range(256))
    path = get(target="/" + escaped).path
    assert path.encode("utf-8", "surrogateescape") == b"/" + bytes(range(256))


def test_an_absolute_target_names_the_host() -> None:
    request = get(target="http://any:8080/p%20q?x")
    assert (request.host, request.path, request.query) == ("any:8080", "/p q", "x")
    request = get(target="https://user:secret@any?x")
    assert (request.host, request.path, request.query) == ("any", "", "x")


def test_connect_names_a_host_instead_of_a_path() -> None:
    request = parse_request(b"CONNECT any:443 HTTP/1.1\r\n\r\n")
    assert (request.path, request.host) == ("", "any:443")


def test_header_lists_names_and_values() -> None:
    request = get("X-List: a , B,,", "x-list:C", "Empty:", "Tab:\t\xa0x \t")
    assert request.tokens("x-list") == ["a", "b", "c"]
    assert request.first("x-list") == "a , B,,"
    assert request.first("empty") == ""
    assert request.first("absent") is None
    assert request.first("tab") == "\xc2\xa0x"  # octets, not text


def test_folded_lines_are_joined() -> None:
    request = get("Transfer-Encoding:", "\tchunked", "X: a", "  b")
    assert request.chunked
    assert request.first("x") == "a b"


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [
        ("1.1", "X: y", True),
        ("1.1", "Connection: foo, Close", False),
        ("1.0", "X: y", False),
        ("1.0", "Connection: Keep-Alive", True),
        ("1.0", "Connection: keep-alive, close", False),
        ("1.2", "X: y", True),
    ],
)
def test_keep_alive(version: str, connection: str, keep_alive: bool) -> None:
    assert get(connection, version=version).keep_alive is keep_alive


def test_keep_alive_reads_every_connection_line() -> None:
    assert not get("Connection: foo", "Connection: close").keep_alive
    assert get("Connection: foo", "Connection: keep-alive", version="1.0").keep_alive


def test_content_length() -> None:
    assert get("Content-Length: 5").content_length == 5
    assert get("Content-Length: 5", "Content-Length: 5").content_length == 5
    assert get("Content-Length: 5").has_body
    assert not get("Content-Length: 0").has_body


def test_host_may_be_missing_in_http_1_0_and_empty() -> None:
    assert parse_request(b"GET / HTTP/1.0\r\n\r\n").host == ""
    assert parse_request(b"GET / HTTP/1.1\r\nHost:\r\n\r\n").host == ""


BAD = {
    "nothing": (b"\r\n\r\n", 400, ""),
    "garbage": (b"SSH-2.0-OpenSSH_9.2p1\r\n\r\n", 400, ""),
    "incomplete": (b"GET / HTTP/1.1\r\nHost: a\r\n", 400, ""),
    "more than a head": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\nx", 400, ""),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    "space in target": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    "control in target": (b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    "method": (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    "relative target": (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    "opaque target": (b"GET http:x HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    "target host": (b"GET http://a<b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    "percent": (b"GET /%zz HTTP/1.1\r\nHost: a\r\n\r\n", 400, ""),
    "version": (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400, ""),
    "http/0.9": (b"GET /\r\n\r\n", 400, ""),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\n", 505, "unsupported protocol version"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, "missing required Host header"),
    "hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, "too many Host headers"),
    "host": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "malformed Host header"),
    "name": (b"GET / HTTP/1.1\r\nHost: a\r\nX Y: z\r\n\r\n", 400, "invalid header name"),
    "blank": (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, "invalid header name"),
    "name bytes": (b"GET / HTTP/1.1\r\nHost: a\r\nX(: z\r\n\r\n", 400, ""),
    "empty name": (b"GET / HTTP/1.1\r\nHost: a\r\n: z\r\n\r\n", 400, ""),
    "no colon": (b"GET / HTTP/1.1\r\nHost: a\r\nxyz\r\n\r\n", 400, ""),
    "value": (b"GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n", 400, ""),
    "bare cr": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rY: b\r\n\r\n", 400, ""),
    "first folded": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, ""),
}
SMUGGLED = {
    "both": ("Content-Length: 5", "Transfer-Encoding: chunked", 400),
    "differing": ("Content-Length: 5", "Content-Length: 6", 400),
    "list": ("Content-Length: 5, 5", "X: y", 400),
    "plus": ("Content-Length: +5", "X: y", 400),
    "negative": ("Content-Length: -1", "X: y", 400),
    "empty": ("Content-Length:", "X: y", 400),
    "hex": ("Content-Length: 0x5", "X: y", 400),
    "digits": ("Content-Length: \u0665", "X: y", 400),
    "huge": ("Content-Length: " + "9" * 5000, "X: y", 400),
    "gzip": ("Transfer-Encoding: gzip, chunked", "X: y", 501),
    "identity": ("Transfer-Encoding: identity", "X: y", 501),
    "twice": ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked", 501),
    "vtab": ("Transfer-Encoding: \x0bchunked", "X: y", 400),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_requests_are_refused_as_by_go(name: str) -> None:
    head, status, told = BAD[name]
    with pytest.raises(HttpError) as caught:
        parse_request(head)
    words = {400: "400 Bad Request", 505: "505 HTTP Version Not Supported"}[status]
    words += f": {told}" if told else ""
    assert caught.value.reason
    assert caught.value.answer == (
        f"HTTP/1.1 {words}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Connection: close\r\n\r\n{words}"
    ).encode("ascii")


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_body_of_doubtful_length_is_refused(name: str) -> None:
    first, second, status = SMUGGLED[name]
    with pytest.raises(HttpError) as caught:
        get(first, second, method="POST")
    assert caught.value.status == status


def test_transfer_encoding_in_http_1_0_is_refused() -> None:
    with pytest.raises(HttpError):
        get("Transfer-Encoding: chunked", version="1.0")


def test_answers_to_unknown_transfer_encoding_and_large_head() -> None:
    assert HttpError(501, "x").answer == (
        b"HTTP/1.1 501 Not Implemented\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Connection: close\r\n\r\nUnsupported transfer encoding"
    )
    assert HttpError(431, "x").answer.endswith(b"\r\n\r\n431 Request Header Fields Too Large")


def test_the_first_line_alone_is_enough_to_refuse() -> None:
    assert parse_request_line(b"GET /x HTTP/1.1") == ("GET", b"/x", (1, 1))
    with pytest.raises(HttpError):
        parse_request_line(b"\x16\x03\x01")


# Fuzzing.


def test_any_bytes_are_a_request_or_an_error() -> None:
    rng = random.Random(6455)
    seeds = [handshake(name)[0] for name in WSS] + [head for head, _, _ in BAD.values()]
    pieces = [
        b"\r\n",
        b"\n",
        b" ",
        b":",
        b"\t",
        b"%",
        b"\0",
        b"\xff",
        b"HTTP/1.",
        b"?",
        b"//",
        b",",
    ]
    outcomes = set()
    for _ in range(6000):
        head = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(head) + 1)
            head[at : at + rng.randrange(3)] = rng.choice([*pieces, rng.randbytes(2)])
        for parse in (parse_request, parse_response):
            end = find_head_end(head)
            try:
                parse(bytes(head[:end] if end > 0 else head))
            except HttpError as error:
                outcomes.add(error.status)
                assert error.answer.startswith(b"HTTP/1.1 ")
            else:
                outcomes.add(200)
    assert outcomes >= {200, 400, 502, 505}


@pytest.mark.parametrize(
    "filling",
    [b" ", b"\t", b"a", b":", b"%", b"%41", b"\n ", b"\r\n\t", b"a:\n", b",", b"@", b"/.", b"\r"],
)
def test_parsing_takes_linear_time(filling: bytes) -> None:
    bulk = (filling * MAX_HEAD)[:MAX_HEAD]
    started = time.process_time()
    for head in (bulk, b"GET " + bulk, b"GET / HTTP/1.1\r\nHost: a\r\nX:" + bulk + b"\0"):
        end = head.rstrip(b"\r\n") + b"\r\n\r\n"
        for parse in (parse_request, parse_response):
            try:
                parse(end)
            except HttpError:
                continue
    # A few milliseconds; anything quadratic takes minutes.
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"G", True),
        (b"GET ", True),
        (b"GET /a b", True),
        (b"GET /\xc3\xa9 HTTP/1.1\r", True),
        (b"GET / HTTP/1.1\r\n\0", True),  # only the line counts
        (b"SSH-2.0-x\r\n", True),
        (b"", False),
        (b" GET / HTTP/1.1\r\n", False),
        (b"\r\nGET / HTTP/1.1\r\n", False),
        (b"\x16\x03\x01", False),
        (b"G\xc9T / HTTP/1.1\r\n", False),
        (b"GET /\0", False),
        (b"GET / \rHTTP/1.1\r\n", False),
    ],
)
def test_may_be_request_accepts_prefixes(data: bytes, expected: bool) -> None:
    assert may_be_request(data) is expected
