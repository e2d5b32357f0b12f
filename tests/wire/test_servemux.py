"""Path rules: which requests reach the tunnel, and what the others are told."""

from __future__ import annotations

import random

import pytest

from mtt.wire.http1 import Reply
from mtt.wire.servemux import NOT_FOUND, ServeMux, clean_path
from tests.wire.http_heads import get


def route(pattern: str, target: str, method: str = "GET") -> Reply | None:
    return ServeMux(pattern).route(get(target=target, method=method))


def location(pattern: str, target: str, method: str = "GET") -> str | None:
    """Where `target` is redirected to; None if it is not."""
    reply = route(pattern, target, method)
    return dict(reply.headers)["Location"] if reply and reply.status == 301 else None


@pytest.mark.parametrize("target", ["/", "/ws", "/a/b?c", "/%2e%2ex", "http://any/p", "/a/"])
def test_a_single_slash_matches_every_path(target: str) -> None:
    assert route("/", target) is None


@pytest.mark.parametrize("target", ["/ws", "/%77s", "/ws?x=1", "http://any/ws", "/%77%73?"])
def test_path_matches_its_escaped_forms(target: str) -> None:
    assert route("/ws", target) is None


@pytest.mark.parametrize(
    "target", ["/", "/ws/", "/ws/x", "/WS", "/wsx", "/w+s", "/ws%00", "/ws%2F"]
)
def test_a_path_matches_nothing_else(target: str) -> None:
    assert route("/ws", target) == NOT_FOUND
    assert (NOT_FOUND.status, NOT_FOUND.body) == (404, b"404 page not found\n")
    assert dict(NOT_FOUND.headers) == {
        "Content-Type": "text/plain; charset=utf-8",
        "X-Content-Type-Options": "nosniff",
    }


def test_a_slash_at_the_end_makes_a_subtree() -> None:
    assert route("/ws/", "/ws/") is None
    assert route("/ws/", "/ws/deep/er") is None
    assert route("/ws/", "/wsx") == NOT_FOUND
    assert route("/ws/", "/") == NOT_FOUND


def test_the_root_of_a_subtree_is_redirected_with_its_query() -> None:
    assert location("/ws/", "/ws") == "/ws/"
    assert location("/ws/", "/ws?x=1&y") == "/ws/?x=1&y"
    assert location("/ws/", "//ws") == "/ws/"
    assert location("/ws/", "http://any/ws") == "/ws/"


@pytest.mark.parametrize(
    ("target", "to"),
    [
        ("//ws", "/ws"),
        ("/a/../ws", "/ws"),
        ("/./ws?q", "/ws?q"),
        ("/ws//", "/ws/"),
        ("/../..", "/"),
        ("/a/%2e%2e/ws", "/ws"),
        ("//a%20b", "/a%20b"),
        ("//%C3%A9!?é", "/%C3%A9%21?%c3%a9"),
        ("//%FF", "/%FF"),
        ("//evil.example/x%2F..", "/evil.example"),
        ("http://any", "/"),
    ],
)
def test_unclean_paths_are_redirected(target: str, to: str) -> None:
    assert location("/ws", target) == to
    assert location("/ws", to) is None


def test_the_page_of_a_redirect() -> None:
    reply = route("/", "//ws?a&'b\"")
    assert reply == Reply(
        301,
        (("Content-Type", "text/html; charset=utf-8"), ("Location", "/ws?a&'b\"")),
        b'<a href="/ws?a&amp;&#39;b&#34;">Moved Permanently</a>.\n\n',
    )
    head = route("/", "//ws", "HEAD")
    assert head is not None and head.body == b"" and len(head.headers) == 2
    assert route("/", "//ws", "POST") == Reply(301, (("Location", "/ws"),))


def test_connect_paths_are_not_cleaned() -> None:
    assert route("/ws", "//ws", "CONNECT") == NOT_FOUND
    assert route("/", "//ws", "CONNECT") is None
    assert location("/ws/", "/ws", "CONNECT") == "/ws/"
    assert route("/", "any:443", "CONNECT") == NOT_FOUND


def test_the_server_as_such() -> None:
    assert route("/", "*", "OPTIONS") == Reply(200)
    reply = route("/", "*")
    assert reply is not None and reply.status == 400 and reply.closes


@pytest.mark.parametrize("pattern", ["", "ws", "ws/", "?"])
def test_a_pattern_without_a_slash_at_its_start_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="slash"):
        ServeMux(pattern)


def test_cleaning_is_idempotent_and_safe() -> None:
    rng = random.Random(301)
    for _ in range(3000):
        path = "/" + "".join(rng.choice(["/", ".", "..", "a", "\0", "é"]) for _ in range(8))
        clean = clean_path(path)
        assert clean.startswith("/") and not clean.startswith("//")
        assert clean_path(clean) == clean
        assert not {"", ".", ".."} & set(clean.strip("/").split("/")) or clean == "/"


def test_any_redirect_is_a_safe_header() -> None:
    rng = random.Random(302)
    redirects = 0
    for _ in range(2000):
        raw = "".join(f"%{rng.randrange(256):02X}" for _ in range(5))
        reply = route("/ws", "//" + raw + "?" + "\udcff")
        if reply is not None and reply.status == 301:
            redirects += 1
            value = dict(reply.headers)["Location"]
            assert value.isascii() and value.isprintable() and " " not in value
    assert redirects > 1000
