"""The contract of stores: where a server's users and their counters outlive its run.

A server loads everything at the start and answers from memory. A change is made in the store first;
once it is durable, the server makes it in memory.

    MemoryStore                     nothing outlives the run
    mtt.users.sqlite.SqliteStore    one file, one server

A file of users and passwords (`mtt.users.file`) is no store: the operator edits it, the server only
reads it again, and it has no counters.
"""

from __future__ import annotations

from typing import Protocol

from mtt.errors import MttError

# A user's settings: destination (host:port), the most concurrent connections, bytes per second in
# each direction, and the Unix time at which the user expires. Zero means "no limit".
Row = tuple[str, int, int, int]
# Bytes up, bytes down, connections so far, and the Unix time at which the user was last seen.
Counters = tuple[int, int, int, int]
NO_COUNTERS: Counters = (0, 0, 0, 0)
# What the API of panels adds: name (a note), whether the user is enabled, quota in bytes of both
# directions (0: none), day of the month on which the counters are reset (0: never), and the Unix
# time of the next reset.
Profile = tuple[str, bool, int, int, int]
NO_PROFILE: Profile = ("", True, 0, 0, 0)


class StoreError(MttError):
    """A change of the store failed and was rolled back."""


class Changes(Protocol):
    """Commands of the operator, each atomic: done as a whole when the call returns."""

    async def put(self, rows: dict[str, Row]) -> None:
        """Add users, by path, or overwrite their settings; counters and profiles are kept."""

    async def remove(self, paths: list[str]) -> None:
        """Delete users, their counters and profiles."""

    async def clear(self) -> None:
        """Delete all users, their counters and profiles."""


class Store(Changes, Protocol):
    """Users and counters. Changes raise StoreError.

    Attributes:
        is_durable: whether they outlive the run of the server.
    """

    is_durable: bool

    async def load(self) -> tuple[dict[str, Row], dict[str, Counters]]:
        """Open the store, and return rows and counters by path, in the order of the first `put`.

        Raises StartError.
        """

    async def profiles(self) -> dict[str, Profile]:
        """After `load`: the profiles that differ from NO_PROFILE, by path. Raises StartError."""

    async def edit(self, path: str, row: Row, profile: Profile) -> None:
        """Add a user, or overwrite settings and profile; counters are kept."""

    async def rename(self, old: str, new: str) -> None:
        """Give a user a new path, which has no user yet; the user becomes the last one added."""

    async def reset(self, resets: list[tuple[str, int]]) -> None:
        """Set bytes and connections of users to 0, and the time of their next reset."""

    async def count(self, counters: list[tuple[str, Counters]]) -> None:
        """Set the counters of users; skips users that no longer exist."""

    async def close(self) -> None:
        """Close the store after pending operations; no effect if it is not open."""


class MemoryStore(Store):
    """The store of a server without a database: all that there is is in the server's memory."""

    is_durable = False

    async def load(self) -> tuple[dict[str, Row], dict[str, Counters]]:
        return {}, {}

    async def profiles(self) -> dict[str, Profile]:
        return {}

    async def edit(self, path: str, row: Row, profile: Profile) -> None:
        pass

    async def rename(self, old: str, new: str) -> None:
        pass

    async def reset(self, resets: list[tuple[str, int]]) -> None:
        pass

    async def put(self, rows: dict[str, Row]) -> None:
        pass

    async def remove(self, paths: list[str]) -> None:
        pass

    async def clear(self) -> None:
        pass

    async def count(self, counters: list[tuple[str, Counters]]) -> None:
        pass

    async def close(self) -> None:
        pass
