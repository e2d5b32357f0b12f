"""The store in one SQLite file, used by one thread.

When `put`, `remove` and `clear` return, their changes survive a crash of this program and of the
machine: each is one transaction, written to disk (WAL with synchronous=FULL). SQLite blocks for as
long as the disk does, so all operations run in a thread. A single thread also serialises them.

The file is locked while it is open. It contains all secrets of the users, so no other user may read
it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from mtt.errors import StartError, describe
from mtt.files import warn_if_exposed
from mtt.users.store import Counters, Profile, Row, Store, StoreError

# "mttu", in the application id of the database file.
APPLICATION_ID = 0x6D747475

# Each step makes a database of the version before it one of the next version. The rowids give the
# order in which users were added.
_STEPS = (
    f"""
PRAGMA application_id = {APPLICATION_ID};
CREATE TABLE users (
    path TEXT NOT NULL UNIQUE CHECK (typeof(path) = 'text'),
    dst TEXT NOT NULL CHECK (typeof(dst) = 'text'),
    max_conns INTEGER NOT NULL CHECK (typeof(max_conns) = 'integer'),
    rate INTEGER NOT NULL CHECK (typeof(rate) = 'integer'),
    expires INTEGER NOT NULL CHECK (typeof(expires) = 'integer'),
    bytes_up INTEGER NOT NULL DEFAULT 0 CHECK (typeof(bytes_up) = 'integer'),
    bytes_down INTEGER NOT NULL DEFAULT 0 CHECK (typeof(bytes_down) = 'integer'),
    total_conns INTEGER NOT NULL DEFAULT 0 CHECK (typeof(total_conns) = 'integer'),
    last_seen INTEGER NOT NULL DEFAULT 0 CHECK (typeof(last_seen) = 'integer')
);
""",
    """
ALTER TABLE users ADD COLUMN name TEXT NOT NULL DEFAULT '' CHECK (typeof(name) = 'text');
ALTER TABLE users ADD COLUMN enabled INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1));
ALTER TABLE users ADD COLUMN quota INTEGER NOT NULL DEFAULT 0
    CHECK (typeof(quota) = 'integer');
ALTER TABLE users ADD COLUMN reset_day INTEGER NOT NULL DEFAULT 0
    CHECK (typeof(reset_day) = 'integer');
ALTER TABLE users ADD COLUMN next_reset INTEGER NOT NULL DEFAULT 0
    CHECK (typeof(next_reset) = 'integer');
""",
)
SCHEMA_VERSION = len(_STEPS)

_PUT = """
INSERT INTO users (path, dst, max_conns, rate, expires) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (path) DO UPDATE SET dst = excluded.dst, max_conns = excluded.max_conns,
    rate = excluded.rate, expires = excluded.expires
"""
_EDIT = """
INSERT INTO users (path, dst, max_conns, rate, expires, name, enabled, quota, reset_day, next_reset)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (path) DO UPDATE SET dst = excluded.dst, max_conns = excluded.max_conns,
    rate = excluded.rate, expires = excluded.expires, name = excluded.name,
    enabled = excluded.enabled, quota = excluded.quota, reset_day = excluded.reset_day,
    next_reset = excluded.next_reset
"""
_RENAME = """
UPDATE users SET path = ?, rowid = (SELECT max(rowid) + 1 FROM users) WHERE path = ?
"""
_RESET = """
UPDATE users SET bytes_up = 0, bytes_down = 0, total_conns = 0, next_reset = ? WHERE path = ?
"""
_PROFILES = """
SELECT path, name, enabled, quota, reset_day, next_reset FROM users
WHERE name != '' OR NOT enabled OR quota OR reset_day OR next_reset
"""
_COUNT = """
UPDATE users SET bytes_up = ?, bytes_down = ?, total_conns = ?, last_seen = ? WHERE path = ?
"""

Result = TypeVar("Result")


class SqliteStore(Store):
    """The database at `path`, which -db gave; created if there is none.

    `load()` raises StartError if the file is unusable, damaged, in use, of a newer version, or not
    a database of this program.
    """

    is_durable = True

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")
        self._database: sqlite3.Connection | None = None  # None if it is not open

    async def load(self) -> tuple[dict[str, Row], dict[str, Counters]]:
        def load() -> tuple[dict[str, Row], dict[str, Counters]]:
            self._database = _open(self._path)
            return _read(self._database)

        return await self._started(load)

    async def profiles(self) -> dict[str, Profile]:
        def read() -> dict[str, Profile]:
            assert self._database is not None
            return {
                path: (name, bool(enabled), quota, reset_day, next_reset)
                for path, name, enabled, quota, reset_day, next_reset in self._database.execute(
                    _PROFILES
                )
            }

        return await self._started(read)

    async def edit(self, path: str, row: Row, profile: Profile) -> None:
        await self._change(_EDIT, [(path, *row, *profile)])

    async def rename(self, old: str, new: str) -> None:
        await self._change(_RENAME, [(new, old)])

    async def reset(self, resets: list[tuple[str, int]]) -> None:
        await self._change(_RESET, ((next_reset, path) for path, next_reset in resets))

    async def put(self, rows: dict[str, Row]) -> None:
        await self._change(_PUT, ((path, *row) for path, row in rows.items()))

    async def remove(self, paths: list[str]) -> None:
        await self._change("DELETE FROM users WHERE path = ?", ((path,) for path in paths))

    async def clear(self) -> None:
        await self._change("DELETE FROM users", [()])

    async def count(self, counters: list[tuple[str, Counters]]) -> None:
        await self._change(_COUNT, ((*counts, path) for path, counts in counters))

    async def close(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            await self._run(database.close)
        self._thread.shutdown(wait=False)

    async def _started(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, a part of the start. Raises StartError."""
        path = self._path

        def start() -> Result:
            try:
                return work()
            except FileNotFoundError:  # the file itself would be created
                raise StartError(
                    f"-db: cannot open {path}: the directory does not exist; create it"
                ) from None
            except OSError as error:
                raise StartError(f"-db: cannot open {path}: {describe(error)}") from None
            except sqlite3.OperationalError as error:
                reason = str(error)
                if "locked" in reason:
                    reason = "another program has it open; stop that one, or choose another file"
                raise StartError(f"-db: cannot open {path}: {reason}") from None
            except sqlite3.Error as error:
                reason = " ".join(str(error).split())
                raise StartError(
                    f"-db: {path} is damaged ({reason}); restore a copy, or move it away to begin "
                    "anew"
                ) from None

        try:
            return await self._run(start)
        except BaseException:
            await self.close()
            raise

    async def _change(self, statement: str, parameters: Iterable[tuple[Any, ...]]) -> None:
        database = self._database  # now: `close()` waits for this change, but forgets it before
        assert database is not None

        def change() -> None:
            with _transaction(database):
                database.executemany(statement, parameters)

        try:
            await self._run(change)
        except sqlite3.Error as error:
            raise StoreError(f"database {self._path}: {error}") from None

    async def _run(self, work: Callable[[], Result]) -> Result:
        # Finish even if the caller is cancelled, so that database and memory stay in step.
        running = asyncio.get_running_loop().run_in_executor(self._thread, work)
        return await asyncio.shield(running)


def _open(path: str) -> sqlite3.Connection:
    # SQLite gives its other files the permissions of this one.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        warn_if_exposed("-db", path, os.fstat(descriptor))
    finally:
        os.close(descriptor)
    # Without a timeout: another server that holds the lock does not release it.
    database = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        # Set before WAL mode, so that no other process can open the file, and SQLite needs no
        # shared memory, which network file systems lack.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        _check(database, path)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        version = database.execute("PRAGMA user_version").fetchone()[0]
        for number, step in enumerate(_STEPS[version:], start=version + 1):
            database.executescript(
                f"BEGIN IMMEDIATE; {step} PRAGMA user_version = {number}; COMMIT;"
            )
        with _transaction(database):  # takes the lock and keeps it
            database.execute("DELETE FROM users WHERE 0")
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection, path: str) -> None:
    """Raise StartError or sqlite3.Error if the file is not a usable database."""
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    application: int = database.execute("PRAGMA application_id").fetchone()[0]
    tables: int = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if not (version or application or tables):
        return  # new
    if application != APPLICATION_ID:
        raise StartError(f"-db: {path} is the database of another program; choose another file")
    if version > SCHEMA_VERSION:
        raise StartError(
            f"-db: {path} is of a newer version of this program (format {version}, this one reads "
            f"{SCHEMA_VERSION}); upgrade, or choose another file"
        )
    fault = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if fault != "ok":
        raise sqlite3.DatabaseError(fault)


def _read(database: sqlite3.Connection) -> tuple[dict[str, Row], dict[str, Counters]]:
    rows: dict[str, Row] = {}
    counters: dict[str, Counters] = {}
    for path, dst, max_conns, rate, expires, *counts in database.execute(
        "SELECT path, dst, max_conns, rate, expires, bytes_up, bytes_down, total_conns, last_seen "
        "FROM users ORDER BY rowid"
    ):
        rows[path] = (dst, max_conns, rate, expires)
        if any(counts):
            up, down, total, last_seen = counts
            counters[path] = (up, down, total, last_seen)
    return rows, counters


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # after some errors, SQLite has already ended it
            database.execute("ROLLBACK")
        raise
