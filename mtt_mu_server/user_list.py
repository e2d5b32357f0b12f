"""Sorted and searched lists of users, in pages, for the API.

Sorting 100,000 users takes 0.1 s, in slices of a few milliseconds. The order is kept for further
pages, until a user changes; an order that depends on traffic for `LIFETIME`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from bisect import bisect_left
from collections.abc import Callable, Generator
from itertools import islice
from typing import Any, NamedTuple

from mtt.users.store import NO_PROFILE, Row
from mtt_mu_server.commands import in_slices
from mtt_mu_server.decoding import Refused
from mtt_mu_server.user import FINGERPRINT_LENGTH
from mtt_mu_server.users import Users

# Users between two yields, of about 1 us each.
SLICE = 1000
# Seconds for which an order by traffic is kept.
LIFETIME = 5.0
# Orders kept: 0.8 MB each for 100,000 users.
MAX_ORDERS = 8

_ID = re.compile(f"[0-9a-f]{{{FINGERPRINT_LENGTH}}}")
_NO_ROW: Row = ("", 0, 0, 0)

# Returns the sort key of the user of a path.
_Key = Callable[[Users, str], Any]
# Sort keys that change only when a user changes.
_STATIC: dict[str, _Key] = {
    "name": lambda users, path: users.profiles.get(path, NO_PROFILE)[0].casefold(),
    "dst": lambda users, path: users.rows.get(path, _NO_ROW)[0],
    "expires": lambda users, path: users.rows.get(path, _NO_ROW)[3],
    "quota": lambda users, path: users.profiles.get(path, NO_PROFILE)[2],
}
_KEYS = _STATIC | {
    "bytes": lambda users, path: sum(users.counters(path)[:2]),
    "total_conns": lambda users, path: users.counters(path)[2],
    "last_seen": lambda users, path: users.counters(path)[3],
    "open_conns": Users.open_count,
}


class _Order(NamedTuple):
    expires: float
    version: int
    paths: list[str]


class UserList:
    """Finds users by id, and makes pages of `users`. `clock` returns seconds."""

    def __init__(self, users: Users, clock: Callable[[], float] = time.monotonic) -> None:
        self._users = users
        self._clock = clock
        self._orders: dict[tuple[str, str], _Order] = {}
        self._making = asyncio.Lock()  # one at a time: waiting requests may need the same order
        self._ids: dict[int, str] = {}  # of deleted users, too
        self._shared: set[int] = set()  # ids of several users

    async def page(self, search: str, sort: str, offset: int, limit: int) -> tuple[int, list[str]]:
        """The number of users found, and the paths of those on a page.

        `sort` is one of the keys, descending after a `-`; empty for the order of their addition.
        Raises Refused.
        """
        if sort and sort.removeprefix("-") not in _KEYS:
            raise Refused(400, f"sort: not one of {', '.join(_KEYS)}, with or without -")
        if not (search or sort):
            return len(self._users), self._users.paths(offset, limit)
        paths = await self._ordered(search.casefold(), sort)
        return len(paths), paths[offset : offset + limit]

    async def find(self, ident: str) -> str:
        """The path of the user with an id. Raises Refused."""
        path = None
        if _ID.fullmatch(ident):
            await self._index()
            number = int(ident, 16)
            if number in self._shared:
                raise Refused(409, "id: several users have it; use a command with the path")
            path = self._ids.get(number)
        if path is None or path not in self._users.rows:
            raise Refused(404, "id: there is no such user")
        return path

    async def _ordered(self, search: str, sort: str) -> list[str]:
        async with self._making:
            known = self._orders.pop((search, sort), None)
            if (
                known is None
                or known.version != self._users.version
                or known.expires <= self._clock()
            ):
                is_static = not sort or sort.removeprefix("-") in _STATIC
                version = self._users.version
                if _ID.fullmatch(search):
                    await self._index()
                paths = await in_slices(self._sorted(search, sort))
                lifetime = float("inf") if is_static else LIFETIME
                known = _Order(self._clock() + lifetime, version, paths)
            self._orders[search, sort] = known
            while len(self._orders) > MAX_ORDERS:
                del self._orders[next(iter(self._orders))]
            return known.paths

    def _sorted(self, search: str, sort: str) -> Generator[None, None, list[str]]:
        users = self._users
        key = _KEYS.get(sort.removeprefix("-"))
        descending = sort.startswith("-")
        found = self._ids.get(int(search, 16)) if _ID.fullmatch(search) else None
        everything = list(users.rows)
        runs: list[list[Any]] = []
        for start in range(0, len(everything), SLICE):
            paths = everything[start : start + SLICE]
            if search:
                paths = [path for path in paths if path == found or self._matches(path, search)]
            if key is None:
                runs.append(paths)
            else:
                run = [(key(users, path), path) for path in paths]
                run.sort()
                runs.append(run)
            yield
        if key is None:
            return [path for run in runs for path in run]
        ordered = yield from _merged(runs)
        if descending:
            ordered.reverse()
        return ordered

    def _matches(self, path: str, search: str) -> bool:
        users = self._users
        return (
            search in users.profiles.get(path, NO_PROFILE)[0].casefold()
            or search in users.rows.get(path, _NO_ROW)[0].casefold()
        )

    async def _index(self) -> None:
        """Update the table of ids."""
        users = self._users
        if len(self._ids) > 2 * len(users) + SLICE:
            users.added = None
        while users.added is None or users.added:  # it may become None meanwhile, too
            if users.added is None:
                self._ids, self._shared = {}, set()
                users.added = list(users.rows)
            for path in islice(reversed(users.added), SLICE):
                self._add(path)
            del users.added[-SLICE:]
            await asyncio.sleep(0)

    def _add(self, path: str) -> None:
        raw = path.encode("utf-8", "surrogateescape")
        number = int.from_bytes(hashlib.sha256(raw).digest()[: FINGERPRINT_LENGTH // 2])
        known = self._ids.setdefault(number, path)
        if known != path and known in self._users.rows:
            self._shared.add(number)
        else:
            self._ids[number] = path


def _merged(runs: list[list[tuple[Any, str]]]) -> Generator[None, None, list[str]]:
    """The paths in sorted runs, in the order of all.

    Merges one range of keys after the other. Ranges are of similar size, as no two entries are
    equal: a sample of the entries says where they end.
    """
    sample = sorted(entry for run in runs for entry in run[:: SLICE // 10])
    ends: list[tuple[Any, str] | None] = [*sample[10::10], None]
    starts = [0] * len(runs)
    ordered: list[str] = []
    for last in ends:
        entries: list[tuple[Any, str]] = []
        for number, run in enumerate(runs):
            start = starts[number]
            end = len(run) if last is None else bisect_left(run, last, start)
            entries += run[start:end]
            starts[number] = end
        entries.sort()
        ordered += [path for _, path in entries]
        yield
    return ordered
