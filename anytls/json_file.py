"""A configuration file in JSON, with comments, and its objects, which know their path.

Errors name line and column, or the path of the key: `config.json: outbounds[0].tls.utls`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mtt.files import read_text
from mtt.log import logger
from mtt.options.flags import clipped, parse_duration, quoted
from mtt.options.json_text import parse_json
from mtt.options.section import Keys

# Bytes. A user takes about 60, rules for a country's web sites some 100 KB.
MAX_CONFIG = 8 << 20

# Keys that weaken security are never suggested for a misspelt one.
_WEAKENING = {"insecure", "allowInsecure", "ignore-fingerprint"}

# Maximum number of keys in one warning, which has to stay readable.
_SHOWN = 12

# Panels store numbers as the text of a form field. 18 digits fit into 64 bits.
_NUMBER = re.compile(r"\s*(-?[0-9]{1,18})\s*", re.ASCII)

# Seconds: more than a century, and within the range of timers and of Go's 64 bits.
_LONGEST = 4e9


class JsonFile:
    """A parsed file: its top-level value, and the warnings about it."""

    def __init__(self, option: str, path: str, *, ignore_fingerprint: bool = False) -> None:
        """Read the file. Raises UsageError."""
        self.name = f"{option}: {path}"
        self.ignore_fingerprint = ignore_fingerprint  # see fields.fingerprint()
        text = read_text(option, path, limit=MAX_CONFIG, secret=True)
        self.top = parse_json(self.name, text)
        # Paths to warn about: of unknown keys, and of browser handshakes that are not imitated.
        self.unknown: list[str] = []
        self.fingerprints: list[str] = []
        self._ignored: dict[str, list[str]] = {}

    def note_ignored(self, path: str, why: str) -> None:
        """Warn that the value at `path` has no effect."""
        self._ignored.setdefault(why, []).append(path)

    def warn(self) -> None:
        """Log what is not used of the file, one line per reason."""
        if self.fingerprints:
            logger.warning(
                "%s: fingerprint IGNORED (%s): observers see a TLS handshake of OpenSSL, "
                "not that of a browser", self.name, _listed(self.fingerprints),
            )  # fmt: skip
        if self.unknown:
            logger.warning("%s: unknown, and not used: %s", self.name, _listed(self.unknown))
        for why, paths in self._ignored.items():
            logger.warning("%s: not used: %s: %s", self.name, _listed(paths), why)


def _listed(paths: list[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(clipped(path) for path in paths[:_SHOWN]) + more


class Section(Keys):
    """One object of a file. Its methods return the values of keys, and raise UsageError.

    Keys that were never read are unknown, see `done()`. Null means absent, and so do zero values
    for `present()`: the programs that write such files treat them the same way.
    """

    def __init__(self, file: JsonFile, path: str, value: Any) -> None:
        """`value` is the object at `path`, which is empty for the top of the file."""
        super().__init__(file.name, path, value, otherwise=" is not an object, like {...}")
        self.file = file

    def present(self, key: str) -> bool:
        """Whether `key` has an effect: false and empty values have none.

        An object has an effect if its "enabled" is true, or if it has members but no "enabled".
        """
        value = self._members.get(key)
        if isinstance(value, dict) and "enabled" in value:
            return bool(value["enabled"])
        return bool(value)

    def text(self, key: str) -> str:
        return self._typed(key, str, "a string") or ""

    def flag(self, key: str) -> bool:
        return self._typed(key, bool, "true or false") or False

    def integer(self, key: str) -> int:
        """An integer, or a string with one; 0 if absent."""
        value = self._get(key)
        if isinstance(value, str) and (number := _NUMBER.fullmatch(value)):
            return int(number[1])
        return self._typed(key, int, "an integer") or 0

    def port(self, key: str) -> int:
        """A required port number."""
        port = self.integer(key)
        if not 1 <= port <= 65535:
            self.fail(key, f"{port} is not a port; give one from 1 to 65535" if self.has(key)
                      else "missing; give a port from 1 to 65535")  # fmt: skip
        return port

    def seconds(self, key: str) -> float | None:
        """A duration like "1m30s" or "1d", or a number of seconds; None if absent or zero."""
        value = self._get(key)
        if isinstance(value, str) and value:
            try:
                value = parse_duration(value, days=True)
            except ValueError as error:
                self.fail(key, f"{quoted(str(value))} is not {error}")
        elif value and (isinstance(value, bool) or not isinstance(value, int | float)):
            self.fail(key, 'not a duration; write it like "30s" or "1m30s"')
        if not value:
            return None
        if value < 0:
            self.fail(key, 'negative; write it like "30s" or "1m30s"')
        if value > _LONGEST:
            self.fail(key, 'longer than a century; write it like "30s" or "1m30s"')
        return float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, or a single string."""
        value = self._get(key)
        if isinstance(value, str):
            return (value,) if value else ()
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(key, "not a list of strings")
        return tuple(value)

    def section(self, key: str) -> Section | None:
        """The object at `key`."""
        value = self._get(key)
        return None if value is None else Section(self.file, self.where(key), value)

    def sections(self, key: str) -> list[Section]:
        """The list of objects at `key`."""
        value = self._typed(key, list, "a list") or []
        return [Section(self.file, f"{self.where(key)}[{n}]", item) for n, item in enumerate(value)]

    def refuse(self, reasons: Mapping[str, str]) -> None:
        """Fail if one of these keys has an effect, with its reason."""
        self._known.update(reasons)
        for key, reason in reasons.items():
            if self.present(key):
                self.fail(key, reason)

    def ignore(self, reasons: Mapping[str, str]) -> None:
        """Warn if one of these keys has an effect, with its reason."""
        self._known.update(reasons)
        for key, reason in reasons.items():
            if self.present(key):
                self.file.note_ignored(self.where(key), reason)

    def done(self) -> None:
        """Warn about all keys that were never read."""
        from difflib import get_close_matches  # slow to import and rarely needed

        for key in self._members:
            if key not in self._known:
                similar = get_close_matches(key, self._known - _WEAKENING, 1)
                hint = f" (is it {similar[0]}?)" if similar else ""
                self.file.unknown.append(f"{self.where(clipped(key))}{hint}")
        self._known.update(self._members)  # each is named once

    def _typed(self, key: str, kind: type, what: str) -> Any:
        value = self._get(key)
        # In Python, a bool is an integer too.
        if value is not None and (
            not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        ):
            self.fail(key, f"not {what}")  # without the value, which may be a secret
        return value
