"""Values of a configuration file, and the errors about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mtt.errors import UsageError
from mtt.options.section import Section


def section(**members: Any) -> Section:
    return Section("a.b", members, environ={"NAME": "value", "PORT": "80", "EMPTY": ""}, file="f")


@pytest.mark.parametrize(
    ("read", "value", "expected"),
    [
        (lambda s: s.text("k"), "x", "x"),
        (lambda s: s.text("k"), 12, "12"),
        (lambda s: s.text("k", "default"), None, "default"),
        (lambda s: s.text("k", "default"), "", ""),
        (lambda s: s.text("k"), "<${NAME}${PORT}>", "<value80>"),
        (lambda s: s.text("k"), "$${NAME} $NAME $$ ^a$", "${NAME} $NAME $$ ^a$"),
        (lambda s: s.required("k", "it"), "x", "x"),
        (lambda s: s.texts("k"), "x", ("x",)),
        (lambda s: s.texts("k"), ["x", 8000, "${NAME}"], ("x", "8000", "value")),
        (lambda s: s.texts("k"), "", ()),
        (lambda s: s.texts("k"), [], ()),
        (lambda s: s.texts("k"), None, ()),
        (lambda s: s.choice("k", ("one", "two"), "one"), "TWO", "two"),
        (lambda s: s.choice("k", ("one", "two"), "one"), "", "one"),
        (lambda s: s.choice("k", ("one", "two"), "one"), None, "one"),
        (lambda s: s.boolean("k"), True, True),
        (lambda s: s.boolean("k"), "yes", True),
        (lambda s: s.boolean("k", True), "Off", False),
        (lambda s: s.boolean("k", True), None, True),
        (lambda s: s.number("k"), 7, 7),
        (lambda s: s.number("k"), "${PORT}", 80),
        (lambda s: s.number("k"), "0x10", 16),
        (lambda s: s.number("k", 5), None, 5),
        (lambda s: s.port("k"), "${PORT}", 80),
        (lambda s: s.duration("k", 1.0), "1m30s", 90.0),
        (lambda s: s.duration("k", 1.0), "", 1.0),
        (lambda s: str(s.endpoint("k")), "[::1]:80", "[::1]:80"),
        (lambda s: s.endpoint("k"), "", None),
        (lambda s: s.section("k").path, {}, "a.b.k"),
        (lambda s: s.section("k").names(), None, []),
        (lambda s: [each.path for each in s.sections("k")], [{}, {}], ["a.b.k[0]", "a.b.k[1]"]),
        (lambda s: s.sections("k"), None, []),
    ],
)
def test_values(read: Callable[[Section], Any], value: object, expected: object) -> None:
    found = section(k=value)
    assert read(found) == expected
    found.done()


@pytest.mark.parametrize(
    ("read", "value", "error"),
    [
        (lambda s: s.text("k"), [], ".k: a list; write a single value"),
        (lambda s: s.text("k"), {}, ".k: an object; write a single value"),
        (lambda s: s.text("k"), True, ".k: not text; put it in quotes"),
        (lambda s: s.text("k"), 1.5, ".k: not text; put it in quotes"),
        (lambda s: s.text("k"), "${NONE}",
         ".k: the environment variable NONE is not set; set it"),
        (lambda s: s.text("k"), "x${EMPTY}",
         ".k: the environment variable EMPTY is empty; set it"),
        (lambda s: s.text("k"), "${a-b}",
         ".k: ${ without a variable's name; write ${NAME}, or $${ for itself"),
        (lambda s: s.required("k", "a name"), "", ".k: missing; give a name"),
        (lambda s: s.required("k", "a name"), None, ".k: missing; give a name"),
        (lambda s: s.texts("k"), ["x", {}], ".k[1]: an object; write a single value"),
        (lambda s: s.texts("k"), {}, ".k: an object; write a single value"),
        (lambda s: s.choice("k", ("one", "two"), "one"), "x", ".k: 'x' is not one of one, two"),
        (lambda s: s.boolean("k"), "x", ".k: 'x' is not a boolean; write true or false"),
        (lambda s: s.boolean("k"), 1.5, ".k: not text; put it in quotes"),
        (lambda s: s.number("k"), "x", ".k: 'x' is not an integer; write it like 4"),
        (lambda s: s.number("k"), True, ".k: not an integer; write it like 4"),
        (lambda s: s.number("k"), 1.5, ".k: not an integer; write it like 4"),
        (lambda s: s.number("k", most=9), 10, ".k: 10 is not from 0 to 9"),
        (lambda s: s.number("k"), -1, ".k: -1 is not from 0 to 9007199254740992"),
        (lambda s: s.port("k"), 0, ".k: 0 is not from 1 to 65535"),
        (lambda s: s.port("k"), None, ".k: missing; give a port from 1 to 65535"),
        (lambda s: s.duration("k", 1.0), "9", ".k: '9' is not a duration; write it with a unit, "
         "like 300s, 5m or 1h30m"),
        (lambda s: s.duration("k", 1.0), "-9s", ".k: '-9s' is not positive; write it like 5m"),
        (lambda s: s.endpoint("k"), "8080",
         ".k: '8080' has no host; write it like 127.0.0.1:8080"),
        (lambda s: s.section("k"), [], ".k: not an object with keys"),
        (lambda s: s.sections("k"), {}, ".k: not a list"),
        (lambda s: s.sections("k"), [{}, 1], ".k[1]: not an object with keys"),
    ],
)  # fmt: skip
def test_errors_name_the_path(
    read: Callable[[Section], Any], value: object, error: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read(section(k=value))
    assert str(caught.value) == f"f: a.b{error}"


def test_variable_that_is_not_text() -> None:
    found = Section("", {"k": "${RAW}"}, environ={"RAW": "\udcff"})
    with pytest.raises(UsageError, match=r"^k: the environment variable RAW is not UTF-8 text$"):
        found.text("k")


@pytest.mark.parametrize(
    ("key", "error"),
    [
        ("listen_adr", "a.b.listen_adr: unknown; did you mean listen_addr?"),
        ("Listen-Addr", "a.b.Listen-Addr: unknown; did you mean listen_addr?"),
        ("wholly_different", "a.b.wholly_different: unknown; remove it"),
        ("insecur", "a.b.insecur: unknown; remove it"),  # it is not suggested
        ("x y\n", "a.b.'x y\\n': unknown; remove it"),
    ],
)
def test_unknown_keys(key: str, error: str) -> None:
    found = Section("a.b", {key: ""})
    found.text("listen_addr")
    found.boolean("insecure", weakens=True)
    with pytest.raises(UsageError) as caught:
        found.done()
    assert str(caught.value) == error


def test_keys_without_an_effect(caplog: pytest.LogCaptureFixture) -> None:
    found = section(web={"enabled": True}, file="x", size=0, old=1)
    found.ignore("the log goes to stderr", "file", "size", "absent")
    found.ignore("there is no page", "web")
    found.skip("old")
    found.done()
    assert caplog.messages == [
        "f: not used: a.b.file: the log goes to stderr",
        "f: not used: a.b.web: there is no page",
    ]


@pytest.mark.parametrize(
    ("written", "wanted"), [("idd", "id"), ("adr", "addr"), ("group", "group_id")]
)
def test_misspelt_required_key_is_named(written: str, wanted: str) -> None:
    client = Section("client", {written: "x", "group_password": "y"})
    with pytest.raises(UsageError, match=rf"^client\.{written}: unknown; did you mean {wanted}\?$"):
        client.required(wanted, "a name")


def test_other_key_is_not_taken_for_a_misspelling() -> None:
    client = Section("client", {"group_password": "y"})
    with pytest.raises(UsageError, match=r"^client\.group_id: missing; give a name$"):
        client.required("group_id", "a name")
