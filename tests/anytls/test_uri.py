"""The URI of a server."""

from __future__ import annotations

import random

import pytest

from anytls.uri import ServerUri, is_uri, parse_uri
from mtt.address import Endpoint
from mtt.errors import UsageError


@pytest.mark.parametrize(
    ("text", "host", "port", "password"),
    [
        ("anytls://letmein@example.com/?sni=real.example.com", "example.com", 443, "letmein"),
        ("anytls://letmein@example.com:8443", "example.com", 8443, "letmein"),
        ("anytls://0fdf77d7-d4ba-455e-9ed9-a98dd6d5489a@[2409:8a71:6a00:1953::615]:8964/?insecure=1",
         "2409:8a71:6a00:1953::615", 8964, "0fdf77d7-d4ba-455e-9ed9-a98dd6d5489a"),
        ("anytls://p@[::1]", "::1", 443, "p"),
        ("anytls://p@[::1]/", "::1", 443, "p"),
        ("anytls://p@192.0.2.1:", "192.0.2.1", 443, "p"),
        ("ANYTLS://p@Example.com", "Example.com", 443, "p"),
        ("anytls://p%40ss%3aw%2F%20%C3%A4@h:1", "h", 1, "p@ss:w/ \u00e4"),
        ("anytls://user:word@h:1", "h", 1, "user:word"),
        ("anytls://a@b@h:1", "h", 1, "a@b"),
        ("anytls://a+b@h:1", "h", 1, "a+b"),
        ("anytls://h:1", "h", 1, ""),
        ("anytls://@h:1", "h", 1, ""),
        ("anytls://p@h?sni=x.example", "h", 443, "p"),
        ("anytls://p@h:1#My%20server", "h", 1, "p"),
        ("anytls://p@b\u00fccher.example", "b\u00fccher.example", 443, "p"),
    ],
)  # fmt: skip
def test_address_and_password(text: str, host: str, port: int, password: str) -> None:
    uri = parse_uri("-s", text)
    assert uri.endpoint == Endpoint((host,), port)
    assert uri.password == password
    assert "password" not in repr(uri)


@pytest.mark.parametrize(
    ("query", "sni", "insecure"),
    [
        ("", "", None),
        ("sni=", "", None),
        ("sni=real.example.com&insecure=0", "real.example.com", False),
        ("insecure=1&sni=192.0.2.1", "192.0.2.1", True),
        ("sni=%5B::1%5D", "::1", None),
        ("&&insecure=1&", "", True),
        ("sni=a.example&sni=b.example", "b.example", None),
        ("sni=r%65al.example", "real.example", None),
        ("insecure=", "", None),
    ],
)
def test_parameters(query: str, sni: str, insecure: bool | None) -> None:
    uri = parse_uri("-s", f"anytls://p@h/?{query}")
    assert (uri.sni, uri.insecure) == (sni, insecure)


def test_unknown_parameters_are_named(caplog: pytest.LogCaptureFixture) -> None:
    uri = parse_uri(
        "-s",
        "anytls://s3cret@203.0.113.1:443?security=tls&fp=chrome&insecure=1&allowInsecure=1"
        "&type=tcp&fp=x#anytls-host",
    )
    assert uri.insecure
    (record,) = caplog.records
    assert record.getMessage() == "-s: not used of the URI: security, fp, allowInsecure, type"
    assert "s3cret" not in caplog.text


def test_only_so_many_unknown_parameters_are_named(caplog: pytest.LogCaptureFixture) -> None:
    query = "&".join(f"{'k' * 200}{number}=v" for number in range(1000))
    parse_uri("-s", f"anytls://p@h/path?{query}")
    (record,) = caplog.records
    assert "the path" in record.getMessage()
    assert "and 993 more" in record.getMessage()
    assert len(record.getMessage()) < 1000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://s3cret@h:1", "does not start with anytls://"),
        ("anytls://", "no host"),
        ("anytls://s3cret@", "no host"),
        ("anytls://s3cret@:443", "lacks a host"),
        ("anytls://s3cret@h:0", "port 0"),
        ("anytls://s3cret@h:70000", "not host:port"),
        ("anytls://s3cret@::1", "brackets"),
        ("anytls://s3cret@[::1", "not host:port"),
        ("anytls://s3cret@a|b:1", "one host"),
        ("anytls://s3cret@a b:1", "not host:port"),
        ("anytls://s3cret%4@h:1", "%25"),
        ("anytls://s3cret%FF@h:1", "not UTF-8"),
        ("anytls://s3cret\udc80@h:1", "not UTF-8"),
        ("anytls://s3cret/x@h:1", "%2F"),
        ("anytls://s3cret?x@h:1", "%3F"),
        ("anytls://s3cret#x@h:1", "%23"),
        ("anytls://" + "s3cret" * 1000 + "@h:1", "more than 1024 bytes"),
        ("anytls://s3cret@h/?insecure=yes", "write 1 or 0"),
        ("anytls://s3cret@h/?sni=a_b..c", "neither a host name"),
        ("anytls://s3cret@h/?sni=%zz", "%25"),
    ],
)
def test_errors_do_not_show_the_password(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uri("-s", text)
    assert words in str(caught.value)
    assert str(caught.value).startswith("-s: ")
    assert "s3cret" not in str(caught.value)


def test_is_uri() -> None:
    assert is_uri("anytls://h") and is_uri("vless://h")
    assert not is_uri("example.com:443") and not is_uri("[::1]:443")


def test_any_text_gives_a_server_or_a_usage_error() -> None:
    rng = random.Random(8)
    parts = ["anytls://", "@", ":", "/", "?", "#", "&", "=", "%", "%41", "[", "]", "::1", "h",
             "443", "sni=", "insecure=1", "|", "\u00e4", "\udcff", " ", "\n", "p"]  # fmt: skip
    good = 0
    for _ in range(5000):
        text = "anytls://" + "".join(rng.choices(parts, k=rng.randrange(8)))
        try:
            uri = parse_uri("-s", text)
        except UsageError:
            continue
        good += 1
        assert isinstance(uri, ServerUri)
        assert uri.endpoint.host and 1 <= uri.endpoint.port <= 65535
        uri.password.encode()
    assert good > 50
