"""The controller's API: JSON commands and JSON answers. Pure functions; nothing here waits.

It extends the original's API; a panel written for the original sees no difference as long as its
requests are valid. Commands are atomic: on an error, nothing of the request is executed.

A command may have 2 MiB and 30,000 users, so `parse()` is a generator: it yields periodically, so
that its caller can let the event loop run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any

from mtt.errors import UsageError
from mtt.options.common import reachable
from mtt.users.store import Row
from mtt.wire.http1 import MAX_HEAD
from mtt_mu_server.decoding import SLICE, Arg, Refused, WrongTypeError, decode, integer
from mtt_mu_server.user import Statistics, User, fingerprint

# A body of this size or more is refused, as by the original.
BODY_LIMIT = 2 * 1024 * 1024

ADD, DELETE, CLEAR, LIST, STATISTICS, PING = 1, 2, 3, 4, 5, 9

# Users in one answer to LIST or STATISTICS, which takes 4 ms to make.
PAGE_LIMIT = 1000

_LIMITS = ("max_conns", "rate", "expires")

# Characters that a path cannot contain: `?` starts a query, `#` a fragment, and `%` an escape that
# the server decodes.
_NOT_IN_PATH = re.compile(r"[?#]|%[0-9A-Fa-f]{2}")


@dataclass(slots=True)
class Add:
    """Add or overwrite users; `rows` by path."""

    rows: dict[str, Row]


@dataclass(slots=True)
class Delete:
    """Delete users, and cut their connections if `disconnect`."""

    paths: list[str]
    disconnect: bool


@dataclass(slots=True)
class Clear:
    """Delete all users, and cut their connections if `disconnect`."""

    disconnect: bool


@dataclass(slots=True)
class Page:
    """List users, with `statistics` their counters."""

    statistics: bool
    offset: int
    limit: int


@dataclass(slots=True)
class Ask:
    """Get the counters of certain users."""

    paths: list[str]


@dataclass(slots=True)
class Ping:
    """Get the number of users."""


Command = Add | Delete | Clear | Page | Ask | Ping


def parse(body: bytes) -> Generator[None, None, Command]:
    """The command in the body of a request, returned after any number of yields.

    Raises Refused, whose text names the invalid field.
    """
    fields = yield from decode(body)
    opt = fields.get("opt", 0)
    args: list[Arg] = fields.get("args_bunch", [])
    if opt in (ADD, DELETE) and not args:
        raise Refused(200, "empty args")
    if opt == ADD:
        return Add((yield from _rows(args)))
    if opt == DELETE:
        return Delete((yield from _paths(args)), _boolean(fields, "disconnect"))
    if opt == CLEAR:
        return Clear(_boolean(fields, "disconnect"))
    if opt == STATISTICS and args:
        if len(args) > PAGE_LIMIT:
            raise Refused(400, f"args_bunch: more than {PAGE_LIMIT} paths in one request")
        return Ask((yield from _paths(args)))
    if opt in (LIST, STATISTICS):
        limit = integer("limit", fields.get("limit", PAGE_LIMIT))
        if not 1 <= limit <= PAGE_LIMIT:
            raise Refused(400, f"limit: {limit} is not from 1 to {PAGE_LIMIT}")
        return Page(opt == STATISTICS, natural("offset", fields.get("offset", 0)), limit)
    if opt == PING:
        return Ping()
    raise Refused(200, "invalid opt")


# Answers.


def answer(**fields: object) -> bytes:
    """The answer to an executed command. Fields that are 0 are omitted, as in Go."""
    return encode({"res": 1} | {name: value for name, value in fields.items() if value})


def users_answer(total: int, users: Iterable[User]) -> bytes:
    """The answer to LIST."""
    return encode({"res": 1, "total": total, "users": [_listed(user) for user in users]})


def statistics_answer(total: int, found: Iterable[tuple[str, Statistics]]) -> bytes:
    """The answer to STATISTICS: the path and counters of each user."""
    users = [{"path": path, "id": fingerprint(path)} | used._asdict() for path, used in found]
    return encode({"res": 1, "total": total, "users": users})


def error_answer(reason: str) -> bytes:
    """The answer to a refused request."""
    return encode({"res": 2, "err_string": reason})


def _listed(user: User) -> dict[str, object]:
    path, dst, *limits = user
    listed: dict[str, object] = {"path": path, "dst": dst, "id": fingerprint(path)}
    return listed | {name: value for name, value in zip(_LIMITS, limits, strict=True) if value}


def encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii")


# Checking.


def _rows(args: list[Arg]) -> Generator[None, None, dict[str, Row]]:
    rows: dict[str, Row] = {}
    # Many users have the same few destinations and limits, so equal values share memory.
    known: dict[str, str] = {}
    for index, (path, dst, others) in enumerate(args):
        if fault := path_fault(path) or unreachable(path):
            raise Refused(400, f"args_bunch[{index}].path: {fault}")
        if dst not in known:
            check_dst(f"args_bunch[{index}].dst", dst)
            known[dst] = dst
        dst = known[dst]
        if others is None:
            rows[path] = (dst, 0, 0, 0)
        else:
            max_conns, rate, expires = (
                natural(f"args_bunch[{index}].{name}", others.get(name, 0)) for name in _LIMITS
            )
            rows[path] = (dst, max_conns, rate, expires)
        if index % SLICE == 0:
            yield
    return rows


def _paths(args: list[Arg]) -> Generator[None, None, list[str]]:
    paths: dict[str, None] = {}
    for index, (path, _, _) in enumerate(args):
        if fault := path_fault(path):
            raise Refused(400, f"args_bunch[{index}].path: {fault}")
        paths[path] = None
        if index % SLICE == 0:
            yield
    return list(paths)


def path_fault(path: str) -> str:
    """Why no user can have this path; empty if one can."""
    if not path.startswith("/"):
        return "it does not start with /"
    if not path.isascii():
        try:
            path.encode()
        except UnicodeEncodeError:
            # A lone surrogate such as "\ud800": no request can contain it.
            return "it is no valid text"
    return ""


def unreachable(path: str) -> str:
    """Why no client can request `path`; empty if one can. Such users may exist from earlier
    versions, and can be deleted."""
    found = _NOT_IN_PATH.search(path)
    if found is None and len(path) < MAX_HEAD:
        return ""
    if found is None:
        return f"it is longer than a request may be ({MAX_HEAD} bytes)"
    if found[0] in "?#":
        return f"clients cut it off at the {found[0]}, so it would never match; leave that out"
    return f"{found[0]} arrives percent-decoded, so it would never match; write it decoded"


def check_dst(where: str, dst: str) -> None:
    """Raise Refused if `dst`, the value of the field `where`, is no destination."""
    try:
        reachable(where, dst)
    except UsageError as error:
        raise Refused(400, str(error)) from None
    if not dst.isprintable():
        raise Refused(400, f"{where}: it contains control characters")


def natural(name: str, value: Any) -> int:
    if integer(name, value) < 0:
        raise Refused(400, f"{name}: it is negative")
    return int(value)


def _boolean(fields: dict[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise WrongTypeError(name, "true or false")
    return value
