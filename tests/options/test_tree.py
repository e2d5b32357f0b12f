"""Configuration files in YAML, JSON and TOML."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

from mtt.errors import UsageError
from mtt.options.section import Section
from mtt.options.tree import MAX_DEPTH, MAX_SIZE, read_tree
from tests.support.programs import require_package

YAML = """\
---
log: {level: debug}
gateway:
  listen_addr: ":8443"
  empty: ""
  number: 17
  on: true
  time: 90s
  list: [a, "b"]
  items:
    - name: one
      port: 80
    - name: two
      port: 0x51
"""
JSON = """\
{"log": {"level": "debug"}, // as sing-box
 "gateway": {"listen_addr": ":8443", "empty": "", "number": 17, "on": true, "time": "90s",
  "list": ["a", "b"], "items": [{"name": "one", "port": 80}, {"name": "two", "port": 81}]}}
"""
TOML = """\
[log]
level = "debug"
[gateway]
listen_addr = ":8443"
empty = ""
number = 17
on = true
time = "90s"
list = ["a", "b"]
[[gateway.items]]
name = "one"
port = 80
[[gateway.items]]
name = "two"
port = 81
"""
FORMATS = [("yaml", YAML), ("json", JSON), ("toml", TOML)]


class Files:
    """Writes a file and reads it as a tree."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, text: str | bytes, ending: str = "yaml", **environ: str) -> Section:
        path = self.folder / f"c.{ending}"
        path.touch(0o600)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_tree("-config", str(path), environ)

    def error(self, text: str | bytes, ending: str = "yaml") -> str:
        with pytest.raises(UsageError) as caught:
            self(text, ending)
        line = str(caught.value)
        assert line.startswith(f"-config: {self.folder}/c.{ending}")
        assert line.isprintable(), line
        return line.removeprefix(f"-config: {self.folder}/c.{ending}")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture
def yaml() -> None:
    require_package("yaml")


@pytest.mark.usefixtures("yaml")
@pytest.mark.parametrize(("ending", "text"), FORMATS)
def test_formats_are_equal(files: Files, ending: str, text: str) -> None:
    top = files(text, ending)
    log = top.section("log")
    assert log.text("level") == "debug"
    section = top.section("gateway")
    assert str(section.endpoint("listen_addr")) == ":8443"
    assert section.endpoint("empty") is None
    assert section.number("number") == 17
    assert section.boolean("on")
    assert section.duration("time", 0) == 90
    assert section.texts("list") == ("a", "b")
    items = section.sections("items")
    assert [(each.text("name"), each.port("port")) for each in items] == [("one", 80), ("two", 81)]
    for each in (top, log, section, *items):
        each.done()


@pytest.mark.usefixtures("yaml")
@pytest.mark.parametrize("text", ["0123", "1.10", "no", "22:22", "2024-01-01", "1e3", "0x1F"])
def test_yaml_keeps_text_as_written(files: Files, text: str) -> None:
    assert files(f"password: {text}").text("password") == text


@pytest.mark.usefixtures("yaml")
@pytest.mark.parametrize("text", ["", "~", "null", "# nothing"])
def test_yaml_null_is_absent(files: Files, text: str) -> None:
    top = files(f"a: {text}\nb: '{text}'")
    assert not top.has("a")
    assert top.text("b", "default") == text
    assert top.section("a").names() == []


@pytest.mark.usefixtures("yaml")
def test_first_document_counts(files: Files, caplog: pytest.LogCaptureFixture) -> None:
    assert files("a: 1\n...\n").number("a") == 1
    assert caplog.messages == []
    for rest in ("a: 2", "\t", '"\\UFFFFFFFF"'):
        caplog.clear()
        assert files(f"---\na: 1\n---\n{rest}\n").number("a") == 1
        assert "only the first document is used" in caplog.text


@pytest.mark.usefixtures("yaml")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", " is empty"),
        ("# a comment", " is empty"),
        ("a", ": not an object with keys"),
        ("- a", ": not an object with keys"),
        ("a: 1\nb: 2\na: 3", " at line 3, column 1: the key 'a' is there twice"),
        ("a: {b: 1, b: 2}", " at line 1, column 11: the key 'b' is there twice"),
        ("a: &x 1\nb: *x", " at line 2, column 4: aliases like *x are not supported; write it out"),
        ("a: !!int 1", " at line 1, column 4: tags like !!int are not supported; remove it"),
        ("a: !!python/object:os.system []", ": tags like !!map are not supported"),
        ("? [a]\n: b", " at line 1, column 3: a key must be text"),
        ("a: b: c", " at line 1, column 5: not YAML: mapping values are not allowed here"),
        ("a: [1", ": not YAML: expected ',' or ']'"),
        ("a:\n\t- b", " at line 2, column 1: not YAML: found character '\\t'"),
        ("a: \x07", ": not YAML at line 1: special characters are not allowed"),
        ('a: "\\UFFFFFFFF"', ": not YAML: a number out of range"),
        ('a: "\\uD800"', ": \\u with half a surrogate pair is not a character"),
        ("a: " + "[" * 40, f": nested too deeply; {MAX_DEPTH} levels at most"),
        (b"a: \xff", " is not UTF-8 text (byte 3)"),
    ],
)
def test_yaml_errors(files: Files, text: str | bytes, words: str) -> None:
    assert words in files.error(text)


@pytest.mark.parametrize(
    ("ending", "text", "words"),
    [
        ("json", '{"a": 1, "a": 2}', ": an object has the key 'a' twice"),
        ("json", '{"a": ', ": not JSON at line 1"),
        ("json", "[]", ": not an object with keys"),
        ("json", "null", " is empty"),
        ("json", '{"a": "\\ud800"}', ": \\u with half a surrogate pair"),
        ("json", '{"\\ud800": 1}', ": \\u with half a surrogate pair"),
        ("json", '{"a": ' + "[" * 40 + "]" * 40 + "}", ": nested too deeply"),
        ("json", '{"a": ' + "[" * 100_000 + "}", ": brackets are nested too deeply"),
        ("toml", "a = 1\na = 2", ": not TOML: cannot overwrite a value (at "),
        ("toml", "a", ": not TOML: expected '='"),
        ("toml", "a = " + "[" * 100_000, ": nested too deeply"),
        ("toml", ".".join("a" * 40) + " = 1", ": nested too deeply"),
        ("toml", "a = " + "9" * 5000, ": not TOML: "),
        ("conf", "a = 1", " is not named .yaml, .yml, .json or .toml; rename it"),
        ("json", " " * (MAX_SIZE + 1), f" has more than {MAX_SIZE} bytes"),
    ],
)
def test_errors_of_other_formats(files: Files, ending: str, text: str, words: str) -> None:
    assert words in files.error(text, ending)


def test_yaml_without_its_package(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "; run pip install PyYAML, or " in files.error("a: 1")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^-config: cannot read .*/none\.yaml: no such file"):
        read_tree("-config", f"{tmp_path}/none.yaml", {})


def test_file_that_every_user_can_read(
    files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def read() -> None:
        read_tree("-config", str(path), {}, is_secret=lambda key, _: key == "word")

    files('{"a": [{"word": "secret"}]}', "json")
    assert caplog.messages == []
    path = tmp_path / "c.json"
    path.chmod(0o644)
    for _ in range(3):
        read()
    line = f"-config: every user can read {path}; run chmod o-r on it"
    assert caplog.messages == [line]
    path.chmod(0o600)
    read()
    path.chmod(0o604)
    read()
    assert caplog.messages == [line] * 2


@pytest.mark.parametrize("text", ['{"a": {"word": "${WORD}"}}', '{"word": null}', '{"other": "x"}'])
def test_file_without_a_secret_in_it_may_be_public(
    text: str, files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files(text, "json")
    path = tmp_path / "c.json"
    path.chmod(0o644)
    read_tree("-config", str(path), {"WORD": "x"}, is_secret=lambda key, _: key == "word")
    assert caplog.messages == []


@pytest.mark.usefixtures("yaml")
@pytest.mark.parametrize(("ending", "good"), FORMATS)
def test_mutated_files_raise_usage_errors_only(files: Files, ending: str, good: str) -> None:
    choose = random.Random(ending)
    alphabet = "\t\n :-[]{}#&*!|>'\"%@`,?\\0aU.=\x00\x85\ufeff\u2028\U0001f600"
    errors = 0
    for _ in range(500):
        text = list(good)
        for _ in range(choose.randint(1, 6)):
            start = choose.randrange(len(text))
            end = start + choose.choice((0, 0, 1, 1, 5, 40))
            insert = choose.choices(alphabet, k=choose.choice((0, 1, 1, 2, 8)))
            if choose.random() < 0.2:
                insert = text[choose.randrange(len(text)) :][:30]
            text[start:end] = insert
            if not text:
                break
        try:
            top = files("".join(text), ending)
            for name in top.names():
                top.section(name).done()
        except UsageError as error:
            errors += 1
            assert "\n" not in str(error)
    assert errors > 100


def test_json_is_yaml(files: Files) -> None:
    require_package("yaml")
    value = {"a": {"b": ["x", "y z"], "c": "#: {"}, "d": 'quotes " and \\ and \u00e9'}
    for ending in ("yaml", "json"):
        top = files(json.dumps(value), ending)
        assert top.section("a").texts("b") == ("x", "y z")
        assert top.section("a").text("c") == "#: {"
        assert top.text("d") == value["d"]
