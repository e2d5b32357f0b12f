"""The help text."""

from __future__ import annotations

from typing import Any

import pytest

from mtt.options.flags import Flag, Group, defaults
from mtt.options.tunnel import CLIENT_FLAGS, SERVER_FLAGS
from mtt.options.usage import folded, usage

FLAGS = (
    Flag("b", "str", "Where to listen.", "HOST:PORT", group=Group.ADDRESSES, aliases=("l",)),
    Flag("other", "bool", "Not in a group."),
    Flag("timeout", "duration", "Idle time.", "DURATION", "5m", group=Group.LIMITS),
    Flag("s", "str", "The server.", "HOST:PORT", group=Group.ADDRESSES),
    Flag("pin", "str", "Pin.", "PIN", repeatable=True, group=Group.TRUST),
)
EXAMPLES = (
    ("Short", "prog -b :1"),
    ("Long", f"prog -b :1 -s {'x' * 40} -timeout 1s -pin {'y' * 30}"),
)


def test_options_are_listed_by_group() -> None:
    assert usage(FLAGS, "prog", "What it does.", EXAMPLES).split("\n\n") == [
        "Usage: prog [option ...]",
        "What it does.",
        "Addresses:\n  -b, -l HOST:PORT\n        Where to listen.\n"
        "  -s HOST:PORT\n        The server.",
        "Certificates and trust:\n  -pin PIN\n        Pin. (may be repeated)",
        "Limits and timeouts:\n  -timeout DURATION\n        Idle time. (default 5m)",
        "Other:\n  -other\n        Not in a group.",
        "Examples:\n  Short:\n    prog -b :1\n  Long:\n"
        f"    prog -b :1 -s {'x' * 40} -timeout 1s \\\n        -pin {'y' * 30}\n",
    ]


def test_no_examples_no_heading() -> None:
    assert "Examples" not in usage(FLAGS, "prog", "What it does.")


def test_long_help_fits_the_screen() -> None:
    text = usage((Flag("x", "bool", "many words " * 40),), "prog", "so long " * 30)
    assert max(map(len, text.splitlines())) < 80


def test_folded_lines_are_one_command_again() -> None:
    line = EXAMPLES[1][1]
    assert " ".join(" ".join(folded(line)).replace("\\", "").split()) == line


@pytest.mark.parametrize("flags", [CLIENT_FLAGS, SERVER_FLAGS])
def test_option_tables_are_consistent(flags: Any) -> None:
    names = [flag.name for flag in flags]
    assert len(names) == len(set(names))
    assert set(defaults(flags)) == set(names)
    for flag in flags:
        assert flag.help.endswith(".")
        assert bool(flag.placeholder) == (flag.kind != "bool")
    assert max(map(len, usage(flags, "prog", "").splitlines())) < 80
