"""Who may use a server or a local port: names and passwords, and the file they come from.

A line of the file is `name:password`: blanks around both do not count, and neither do empty lines
and those that begin with a #. Or the file is JSON, a list of objects with "name" and "password",
for passwords that begin or end with a blank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from anytls.json_file import parse_json
from mtt.errors import UsageError
from mtt.options.anytls import checked_password
from mtt.options.files import read_text
from mtt.options.flags import quoted

# Bytes. 100 000 users, which take less than a second to read.
MAX_USERS_FILE = 8 << 20

# A name stands in logs and metrics, and in the logins of SOCKS (RFC 1929: 255 bytes).
MAX_NAME = 255

# Who has the password of -p.
DEFAULT_NAME = "default"


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a password."""

    name: str
    password: str = field(repr=False)


def read_users(option: str, path: str) -> tuple[User, ...]:
    """The users in a file.

    Raises UsageError, which names the line (of JSON: the item) and shows no password.
    """
    text = read_text(option, path, limit=MAX_USERS_FILE, secret=True)
    where = f"{option}: {path}"
    if text.lstrip()[:1] == "[":
        users, places = _from_json(where, text)
    else:
        users, places = _from_lines(where, text)
    if not users:
        raise UsageError(f"{where} has no users in it; write name:password into it")

    def fail(index: int, reason: str) -> NoReturn:
        raise UsageError(f"{where}: {places[index]}: {reason}")

    check_unique(users, fail)
    return users


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


def _from_lines(where: str, text: str) -> tuple[tuple[User, ...], list[str]]:
    users: list[User] = []
    places: list[str] = []
    # Not splitlines(), which would also split passwords at form feeds and the like.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        place = f"line {number}"
        name, colon, password = line.partition(":")
        if not colon:
            raise UsageError(f"{where}: {place}: there is no colon; write name:password")
        users.append(checked_user(f"{where}: {place}", name.strip(), password.strip()))
        places.append(place)
    return tuple(users), places


def _from_json(where: str, text: str) -> tuple[tuple[User, ...], list[str]]:
    found: Any = parse_json(where, text)
    users: list[User] = []
    places: list[str] = []
    for index, item in enumerate(found):
        place = f"[{index}]"
        if not isinstance(item, dict) or not item.keys() <= {"name", "password"}:
            raise UsageError(f'{where}: {place} is not like {{"name": "...", "password": "..."}}')
        name, password = item.get("name", ""), item.get("password", "")
        if not isinstance(name, str) or not isinstance(password, str):
            raise UsageError(f"{where}: {place}: name and password are strings")
        users.append(checked_user(f"{where}: {place}", name, password))
        places.append(place)
    return tuple(users), places
