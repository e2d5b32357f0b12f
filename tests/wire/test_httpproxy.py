"""Requests to an HTTP proxy: where they go, what is forwarded, where their bodies end."""

from __future__ import annotations

import random
from base64 import b64encode

import pytest

from mtt.outcome import Outcome
from mtt.wire.http1 import HttpError, Request, parse_request
from mtt.wire.httpproxy import connect_request, failure, login, login_wanted, parse
from tests.wire.http_heads import head

DATE = "Mon, 02 Jan 2006 15:04:05 GMT"


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [
        ("example.com:443", "example.com", 443),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[2001:DB8::1]:65535", "2001:db8::1", 65535),
        ("[::ffff:127.0.0.1]:80", "127.0.0.1", 80),
    ],
)
def test_connect(target: str, host: str, port: int) -> None:
    asked = parse(head(f"CONNECT {target} HTTP/1.1", f"Host: {target}"))
    assert (asked.host, asked.port, asked.head, asked.body) == (host, port, b"", None)


@pytest.mark.parametrize(
    ("uri", "host", "port", "target", "header"),
    [
        ("http://a.example/x?y=%2F", "a.example", 80, "/x?y=%2F", "a.example"),
        ("HTTP://a.example:8080", "a.example", 8080, "/", "a.example:8080"),
        ("http://a.example?q", "a.example", 80, "/?q", "a.example"),
        ("http://a.example:/", "a.example", 80, "/", "a.example:"),
        ("http://[::1]:81/", "::1", 81, "/", "[::1]:81"),
        ("http://127.0.0.1//x//", "127.0.0.1", 80, "//x//", "127.0.0.1"),
        ("http://a/http://b/", "a", 80, "/http://b/", "a"),
    ],
)
def test_an_absolute_uri_becomes_a_path_and_a_host(
    uri: str, host: str, port: int, target: str, header: str
) -> None:
    asked = parse(head(f"GET {uri} HTTP/1.1", "Host: other.example"))
    assert (asked.host, asked.port) == (host, port)
    expected = head(f"GET {target} HTTP/1.1", f"Host: {header}", "Connection: keep-alive")
    assert asked.head == expected


def test_options_for_the_server_as_such() -> None:
    lines = parse(head("OPTIONS http://a HTTP/1.1", "Host: a")).head.split(b"\r\n")
    assert lines[0] == b"OPTIONS * HTTP/1.1"
    lines = parse(head("OPTIONS http://a/ HTTP/1.1", "Host: a")).head.split(b"\r\n")
    assert lines[0] == b"OPTIONS / HTTP/1.1"


def test_a_fragment_is_dropped() -> None:
    for uri in ("http://a/x?y#fragment", "http://a/x?y#"):
        asked = parse(head(f"GET {uri} HTTP/1.1", "Host: a"))
        assert asked.head.startswith(b"GET /x?y HTTP/1.1\r\nHost: a\r\n")
    assert parse(head("GET http://a#f HTTP/1.1", "Host: a")).head.startswith(b"GET / HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("userinfo", "credentials"),
    [
        ("user:password", b"user:password"),
        ("user", b"user:"),
        ("user:", b"user:"),
        (":password", b":password"),
        ("us%20er:p%3Aw%40%C3%B6", "us er:p:w@ö".encode()),
        ("user:a:b%", b"user:a:b%"),
    ],
)
def test_user_and_password_in_a_uri_become_a_header(userinfo: str, credentials: bytes) -> None:
    asked = parse(head(f"GET http://{userinfo}@a:81/x HTTP/1.1", "Host: a", "X: 1"))
    value = b64encode(credentials).decode()
    assert (asked.host, asked.port) == ("a", 81)
    assert asked.head == head(
        "GET /x HTTP/1.1", "Host: a:81", "X: 1", f"Authorization: Basic {value}",
        "Connection: keep-alive",
    )  # fmt: skip


def test_user_and_password_in_the_host_header_are_ignored() -> None:
    asked = parse(head("GET http://a/ HTTP/1.1", "Host: user:p%40ss@a"))
    assert asked.head == head("GET / HTTP/1.1", "Host: a", "Connection: keep-alive")
    with pytest.raises(HttpError, match="malformed Host"):
        parse(head("GET http://a/ HTTP/1.1", "Host: user@a/"))
    with pytest.raises(HttpError, match="malformed Host"):
        parse_request(head("GET / HTTP/1.1", "Host: user@a"))


def test_an_authorization_header_precedes_user_and_password_in_a_uri() -> None:
    asked = parse(head("GET http://u:p@a/ HTTP/1.1", "Host: a", "authorization: Bearer x"))
    assert asked.head == head(
        "GET / HTTP/1.1", "Host: a", "authorization: Bearer x", "Connection: keep-alive"
    )
    assert b"uthorization" not in parse(head("GET http://@a/ HTTP/1.1", "Host: a")).head


def test_proxy_headers_are_not_forwarded() -> None:
    asked = parse(
        head(
            "POST http://a/ HTTP/1.1", "Host: a", "X-One: 1", "connection: X-Mine, keep-alive",
            "x-mine: 1", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive",
            "Proxy-Authorization: Basic YTpi", "TE: gzip", "Upgrade: h2c", "X-One: 2",
            "content-length: 3", "Content-Length: 3", "Authorization: Basic Yzpk",
        )
    )  # fmt: skip
    assert asked.head == head(
        "POST / HTTP/1.1", "Host: a", "X-One: 1", "X-One: 2", "content-length: 3",
        "Authorization: Basic Yzpk", "Connection: keep-alive",
    )  # fmt: skip


def test_trailers_are_asked_for_if_the_client_wants_them() -> None:
    lines = "TE: trailers, gzip;q=1", "Connection: TE"
    asked = parse(head("GET http://a/ HTTP/1.1", "Host: a", *lines))
    expected = head("GET / HTTP/1.1", "Host: a", "TE: trailers", "Connection: TE, keep-alive")
    assert asked.head == expected


@pytest.mark.parametrize(
    ("version", "lines", "option"),
    [
        ("1.1", [], "keep-alive"),
        ("1.1", ["Connection: close"], "close"),
        ("1.1", ["Proxy-Connection: close"], "close"),
        ("1.1", ["Connection: keep-alive, Close"], "close"),
        ("1.0", [], "close"),
        ("1.0", ["Connection: keep-alive"], "close"),  # RFC 9112, 9.3
    ],
)
def test_whether_the_origin_may_keep_its_connection(
    version: str, lines: list[str], option: str
) -> None:
    asked = parse(head(f"GET http://a/ HTTP/{version}", "Host: a", *lines))
    assert asked.head.endswith(f"\r\nConnection: {option}\r\n\r\n".encode())


UPGRADE = ("Connection: keep-alive, Upgrade", "Upgrade: websocket")


def test_an_upgrade_is_passed_on() -> None:
    asked = parse(head("GET http://a/ HTTP/1.1", "Host: a", *UPGRADE))
    assert asked.upgrade
    assert asked.head == head(
        "GET / HTTP/1.1", "Host: a", "Upgrade: websocket", "Connection: Upgrade"
    )


def test_repeated_lines_are_one_list() -> None:
    lines = (
        "Connection: X-One", "Connection: upgrade, x-two", "Upgrade: x/1", "Upgrade: websocket",
        "X-One: 1", "X-Two: 2",
    )  # fmt: skip
    asked = parse(head("GET http://a/ HTTP/1.1", "Host: a", *lines))
    assert asked.upgrade
    assert asked.head == head(
        "GET / HTTP/1.1", "Host: a", "Upgrade: x/1", "Upgrade: websocket", "Connection: Upgrade"
    )
    newer = parse(head("GET http://a/ HTTP/1.1", "Host: a", *UPGRADE, "Upgrade: h2c"))
    assert not newer.upgrade


@pytest.mark.parametrize(
    ("version", "lines"),
    [
        ("1.0", UPGRADE),
        ("1.1", ["Upgrade: websocket"]),
        ("1.1", ["Connection: upgrade"]),
        ("1.1", ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x"]),
    ],
)
def test_invalid_upgrades_are_not_forwarded(version: str, lines: list[str]) -> None:
    asked = parse(head(f"GET http://a/ HTTP/{version}", "Host: a", *lines))
    assert not asked.upgrade
    assert b"pgrade" not in asked.head
    assert b"HTTP2" not in asked.head


def test_an_expectation_is_passed_on_but_not_for_http_1_0() -> None:
    lines = ("Host: a", "Content-Length: 1", "Expect: 100-continue")
    assert b"\r\nExpect: 100-continue\r\n" in parse(head("PUT http://a/ HTTP/1.1", *lines)).head
    assert b"Expect" not in parse(head("PUT http://a/ HTTP/1.0", *lines)).head


@pytest.mark.parametrize("framing", ["Content-Length: 3", "Transfer-Encoding: chunked"])
def test_connection_cannot_take_the_framing_away(framing: str) -> None:
    names = "Connection: content-length, transfer-encoding, host"
    asked = parse(head("POST http://a/ HTTP/1.1", "Host: a", framing, names))
    assert framing.encode() in asked.head.split(b"\r\n")
    assert b"Host: a" in asked.head.split(b"\r\n")


def test_the_version_is_that_of_the_proxy() -> None:
    assert parse(head("GET http://a/ HTTP/1.0")).head.startswith(b"GET / HTTP/1.1\r\nHost: a\r\n")
    assert parse(head("GET http://a/ HTTP/1.9", "Host: a")).head.startswith(b"GET / HTTP/1.1\r\n")


def test_bytes_that_are_no_text_pass_unchanged() -> None:
    raw = b"GET http://a/\xff\xc3\xbc HTTP/1.1\r\nHost: a\r\nX-Name: \xff\xfc\r\n\r\n"
    assert parse(raw).head == (
        b"GET /\xff\xc3\xbc HTTP/1.1\r\nHost: a\r\nX-Name: \xff\xfc\r\n"
        b"Connection: keep-alive\r\n\r\n"
    )


@pytest.mark.parametrize(
    "first",
    [
        "GET / HTTP/1.1",
        "OPTIONS * HTTP/1.1",
        "GET https://a/ HTTP/1.1",
        "GET ftp://a/ HTTP/1.1",
        "GET http:/a/ HTTP/1.1",
        "GET http:///path HTTP/1.1",
        "GET http://user:password@b@a/ HTTP/1.1",
        "GET http://us%3Aer:password@a/ HTTP/1.1",
        "GET http://a:0/ HTTP/1.1",
        "GET http://a:65536/ HTTP/1.1",
        "GET http://a:99999999999999999999/ HTTP/1.1",
        "GET http://a:80:80/ HTTP/1.1",
        "GET http://::1/ HTTP/1.1",
        "GET http://[::1/ HTTP/1.1",
        "GET http://[a]/ HTTP/1.1",
        "GET http://[127.0.0.1]/ HTTP/1.1",
        "GET http://[fe80::1%25eth0]/ HTTP/1.1",
        f"GET http://{'a' * 256}/ HTTP/1.1",
        "CONNECT a HTTP/1.1",
        "CONNECT a: HTTP/1.1",
        "CONNECT a:0 HTTP/1.1",
        "CONNECT a:http HTTP/1.1",
        "CONNECT :443 HTTP/1.1",
        "CONNECT /a:443 HTTP/1.1",
        "CONNECT u@a:443 HTTP/1.1",
        "CONNECT http://a:443/ HTTP/1.1",
        "CONNECT * HTTP/1.1",
    ],
)
def test_invalid_proxy_requests_are_refused(first: str) -> None:
    with pytest.raises(HttpError) as raised:
        parse(head(first, "Host: a"))
    assert raised.value.status == 400
    assert b"password" not in raised.value.answer


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 3", "Content-Length: 4"],
        ["Content-Length: 3", "Transfer-Encoding: chunked"],
        ["Content-Length: 3, 3"],
        ["Content-Length: +3"],
        ["Transfer-Encoding: gzip, chunked"],
        ["Transfer-Encoding : chunked"],
        ["Host: b"],
    ],
)
def test_ambiguous_framing_is_refused(lines: list[str]) -> None:
    with pytest.raises(HttpError):
        parse(head("POST http://a/ HTTP/1.1", "Host: a", *lines))
    with pytest.raises(HttpError):
        parse(head("CONNECT a:1 HTTP/1.1", "Host: a", *lines))


@pytest.mark.parametrize("line", ["Content-Length: 1", "Transfer-Encoding: chunked"])
def test_a_connect_has_no_body(line: str) -> None:
    with pytest.raises(HttpError, match="CONNECT with a body"):
        parse(head("CONNECT a:1 HTTP/1.1", "Host: a", line))


# Users.


def request(*lines: str, method: str = "GET") -> Request:
    return parse_request(head(f"{method} http://a/ HTTP/1.1", "Host: a", *lines))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("Basic dXNlcjpwYXNz", (b"user", b"pass")),
        ("bAsIc   dXNlcjpwYTpzcw== ", (b"user", b"pa:ss")),
        ("Basic Og==", (b"", b"")),
        ("Basic w7w6w7w=", ("ü".encode(), "ü".encode())),
        ("Basic dXNlcg==", None),
        ("Basic ?", None),
        ("Basic", None),
        ("Bearer dXNlcjpwYXNz", None),
        ("Basic dXNlcjpw\xe4", None),
    ],
)
def test_user_and_password(value: str, found: tuple[bytes, bytes] | None) -> None:
    assert login(request(f"Proxy-Authorization: {value}")) == found


def test_unusable_credentials() -> None:
    assert login(request("Authorization: Basic dXNlcjpwYXNz")) is None


# Answers.


def test_answer_to_missing_credentials() -> None:
    answer = login_wanted().encode(request(), date=DATE, close=True)
    assert answer.startswith(b"HTTP/1.1 407 Proxy Authentication Required\r\n")
    assert b'\r\nProxy-Authenticate: Basic realm="proxy"' in answer
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.GENERAL_FAILURE, b"502 Bad Gateway"),
        (Outcome.NOT_ALLOWED, b"403 Forbidden"),
        (Outcome.NETWORK_UNREACHABLE, b"502 Bad Gateway"),
        (Outcome.HOST_UNREACHABLE, b"502 Bad Gateway"),
        (Outcome.CONNECTION_REFUSED, b"502 Bad Gateway"),
        (Outcome.TIMED_OUT, b"504 Gateway Timeout"),
    ],
)
def test_answer_for_a_failed_destination(outcome: Outcome, status: bytes) -> None:
    answer = failure(outcome).encode(request(), date=DATE, close=True)
    assert answer.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert answer.endswith(b"\r\n\r\n" + outcome.text.encode() + b"\n")
    only_head = failure(outcome).encode(request(method="HEAD"), date=DATE, close=True)
    assert only_head.endswith(b"\r\n\r\n")


def test_noise_is_a_request_or_refused() -> None:
    rng = random.Random(9)
    good = head("POST http://a.example:80/x HTTP/1.1", "Host: a", "Content-Length: 5")
    accepted = refused = 0
    for _ in range(3000):
        noise = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(noise) - 4)
            noise[at] = rng.choice(b"\0\r\n :/@[]#?%aC5\xff")
        try:
            asked = parse(bytes(noise))
        except HttpError as error:
            assert 400 <= error.status <= 505
            refused += 1
            continue
        accepted += 1
        # What is forwarded is one request with the same framing, for every parser.
        again = parse_request(asked.head)
        assert (again.content_length, again.chunked) == (
            asked.request.content_length, asked.request.chunked,
        )  # fmt: skip
    assert min(accepted, refused) > 300


@pytest.mark.parametrize(
    ("host", "sent"),
    [
        ("example.com", "example.com"),
        ("example.com.", "example.com."),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "[2001:db8::1]"),
        ("fe80::1%eth0", "[fe80::1]"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
    ],
)
def test_connect_request_is_what_a_proxy_reads(host: str, sent: str) -> None:
    raw = connect_request(host, 443)
    assert raw == head(f"CONNECT {sent}:443 HTTP/1.1", f"Host: {sent}:443")
    asked = parse(raw)
    assert (asked.host, asked.port) == (sent.strip("[]"), 443)
    assert login(asked.request) is None


@pytest.mark.parametrize(
    ("user", "password", "raw"),
    [
        ("user", "pass:word", (b"user", b"pass:word")),
        ("u", "", (b"u", b"")),
        ("\u00fc", "\udcff", ("\u00fc".encode(), b"\xff")),
    ],
)
def test_connect_request_carries_the_login(
    user: str, password: str, raw: tuple[bytes, bytes]
) -> None:
    assert login(parse(connect_request("a", 1, (user, password))).request) == raw


@pytest.mark.parametrize("host", ["", "a b", "a\r\nX: y", "a/b", "\u00fc" * 70])
def test_connect_request_refuses_what_is_no_host(host: str) -> None:
    with pytest.raises(ValueError, match=r"neither|label"):
        connect_request(host, 1)
