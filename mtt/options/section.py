"""One object of a configuration file: typed access to its keys, with errors that name the path."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from mtt.address import Endpoint, parse_endpoint
from mtt.errors import UsageError
from mtt.log import logger
from mtt.options.flags import BOOLEANS, parse_duration, parse_int, quoted

# YAML 1.1 knows more booleans than Go's flags, in any case.
_BOOLEANS = {text.lower(): value for text, value in BOOLEANS.items()} | {
    "yes": True, "y": True, "on": True, "no": False, "n": False, "off": False,
}  # fmt: skip

_VARIABLE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")
_PLAIN_KEY = re.compile(r"[\w*-]{1,80}")

# Similarity of a misspelt key to the required one that is missing: "address" to "addr" has 0.73,
# "group_password" to "group_id", which is another key, 0.64.
_SIMILAR = 0.7

_NO_VARIABLES: Mapping[str, str] = MappingProxyType({})


def is_unicode(text: str) -> bool:
    """Whether `text` can be encoded: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Keys:
    """The keys of one object of a file, and the path to it."""

    def __init__(self, file: str, path: str, members: object, *, otherwise: str) -> None:
        """`otherwise` ends the error if `members` is no object."""
        self.path = path
        self._file = file
        if not isinstance(members, dict):
            raise UsageError(f"{self.label()}{otherwise}")
        self._members = {key: value for key, value in members.items() if value is not None}
        self._known: set[str] = set()  # those that were read

    def where(self, key: str) -> str:
        """The path of `key`."""
        return f"{self.path}.{key}" if self.path else key

    def label(self, key: str = "") -> str:
        """The start of an error text about `key`, or about the object itself."""
        path = self.where(key) if key else self.path
        return ": ".join(part for part in (self._file, path) if part)

    def fail(self, key: str, reason: str) -> NoReturn:
        raise UsageError(f"{self.label(key)}: {reason}")

    def has(self, key: str) -> bool:
        """Whether `key` has a value, even an empty one."""
        return key in self._members

    def skip(self, *keys: str) -> None:
        """Mark keys as known; they need no action."""
        self._known.update(keys)

    def text(self, key: str) -> str:
        """A text; empty if absent."""
        raise NotImplementedError

    def required(self, key: str, what: str) -> str:
        """A text that must not be empty; `what` completes the error "give ..."."""
        text = self.text(key)
        if not text:
            self.missing(key, what)
        return text

    def missing(self, key: str, what: str) -> NoReturn:
        """Raise UsageError about a missing key, or about one that seems to be a misspelling."""
        self.fail(key, f"missing; give {what}")

    def _get(self, key: str) -> Any:
        self._known.add(key)
        return self._members.get(key)


class Section(Keys):
    """One object of a tree. Its getters return the values of keys, and raise UsageError.

    In text, `${NAME}` stands for a variable of `environ`, and `$${` for the characters `${`. Keys
    that were never read are errors, see `done()`. Null means absent.
    """

    def __init__(
        self,
        path: str,
        members: object,
        *,
        environ: Mapping[str, str] = _NO_VARIABLES,
        file: str = "",
    ) -> None:
        """`path` is empty for the top of a file; `file` begins all errors."""
        super().__init__(file, path, members, otherwise=": not an object with keys")
        self._environ = environ
        self._unsuggested: set[str] = set()

    def where(self, key: str) -> str:
        return super().where(key if _PLAIN_KEY.fullmatch(key) else quoted(key))

    def names(self) -> list[str]:
        """All keys, for objects whose keys are names."""
        return list(self._members)

    # Values. A default is for a missing key; none means an empty value.

    def text(self, key: str, default: str = "") -> str:
        value = self._get(key)
        return default if value is None else self._text(self.label(key), value)

    def missing(self, key: str, what: str) -> NoReturn:
        from difflib import get_close_matches  # slow to import and rarely needed

        unread = self._members.keys() - self._known
        if similar := get_close_matches(key, unread, 1, _SIMILAR):
            self.fail(similar[0], f"unknown; did you mean {key}?")
        super().missing(key, what)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, or a single text."""
        value = self._get(key)
        if value is None or value == "":
            return ()
        if isinstance(value, list):
            label = self.label(key)
            return tuple(self._text(f"{label}[{n}]", item) for n, item in enumerate(value))
        return (self._text(self.label(key), value),)

    def choice(self, key: str, choices: Iterable[str], default: str) -> str:
        """One of `choices`, in any case; also for an empty text, `default`."""
        text = self.text(key).lower() or default
        if text not in choices:
            self.fail(key, f"{quoted(text)} is not one of {', '.join(choices)}")
        return text

    def boolean(self, key: str, default: bool = False, *, weakens: bool = False) -> bool:
        """True or false. If true `weakens` security, the key is never suggested."""
        if weakens:
            self._unsuggested.add(key)
        value = self._get(key)
        if value is None or isinstance(value, bool):
            return default if value is None else value
        text = self._text(self.label(key), value)
        if text.lower() not in _BOOLEANS:
            self.fail(key, f"{quoted(text)} is not a boolean; write true or false")
        return _BOOLEANS[text.lower()]

    def number(self, key: str, default: int = 0, *, least: int = 0, most: int = 2**53) -> int:
        value = self._get(key)
        if value is None:
            return default
        if isinstance(value, str):
            try:
                value = parse_int(self._text(self.label(key), value))
            except ValueError as error:
                self.fail(key, f"{quoted(value)} is not {error}")
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(key, "not an integer; write it like 4")
        if not least <= value <= most:
            self.fail(key, f"{value} is not from {least} to {most}")
        return value

    def port(self, key: str, *, least: int = 1) -> int:
        """A required port number."""
        if not self.has(key):
            self._known.add(key)
            self.missing(key, f"a port from {least} to 65535")
        return self.number(key, least=least, most=65535)

    def duration(self, key: str, default: float) -> float:
        """Positive seconds, written like "1m30s"."""
        text = self.text(key)
        if not text:
            return default
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            self.fail(key, f"{quoted(text)} is not {error}")
        if seconds <= 0:
            self.fail(key, f"{quoted(text)} is not positive; write it like 5m")
        return seconds

    def endpoint(self, key: str) -> Endpoint | None:
        """An address to listen on; None for an empty text."""
        text = self.text(key)
        return parse_endpoint(self.label(key), text) if text else None

    # Objects.

    def section(self, key: str) -> Section:
        """The object at `key`, empty if there is none."""
        value = self._get(key)
        return self._below(self.where(key), {} if value is None else value)

    def sections(self, key: str, *, otherwise: str = "not a list") -> list[Section]:
        """The list of objects at `key`; the error `otherwise`."""
        value = self._get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fail(key, otherwise)
        return [self._below(f"{self.where(key)}[{n}]", item) for n, item in enumerate(value)]

    def titled(self, title: str) -> Section:
        """The same object; its errors name it `title` instead of its path."""
        file = ": ".join(part for part in (self._file, title) if part)
        return Section("", self._members, environ=self._environ, file=file)

    def variables(self) -> dict[str, str]:
        """The variables in all texts below, as far as they are set, with their values."""
        names: set[str] = set()
        todo: list[object] = [self._members]
        while todo:
            value = todo.pop()
            if isinstance(value, dict):
                todo += value.values()
            elif isinstance(value, list):
                todo += value
            elif isinstance(value, str):
                names.update(match[1] for match in _VARIABLE.finditer(value) if match[1])
        return {name: self._environ[name] for name in sorted(names) if self._environ.get(name)}

    def is_literal(self, key: str) -> bool:
        """Whether `key` has a value without variables."""
        value = self._members.get(key)
        return value is not None and not (isinstance(value, str) and _VARIABLE.search(value))

    # Keys without an effect.

    def ignore(self, reason: str, *keys: str) -> None:
        """Log a warning with the `reason` if some of these keys have values."""
        self._known.update(keys)
        found = [self.where(key) for key in keys if self._members.get(key)]
        if found:
            label = f"{self._file}: " if self._file else ""
            logger.warning("%snot used: %s: %s", label, ", ".join(found), reason)

    def done(self) -> None:
        """Raise UsageError if there is a key that was never read."""
        for key in self._members:
            if key not in self._known:
                self.fail(key, f"unknown; {self._advice(key)}")

    def _advice(self, key: str) -> str:
        from difflib import get_close_matches  # slow to import and rarely needed

        names = self._known - self._unsuggested
        if similar := get_close_matches(key.lower().replace("-", "_"), names, 1):
            return f"did you mean {similar[0]}?"
        return "remove it"

    def _below(self, path: str, members: object) -> Section:
        return Section(path, members, environ=self._environ, file=self._file)

    def _text(self, label: str, value: object) -> str:
        """`value` as text, with its variables. Errors do not show it: it may be a secret."""
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            what = "a list" if isinstance(value, list) else "not text; put it in quotes"
            what = "an object" if isinstance(value, dict) else what
            hint = "; write a single value" if isinstance(value, list | dict) else ""
            raise UsageError(f"{label}: {what}{hint}")

        def replaced(match: re.Match[str]) -> str:
            if match[0] == "$${":
                return "${"
            name = match[1]
            if name is None:
                raise UsageError(
                    f"{label}: ${{ without a variable's name; write ${{NAME}}, or $${{ for itself"
                )
            found = self._environ.get(name, "")
            if not found:  # an empty value is usually a mistake, and could weaken security
                is_set = "empty" if name in self._environ else "not set"
                raise UsageError(f"{label}: the environment variable {name} is {is_set}; set it")
            if not is_unicode(found):
                raise UsageError(f"{label}: the environment variable {name} is not UTF-8 text")
            return found

        return _VARIABLE.sub(replaced, value)
