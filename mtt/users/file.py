"""Who may use a server or a local port: names and passwords, and the file they come from.

A line of the file is `name:password`; surrounding spaces, empty lines and lines that begin with #
are ignored. Or the file is JSON, which also takes passwords that begin or end with a space: an
object `{"name": ..., "password": ...}`, a list of those, or an object that has such a list as
"users", as sing-box has it, or `{NAME: PASSWORD, ...}`, as mihomo has it. Each line may be JSON.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NoReturn

from mtt.errors import UsageError
from mtt.files import read_text
from mtt.options.anytls import checked_password
from mtt.options.flags import quoted
from mtt.options.json_text import parse_json
from mtt.users.user import User

# Bytes. 100 000 users, which take less than a second to read.
MAX_USERS_FILE = 8 << 20

# A name stands in logs and metrics, and in the logins of SOCKS (RFC 1929: 255 bytes).
MAX_NAME = 255


def read_users(option: str, path: str) -> tuple[User, ...]:
    """The users in a file.

    Raises UsageError, which names the line (of JSON: the item) and shows no password.
    """
    text = read_text(option, path, limit=MAX_USERS_FILE, secret=True)
    where = f"{option}: {path}"
    found = _Users(where)
    if _is_json(text):
        found.add_json("", parse_json(where, text))
    else:
        found.add_lines(text)
    users = found.users
    if not users:
        raise UsageError(f"{where} has no users; add a line like name:password")

    def fail(index: int, reason: str) -> NoReturn:
        raise UsageError(f"{where}: {found.places[index]}: {reason}")

    check_unique(users, fail)
    return tuple(users)


def check_unique(users: Iterable[User], fail: Callable[[int, str], NoReturn]) -> None:
    """Check that no name and no password is there twice: users are told apart by both.

    `fail` is called with the index of the second user and the reason.
    """
    names: set[str] = set()
    owners: dict[str, str] = {}
    for index, user in enumerate(users):
        if user.name in names:
            fail(index, f"there is a user {quoted(user.name)} already")
        names.add(user.name)
        owner = owners.setdefault(user.password, user.name)
        if owner != user.name:
            fail(index, f"{quoted(user.name)} has the same password as {quoted(owner)}")


def checked_user(where: str, name: str, password: str) -> User:
    """A user, if name and password are good for one. Raises UsageError."""
    if not name:
        raise UsageError(f"{where}: the user has no name")
    if not name.isprintable() or ":" in name:
        # A login of HTTP ends the name at a colon (RFC 7617, 2).
        raise UsageError(f"{where}: {quoted(name)} is no name: write no colon or control character")
    if len(name.encode()) > MAX_NAME:
        raise UsageError(f"{where}: {quoted(name)} has more than {MAX_NAME} bytes")
    return User(name, checked_password(where, password))


def _is_json(text: str) -> bool:
    """Whether the file is one JSON value, and not a line for each user."""
    for line in text.split("\n"):
        line = line.strip()
        if not line or line.startswith(("#", "//")):
            continue
        if line.startswith("{"):
            try:
                parse_json("", line)
            except UsageError:
                return True  # an object of several lines
            return False
        return line.startswith("[")
    return False


class _Users:
    """The users found in a file so far, and where each stands."""

    def __init__(self, where: str) -> None:
        self._where = where
        self.users: list[User] = []
        self.places: list[str] = []

    def add_lines(self, text: str) -> None:
        # Not splitlines(), which would also split passwords at form feeds and the like.
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
                self._fail(place, "there is no colon; write name:password")
            self._add(place, name.strip(), password.strip())

    def add_json(self, place: str, found: object) -> None:
        """Add the users in a JSON value that stands at `place`."""
        if isinstance(found, list):
            for index, item in enumerate(found):
                self._add_object(f"{place}[{index}]", item)
        elif isinstance(found, dict) and isinstance(found.get("users"), list | dict):
            if len(found) > 1:
                self._fail(place, 'only "users" may be in an object that has it; remove the rest')
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
            self._fail(place, "name and password are strings; write them in quotes")
        self.users.append(checked_user(self._label(place), name, password))
        self.places.append(place)

    def _label(self, place: str) -> str:
        return f"{self._where}: {place}" if place else self._where

    def _fail(self, place: str, reason: str) -> NoReturn:
        raise UsageError(f"{self._label(place)}: {reason}")
