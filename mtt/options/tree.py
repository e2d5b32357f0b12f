"""Configuration files in YAML, JSON or TOML, read into a tree of objects, lists and values.

The getter of a key decides the type of its value, see `Section`: in YAML all values are text, so
that `password: 0123` keeps its zero. Programs in Go read YAML that way.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from mtt.errors import UsageError
from mtt.files import read_text, warn_if_open
from mtt.log import logger
from mtt.options.flags import quoted
from mtt.options.json_text import parse_json
from mtt.options.section import Section, is_unicode

# Bytes: a thousand groups, each with twenty keys.
MAX_SIZE = 1 << 20
# Levels of objects and lists. Keys of real files are five levels deep.
MAX_DEPTH = 32

_YAML_ENDINGS = (".yaml", ".yml")
# Text of YAML that means "no value" unless it is quoted (YAML 1.2, 10.3.2).
_NULLS = ("", "~", "null", "Null", "NULL")
# The tag of explicit text; all other tags are refused.
_STR_TAG = "tag:yaml.org,2002:str"


def read_tree(
    option: str,
    path: str,
    environ: Mapping[str, str],
    *,
    is_secret: Callable[[str, str], bool] | None = None,
) -> Section:
    """The top of the configuration file `path`, which `option` gave.

    `environ` has the variables for `${NAME}`. `is_secret(key, text)` tells whether a value is a
    secret. If one stands in the file, and not in a variable, logs a warning if every user can read
    the file. Raises UsageError.
    """
    name = f"{option}: {path}"
    ending = os.path.splitext(path)[1].lower()
    text = read_text(option, path, limit=MAX_SIZE)
    if ending in _YAML_ENDINGS:
        tree = _Yaml(name, text).document()
    elif ending == ".json":
        tree = parse_json(name, text)
    elif ending == ".toml":
        tree = _parse_toml(name, text)
    else:
        raise UsageError(f"{name} is not named .yaml, .yml, .json or .toml; rename it")
    _check(name, tree, 0)
    if tree is None:
        raise UsageError(f"{name} is empty; is it the right file?")
    if is_secret is not None and _has_secrets(tree, is_secret):
        warn_if_open(option, path)
    return Section("", tree, environ=environ, file=name)


def _has_secrets(value: object, is_secret: Callable[[str, str], bool]) -> bool:
    if isinstance(value, list):
        return any(_has_secrets(item, is_secret) for item in value)
    return isinstance(value, dict) and any(
        _has_secrets(member, is_secret)
        if isinstance(member, dict | list)
        else member is not None and "${" not in str(member) and is_secret(str(key), str(member))
        for key, member in value.items()
    )


def _parse_toml(name: str, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"{name}: nested too deeply") from None
    except ValueError as error:  # also for a number with thousands of digits
        raise UsageError(f"{name}: not TOML: {_one_line(error)}") from None


def _check(name: str, value: object, depth: int) -> None:
    """Raise UsageError if a tree is too deep, or if text in it cannot be encoded."""
    if depth > MAX_DEPTH:
        raise UsageError(f"{name}: nested too deeply; {MAX_DEPTH} levels at most")
    if isinstance(value, dict):
        for key, member in value.items():
            _check(name, key, depth)
            _check(name, member, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(name, item, depth + 1)
    elif isinstance(value, str) and not is_unicode(value):
        raise UsageError(f"{name}: \\u with half a surrogate pair is not a character")


def _one_line(error: object) -> str:
    """The first line of a parser's error, as the rest of one."""
    text = str(error).partition("\n")[0].strip()
    return text[:1].lower() + text[1:]


class _Yaml:
    """A parser of the first document of a YAML text, as Go's `yaml.Unmarshal`.

    Uses PyYAML's events, which need no recursion and carry line numbers. Aliases are refused: a few
    lines with them can stand for gigabytes.
    """

    def __init__(self, name: str, text: str) -> None:
        try:
            import yaml
        except ImportError:
            raise UsageError(
                f"{name}: YAML needs PyYAML; run pip install PyYAML, or with pipx pipx inject "
                "mos-tls-tunnel PyYAML, or for the Debian package apt install python3-yaml, or "
                "write JSON (.json) or TOML (.toml)"
            ) from None
        self._name = name
        self._text = text
        self._yaml = yaml
        self._events: Iterator[Any] = iter(())

    def document(self) -> Any:
        """The value; None without one. Raises UsageError."""
        yaml = self._yaml
        try:
            self._events = yaml.parse(self._text, Loader=yaml.SafeLoader)
            for event in self._events:
                if isinstance(event, yaml.DocumentStartEvent):
                    value = self._node(next(self._events), 0)
                    next(self._events)  # the end of the document
                    self._warn_of_more()
                    return value
        except yaml.reader.ReaderError as error:
            line = self._text.count("\n", 0, error.position) + 1
            raise UsageError(f"{self._name}: not YAML at line {line}: {error.reason}") from None
        except yaml.MarkedYAMLError as error:
            self._fail(error.problem_mark or error.context_mark, f"not YAML: {error.problem}")
        except (ValueError, OverflowError):  # PyYAML does not check \UFFFFFFFF, %YAML 9...9.1
            raise UsageError(f"{self._name}: not YAML: a number out of range") from None
        return None

    def _warn_of_more(self) -> None:
        yaml = self._yaml
        try:
            is_last = isinstance(next(self._events), yaml.StreamEndEvent)
        except (yaml.YAMLError, ValueError, OverflowError):
            is_last = False
        if not is_last:
            logger.warning("%s: only the first document is used; it ends at ---", self._name)

    def _node(self, event: Any, depth: int) -> Any:
        yaml = self._yaml
        if depth > MAX_DEPTH:
            self._fail(event.start_mark, f"nested too deeply; {MAX_DEPTH} levels at most")
        if isinstance(event, yaml.AliasEvent):
            self._fail(
                event.start_mark, f"aliases like *{event.anchor} are not supported; write it out"
            )
        if isinstance(event, yaml.ScalarEvent):
            is_text = event.tag in (_STR_TAG, "!")
            if event.tag is not None and not is_text:
                self._fail(event.start_mark, "tags like !!int are not supported; remove it")
            is_plain = event.implicit[0] and not is_text
            return None if is_plain and event.value in _NULLS else event.value
        if event.tag is not None:
            self._fail(event.start_mark, "tags like !!map are not supported; remove it")
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(event, depth + 1))
            return items
        members: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._fail(event.start_mark, "a key must be text")
            if event.value in members:
                self._fail(event.start_mark, f"the key {quoted(event.value)} is there twice")
            members[event.value] = self._node(next(self._events), depth + 1)
        return members

    def _fail(self, mark: Any, reason: str) -> NoReturn:
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise UsageError(f"{self._name}{where}: {reason}")
