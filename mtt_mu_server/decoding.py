"""Decodes JSON as Go's encoding/json decodes it into the original's structures. Pure functions.

Keys are case-insensitive, the last of equal keys wins, null means absent, integers have no fraction
or exponent, and a wrong type anywhere fails the whole request. One rule is stricter: an unknown key
is an error, because a misspelt limit would otherwise create an unlimited user.

The entries of `args_bunch` are decoded one by one, with pauses for the event loop: Python's decoder
would block it for 20 ms for the largest request.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from typing import Any, NoReturn

from mtt.options.flags import clipped

# Entries between two yields: parsing and checking them takes about 1 ms.
SLICE = 100

# The range of Go's int and of SQLite's integers.
INT64 = range(-(2**63), 2**63)

_FIELDS = frozenset(("opt", "args_bunch", "disconnect", "offset", "limit"))
# `id` is ignored; it is accepted so that listed users can be added again unchanged.
_ARG_FIELDS = frozenset(("path", "dst", "max_conns", "rate", "expires", "id"))

_SPACE = re.compile(r"[ \t\n\r]*")

# An entry of args_bunch: path, dst, and the other known fields as received.
Arg = tuple[str, str, dict[str, Any] | None]
_NO_ARG: Arg = ("", "", None)


class Refused(Exception):
    """The request is refused.

    `status`: of the response. It is 200 where the original answers with 200.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class FieldError(Refused):
    """A field of a valid JSON request is invalid."""


class WrongTypeError(FieldError):
    """A field has a value of the wrong type."""

    def __init__(self, name: str, wanted: str) -> None:
        super().__init__(400, f"{name}: not {wanted}")


class UnknownFieldError(FieldError):
    """The field does not exist, or not in this object."""

    def __init__(self, prefix: str, key: str) -> None:
        from difflib import get_close_matches  # slow to import and rarely needed

        known, others = (_ARG_FIELDS, _FIELDS) if prefix else (_FIELDS, _ARG_FIELDS)
        name = clipped(key.casefold())
        if name in others:
            hint = "it stands beside args_bunch" if prefix else "it stands in entries of args_bunch"
        elif similar := get_close_matches(name, known, 1):
            hint = f"did you mean {similar[0]}?"
        else:
            hint = f"there are {', '.join(sorted(known))}"
        super().__init__(400, f"{prefix}{clipped(key)}: no such field here; {hint}")


class _Object(list[tuple[str, Any]]):
    """A JSON object: its members in order, duplicate keys included."""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")  # Python's decoder takes NaN and Infinity


def _int_value(text: str) -> int:
    # Larger values are out of range anyway; Python itself fails at 4300 digits.
    return int(text) if len(text) <= 20 else INT64.stop


_decoder = json.JSONDecoder(
    object_pairs_hook=_Object, parse_constant=_no_constant, parse_int=_int_value
)


class _Scanner:
    """A position in a JSON text. Its methods raise Refused on invalid JSON."""

    def __init__(self, body: bytes) -> None:
        try:
            self._text = body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused(400, f"malformed JSON: byte {error.start} is not UTF-8") from None
        self._at = 0

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
        return self._text[self._at : self._at + 1]

    def value(self) -> Any:
        """The value that starts here."""
        self.peek()
        try:
            value, self._at = _decoder.raw_decode(self._text, self._at)
        except (ValueError, RecursionError) as error:
            raise self.malformed(getattr(error, "pos", self._at)) from None
        return value

    def members(self) -> Iterator[str]:
        """The keys of the object that starts here; the caller reads the value after each key."""
        for _ in self._until("}"):
            if self.peek() != '"':
                raise self.malformed(self._at)
            key = self.value()
            if self.peek() != ":":
                raise self.malformed(self._at)
            self._at += 1
            yield key

    def elements(self) -> Iterator[Any]:
        """The values of the array that starts here."""
        for _ in self._until("]"):
            yield self.value()

    def end(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            raise self.malformed(self._at)

    def malformed(self, at: int) -> Refused:
        return Refused(400, f"malformed JSON at character {at}")

    def _until(self, closing: str) -> Iterator[None]:
        """Yields once for every item up to the closing bracket."""
        self._at += 1
        if self.peek() == closing:
            self._at += 1
            return
        while True:
            yield
            found = self.peek()
            self._at += 1
            if found == closing:
                return
            if found != ",":
                raise self.malformed(self._at - 1)


def decode(body: bytes) -> Generator[None, None, dict[str, Any]]:
    """The known fields of the request; `opt` and `args_bunch` have the right types."""
    scanner = _Scanner(body)
    fields: dict[str, Any] = {}
    if scanner.peek() != "{":
        value = scanner.value()
        scanner.end()
        if value is not None:
            raise Refused(400, "the request is not a JSON object")
        return fields
    wrong: FieldError | None = None  # the first one, raised only if the rest is valid JSON
    for key in scanner.members():
        name = key if key in _FIELDS else key.casefold()
        try:
            if name not in _FIELDS:
                scanner.value()
                if wrong is None:
                    raise UnknownFieldError("", key)
            elif name != "args_bunch":
                value = scanner.value()
                if value is not None:
                    fields[name] = integer("opt", value) if name == "opt" else value
            elif scanner.peek() == "[":
                args: list[Arg] = []
                for entry in scanner.elements():
                    try:
                        args.append(_arg(len(args), entry) if wrong is None else _NO_ARG)
                    except FieldError as error:
                        wrong = error
                        args.append(_NO_ARG)
                    if len(args) % SLICE == 0:
                        yield
                fields[name] = args
            elif scanner.value() is None:
                fields.pop(name, None)
            else:
                raise WrongTypeError(name, "an array")
        except FieldError as error:
            wrong = wrong or error
    scanner.end()
    if wrong is not None:
        raise wrong
    return fields


def _arg(index: int, entry: Any) -> Arg:
    if entry is None:
        return _NO_ARG
    if not isinstance(entry, _Object):
        raise WrongTypeError(f"args_bunch[{index}]", "an object")
    path = dst = ""
    others: dict[str, Any] | None = None
    for key, value in entry:
        name = key if key in _ARG_FIELDS else key.casefold()
        if name not in _ARG_FIELDS:
            raise UnknownFieldError(f"args_bunch[{index}].", key)
        if value is None:
            continue
        if name == "path" or name == "dst":
            if not isinstance(value, str):
                raise WrongTypeError(f"args_bunch[{index}].{name}", "a string")
            if name == "path":
                path = value
            else:
                dst = value
        else:
            others = others or {}
            others[name] = value
    return path, dst, others


def integer(name: str, value: Any) -> int:
    """`value` if it is an integer of 64 bits. Raises WrongTypeError."""
    if type(value) is not int or value not in INT64:
        raise WrongTypeError(name, "an integer")
    return value
