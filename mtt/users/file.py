"""Files of users: names and passwords for a server or a local proxy port.

A line of the file is `name:password`; surrounding spaces, empty lines and lines that start with #
are ignored. Alternatively the file is JSON, which allows passwords that start or end with a space:
an object `{"name": ..., "password": ...}`, a list of those, an object with such a list as "users",
as in sing-box, or `{NAME: PASSWORD, ...}`, as in mihomo. A line may also be JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from mtt.errors import UsageError
from mtt.files import read_text
from mtt.options.anytls import checked_password
from mtt.options.flags import quoted
from mtt.options.json_text import parse_json
from mtt.users.user import User

# Bytes: room for 100 000 users, which are read in less than a second.
MAX_USERS_FILE = 8 << 20

# Bytes of a name, which appears in logs, metrics, and SOCKS logins (RFC 1929: 255 bytes).
MAX_NAME = 255


def read_users(option: str, path: str) -> tuple[User, ...]:
    """The users in a file.

    Raises UsageError, which names the line (in JSON: the item) and never shows a password.
    """
    text = read_text(option, path, limit=MAX_USERS_FILE, secret=True)
    where = f"{option}: {path}"
    found = _Users(where)
    if _is_json(text):
        found.add_json("", parse_json(where, text))
    else:
        found.add_lines(text)
    if not found.users:
        raise UsageError(f"{where} has no users; add a line like name:password")
    return unique(found.users, found.labels)


def unique(users: Sequence[User], labels: Sequence[str]) -> tuple[User, ...]:
    """`users`, if names and passwords are unique, because either identifies a user.

    `labels` are the starts of error texts about each. Raises UsageError.
    """
    names: set[str] = set()
    owners: dict[str, str] = {}
    for user, label in zip(users, labels, strict=True):
        if user.name in names:
            raise UsageError(f"{label}: duplicate user {quoted(user.name)}")
        names.add(user.name)
        owner = owners.setdefault(user.password, user.name)
        if owner != user.name:
            raise UsageError(
                f"{label}: {quoted(user.name)} has the same password as {quoted(owner)}"
            )
    return tuple(users)


def checked_user(where: str, name: str, password: str) -> User:
    """A user with a valid name and password. Raises UsageError."""
    if not name:
        raise UsageError(f"{where}: the user has no name")
    if not name.isprintable() or ":" in name:
        # In an HTTP login, a colon ends the name (RFC 7617, 2).
        raise UsageError(f"{where}: colon or control character in the name {quoted(name)}")
    if len(name.encode()) > MAX_NAME:
        raise UsageError(f"{where}: {quoted(name)} has more than {MAX_NAME} bytes")
    return User(name, checked_password(where, password))


def _is_json(text: str) -> bool:
    """Whether the file is a single JSON value rather than a line for each user."""
    for line in text.split("\n"):
        line = line.strip()
        if not line or line.startswith(("#", "//")):
            continue
        if line.startswith("{"):
            try:
                parse_json("", line)
            except UsageError:
                return True  # an object that spans several lines
            return False
        return line.startswith("[")
    return False


class _Users:
    """The users found in a file so far, and the start of an error text about each."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.users: list[User] = []
        self.labels: list[str] = []

    def add_lines(self, text: str) -> None:
        # Not splitlines(), which also splits at form feeds and other characters in passwords.
        for number, line in enumerate(text.split("\n"), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            place = f"line {number}"
            if line.startswith(("{", "[")):
                self.add_json(place, parse_json(f"{self._where}: {place}", line))
                continue
            name, colon, password = line.partition(":")
            if not colon:
                self._fail(place, "the colon is missing; write name:password")
            self._add(place, name.strip(), password.strip())

    def add_json(self, place: str, found: object) -> None:
        """Add the users of a JSON value found at `place`."""
        if isinstance(found, list):
            for index, item in enumerate(found):
                self._add_object(f"{place}[{index}]", item)
        elif isinstance(found, dict) and isinstance(found.get("users"), list | dict):
            if len(found) > 1:
                self._fail(place, 'an object with "users" must have no other key; remove the rest')
            place, users = f"{place}: users" if place else "users", found["users"]
            if isinstance(users, list):
                self.add_json(place, users)
                return
            for name, password in users.items():
                self._add(place, name, password)
        else:
            self._add_object(place, found)

    def _add_object(self, place: str, item: object) -> None:
        if not isinstance(item, dict) or not item.keys() <= {"name", "password"}:
            self._fail(place, 'not like {"name": "...", "password": "..."}')
        self._add(place, item.get("name", ""), item.get("password", ""))

    def _add(self, place: str, name: object, password: object) -> None:
        if not isinstance(name, str) or not isinstance(password, str):
            self._fail(place, "name and password must be strings; put them in quotes")
        label = self._label(place)
        self.users.append(checked_user(label, name, password))
        self.labels.append(label)

    def _label(self, place: str) -> str:
        return f"{self._where}: {place}" if place else self._where

    def _fail(self, place: str, reason: str) -> NoReturn:
        raise UsageError(f"{self._label(place)}: {reason}")
