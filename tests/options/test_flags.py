from __future__ import annotations

import random
from typing import Any

import pytest

from mtt.errors import UsageError
from mtt.options.flags import (
    Flag,
    defaults,
    parse_args,
    parse_duration,
    parse_int,
    set_value,
)

FLAGS = (
    Flag("b", "str", "Where to listen.", "HOST:PORT", may_be_empty=True),
    Flag("s", "str", "The server.", "HOST:PORT"),
    Flag("wss", "bool", "Use WebSocket."),
    Flag("wss-path", "str", "Path.", "PATH", "/", secret=True),
    Flag("max", "int", "At most.", "N", "4"),
    Flag("timeout", "duration", "Idle time.", "DURATION", "5m", aliases=("t", "idle")),
    Flag("pin", "str", "Pin.", "PIN", repeatable=True),
    Flag("token", "int", "A secret number.", "N", secret=True),
    Flag("h", "bool", "Help.", final=True),
)


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        ([], {}),
        (["-b", ":1"], {"b": ":1"}),
        (["--b", ":1"], {"b": ":1"}),
        (["-b=:1"], {"b": ":1"}),
        (["--b=:1"], {"b": ":1"}),
        (["-b="], {"b": ""}),
        (["-b", ""], {"b": ""}),
        (["-b=a=b"], {"b": "a=b"}),
        (["-b", "a=b"], {"b": "a=b"}),
        # The word behind an option is its value, whatever it looks like.
        (["-b", "-wss"], {"b": "-wss"}),
        (["-b", "--"], {"b": "--"}),
        (["-b", "-"], {"b": "-"}),
        (["-wss"], {"wss": True}),
        (["--wss"], {"wss": True}),
        (["-wss=false"], {"wss": False}),
        (["-wss", "-b", ":1"], {"wss": True, "b": ":1"}),
        (["-wss=0", "-wss"], {"wss": True}),
        (["-wss", "-wss=F"], {"wss": False}),
        (["-max", "1", "-max", "2"], {"max": 2}),
        (["-wss-path", "/a", "-wss-path", "/b"], {"wss-path": "/b"}),
        (["-t", "1s"], {"timeout": 1.0}),
        (["-timeout", "1s", "--idle=2s"], {"timeout": 2.0}),
        (["-b", "1", "-b=1"], {"b": "1"}),
        (["-pin", "a", "-pin", "a"], {"pin": ("a", "a")}),
        (["-pin", "a", "-wss", "-pin=b"], {"pin": ("a", "b"), "wss": True}),
        (["-max", "0x10"], {"max": 16}),
        (["-max", "-3"], {"max": -3}),
        (["-timeout", "1m30s"], {"timeout": 90.0}),
        (["-wss", "--"], {"wss": True}),
        (["-h", "stray"], {"h": True}),
        (["-h", "-nope"], {"h": True}),
    ],
)
def test_arguments(argv: list[str], values: dict[str, Any]) -> None:
    assert parse_args(FLAGS, argv) == values


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_true(text: str) -> None:
    assert parse_args(FLAGS, [f"-wss={text}"]) == {"wss": True}


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_false(text: str) -> None:
    assert parse_args(FLAGS, [f"-wss={text}"]) == {"wss": False}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-nope"], ["-nope is not an option", "-h"]),
        (["-timeot", "1s"], ["-timeot is not an option", "did you mean -timeout?"]),
        (["-idel", "1s"], ["-idel is not an option", "did you mean -timeout?"]),
        (["-t", "x"], ["-t: 'x' is not a duration"]),
        (["--wss-pth=/x"], ["-wss-pth is not an option", "did you mean -wss-path?"]),
        (["-b"], ["-b needs a value", "-b HOST:PORT"]),
        (["-wss", "true"], ["'true'", "-wss or -wss=true"]),
        (["-wss", "0"], ["'0'", "-wss or -wss=0"]),
        (["stray"], ["'stray' does not belong to an option"]),
        (["-b", "1", "true"], ["'true' does not belong to an option; every option"]),
        (["-b", "1", "stray", "-wss"], ["'stray'"]),
        (["-"], ["'-'"]),
        ([""], ["''"]),
        (["--", "-wss"], ["'-wss' does not belong"]),
        (["---b", "1"], ["'---b' is not an option"]),
        (["-=v"], ["'-=v' is not an option"]),
        (["--=v"], ["'--=v' is not an option"]),
        (["-wss=yes"], ["-wss: 'yes' is not a boolean"]),
        (["-wss="], ["-wss: '' is not a boolean"]),
        (["-max", "four"], ["-max: 'four' is not an integer"]),
        (["-timeout", "300"], ["-timeout: '300' is not a duration", "300s"]),
        (["-token", "hunter2"], ["-token: the value is not an integer"]),
        (["-tokenhunter2hunter2"], ["-token... is not an option", "-h"]),
        (["-b", "1", "-b=2"], ["-b is given twice; remove one, or join hosts: HOST|HOST:PORT"]),
        (["-b", "1", "-b="], ["-b is given twice"]),
        (["-s="], ["-s: the value is empty; give HOST:PORT, or remove it"]),
        (["-s", ""], ["-s: the value is empty"]),
        (["-pin="], ["-pin: the value is empty; give PIN, or remove it"]),
    ],
)
def test_errors_name_the_option_and_the_fix(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_args(FLAGS, argv)
    for word in words:
        assert word in str(caught.value)


def test_the_hint_for_booleans_follows_the_last_option() -> None:
    with pytest.raises(UsageError, match="-wss or -wss=1"):
        parse_args(FLAGS, ["-wss", "-b", "x", "-wss", "1"])


def test_errors_stay_short() -> None:
    for argv in (["-" + "x" * 9999], ["y" * 9999], ["-max", "z" * 9999], ["-" * 9999]):
        with pytest.raises(UsageError) as caught:
            parse_args(FLAGS, argv)
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4", 4), ("0", 0), ("00", 0), ("-0", 0), ("+5", 5), ("-3", -3), ("0x10", 16),
        ("0X1f", 31), ("0x_f", 15), ("0b100", 4), ("0B1", 1), ("0o17", 15), ("0O17", 15),
        ("017", 15), ("0_7", 7), ("1_0", 10), ("-0x10", -16),
        ("9223372036854775807", 2**63 - 1), ("-9223372036854775808", -(2**63)),
    ],
)  # fmt: skip
def test_integer(text: str, number: int) -> None:
    assert parse_int(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "", " 4", "4 ", "-", "0x", "08", "0b2", "_1", "1_", "1__0", "0_", "0x1g", "1.0", "1e3",
        "\u0664", "--1", "9223372036854775808", "-9223372036854775809", "9" * 5000,
    ],
)  # fmt: skip
def test_invalid_integers(text: str) -> None:
    with pytest.raises(ValueError, match="integer"):
        parse_int(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0), ("-0", 0.0), ("+0", 0.0), ("5m0s", 300.0), ("1.5h", 5400.0), (".5s", 0.5),
        ("1.s", 1.0), ("1h30m2.5s", 5402.5), ("300ms", 0.3), ("1us", 1e-6),
        ("1\u00b5s", 1e-6), ("1\u03bcs", 1e-6), ("7ns", 7e-9), ("-1s", -1.0), ("+1s", 1.0),
        ("1s1s", 2.0), ("0s", 0.0), ("2562047h", 2562047 * 3600.0), ("0.3s", 0.3),
        ("0." + "0" * 9000 + "1s", 0.0),
    ],
)  # fmt: skip
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", "300", "1.5", "+", "-", ".", ".s", "s", "1d", "1 s", " 1s", "1s ", "--1s", "1.5.5s",
        "1e3s", "1S", "s1", "1s2", "\u0661s", "2562048h", "9" * 5000 + "s", "0 ", "1h-1m",
    ],
)  # fmt: skip
def test_invalid_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_defaults() -> None:
    assert defaults(FLAGS) == {
        "b": "",
        "s": "",
        "wss": False,
        "wss-path": "/",
        "max": 4,
        "timeout": 300.0,
        "pin": (),
        "token": 0,
        "h": False,
    }


def test_set_value_uses_the_label_it_is_given() -> None:
    with pytest.raises(UsageError, match=r"^option max in the file: 'x' is not an integer"):
        set_value({}, FLAGS[4], "x", label="option max in the file")


def test_random_arguments_give_values_or_usage_error() -> None:
    rng = random.Random(1)
    words = [f"-{flag.name}" for flag in FLAGS] + [
        "-", "--", "---", "=", "", "1", "1s", "true", "-b=", "-wss=1", "-max=0x1", "\0", "\udcff",
    ]  # fmt: skip
    kinds = {"bool": bool, "int": int, "duration": float, "str": str}
    types = {flag.name: tuple if flag.repeatable else kinds[flag.kind] for flag in FLAGS}
    accepted = 0
    for _ in range(5000):
        argv = ["".join(rng.choices(words, k=rng.randint(1, 2))) for _ in range(rng.randint(0, 5))]
        try:
            values = parse_args(FLAGS, argv)
        except UsageError:
            continue
        accepted += 1
        for name, value in values.items():
            assert type(value) is types[name]
    assert accepted > 100
