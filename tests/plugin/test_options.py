from __future__ import annotations

import random
import time
from typing import Any

import pytest

from mtt.errors import UsageError
from mtt.options.flags import Flag
from mtt.options.tunnel import CLIENT_FLAGS, SERVER_FLAGS
from plugin.options import parse_options

PIN = "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        (" ", {}),
        (";;", {}),
        ("wss", {"wss": True}),
        ("wss;n=example.com", {"wss": True, "n": "example.com"}),
        ("wss;", {"wss": True}),
        (";wss;;mux;", {"wss": True, "mux": True}),
        (" wss ; n = example.com ;\tmux\n", {"wss": True, "n": "example.com", "mux": True}),
        ("wss=true", {"wss": True}),
        ("wss=1", {"wss": True}),
        ("wss=false", {"wss": False}),
        ("wss=0", {"wss": False}),
        ("n=", {"n": ""}),
        ("n=first;n=last", {"n": "last"}),
        ("wss;wss=0", {"wss": False}),
        ("timeout=1m30s;mux-max-stream=0x8", {"timeout": 90.0, "mux-max-stream": 8}),
        ("-wss;-n=a", {"wss": True, "n": "a"}),
        # Further = belong to the value.
        ("wss-path=/p?a=b&c==", {"wss-path": "/p?a=b&c=="}),
        (f"pin={PIN};pin={PIN}", {"pin": (PIN, PIN)}),
        # Escapes.
        (r"wss-path=/a\;b\=c\\d\:e\f", {"wss-path": r"/a;b=c\d:ef"}),
        (r"w\ss", {"wss": True}),
        (r"n=a\;mux", {"n": "a;mux"}),
        (r"n=a\\;mux", {"n": "a\\", "mux": True}),
        (r"n=\ a\ ", {"n": " a "}),
        (r"n= \ a\  ", {"n": " a "}),
        # Commas.
        ("wss,n=a;mux", {"wss": True, "n": "a", "mux": True}),
        ("wss,mux;n=a", {"wss": True, "mux": True, "n": "a"}),
        (" wss , mux , fast-open ", {"wss": True, "mux": True, "fast-open": True}),
        ("wss,", {"wss": True}),
        ("wss-path=/a,b", {"wss-path": "/a,b"}),
        ("wss,wss-path=/a,mux;verbose", {"wss": True, "wss-path": "/a,mux", "verbose": True}),
        # They override what shadowsocks said.
        ("b=127.0.0.1:1;s=a:2", {"b": "127.0.0.1:1", "s": "a:2"}),
        # Android.
        ("__android_vpn", {"V": True}),
        ("__android_vpn=", {"V": True}),
        ("__android_vpn=0;wss", {"V": True, "wss": True}),
        ("wss;__android_vpn=1", {"wss": True, "V": True}),
        ("wss,__android_vpn,mux", {"wss": True, "V": True, "mux": True}),
        ("V", {"V": True}),
    ],
)
def test_client(text: str, values: dict[str, Any]) -> None:
    assert parse_options(CLIENT_FLAGS, text) == values


def test_the_example_in_the_documentation_of_the_original() -> None:
    assert parse_options(SERVER_FLAGS, "wss,key=/path/to/key;cert=/path/to/cert") == {
        "wss": True,
        "key": "/path/to/key",
        "cert": "/path/to/cert",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nope", ["plugin option nope", "is not an option"]),
        ("wss;sevrer-name=a", ["plugin option sevrer-name"]),
        ("timeot=1s", ["plugin option timeot", "did you mean timeout?"]),
        ("n", ["plugin option n needs a value", "n=NAME"]),
        ("b=a:1;b=b:1", ["plugin option b is given twice; remove one, or join hosts"]),
        ("cert=;key=/k", ["plugin option cert: the value is empty; give FILE, or remove it"]),
        ("ca=", ["plugin option ca: the value is empty"]),
        ("n;wss", ["plugin option n needs a value"]),
        ("wss=yes", ["plugin option wss", "'yes'", "true or false"]),
        ("wss=", ["plugin option wss", "boolean"]),
        ("wss=true,mux", ["plugin option wss", "'true,mux'"]),
        ("timeout=300", ["plugin option timeout", "'300'", "300s"]),
        ("mux-max-stream=x", ["plugin option mux-max-stream", "integer"]),
        ("=x", ["without a key"]),
        ("wss; =x", ["without a key"]),
        ("wss,=x", ["without a key"]),
        ("n=a\\", ["lone backslash"]),
        ("\\", ["lone backslash"]),
        (r"wss\,mux", ["plugin option wss,mux"]),
        (r"n\=a", ["plugin option n=a"]),
        ("n,wss", ["plugin option n,wss"]),
        ("h", ["plugin option h"]),
        ("help", ["plugin option help"]),
        ("version", ["plugin option version"]),
        ("__android", ["plugin option __android"]),
        ("--wss", ["plugin option -wss"]),
    ],
)
def test_errors_name_the_key(text: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_options(CLIENT_FLAGS, text)
    for word in words:
        assert word in str(caught.value)


def test_a_command_without_vpn_protection_does_not_know_its_key() -> None:
    with pytest.raises(UsageError, match="__android_vpn"):
        parse_options(SERVER_FLAGS, "__android_vpn")


def test_secrets_stay_secret() -> None:
    flags = (Flag("number", "int", "", "N", secret=True),)
    with pytest.raises(UsageError) as caught:
        parse_options(flags, "number=hunter2")
    assert "number" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_escaping_keeps_any_value() -> None:
    rng = random.Random(2)
    for _ in range(1000):
        value = "".join(rng.choices("ab;=\\,: \t\n\u00e9\udcff", k=rng.randint(0, 12)))
        escaped = "".join(f"\\{c}" if not c.isalnum() else c for c in value)
        assert parse_options(CLIENT_FLAGS, f"wss;n={escaped};mux") == {
            "wss": True,
            "n": value,
            "mux": True,
        }


def test_random_strings_give_values_or_usage_error() -> None:
    rng = random.Random(3)
    parts = [flag.name for flag in CLIENT_FLAGS]
    parts += [*";;;===,,\\\\ ", "true", "1", "5m", "__android_vpn", "\0", "\udc80", "\u2003"]
    known = {flag.name for flag in CLIENT_FLAGS if not flag.final}
    accepted = 0
    for _ in range(4000):
        text = "".join(rng.choices(parts, k=rng.randint(0, 8)))
        try:
            values = parse_options(CLIENT_FLAGS, text)
        except UsageError:
            continue
        accepted += 1
        assert set(values) <= known
    assert accepted > 200


def test_parsing_takes_linear_time() -> None:
    # 128 KiB is the longest environment string on Linux; quadratic time would be minutes.
    began = time.thread_time()  # what others have of the processor does not count
    for text in ("," * 2**17, ";" * 2**17, "wss," * 2**15, "\\," * 2**16, " " * 2**17):
        try:
            parse_options(CLIENT_FLAGS, text)
        except UsageError as error:
            assert len(str(error)) < 250
    assert time.thread_time() - began < 5


def test_text_that_is_not_a_key_is_not_shown() -> None:
    """It may be a piece of a secret, and the error ends in shadowsocks' log."""
    with pytest.raises(UsageError) as caught:
        parse_options(CLIENT_FLAGS, "wss;/hush-hush;mux")
    assert "hush" not in str(caught.value)
    assert "number 2" in str(caught.value)
