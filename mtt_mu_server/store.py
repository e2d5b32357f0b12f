"""Where users and counters are kept: one SQLite file, used by one thread.

What `put`, `remove` and `clear` have done when they return survives a crash of this program and of
the machine: each is one transaction, on the disk (WAL with synchronous=FULL). SQLite blocks, and
for as long as the disk does, so all of it happens in a thread; that there is only one makes it a
queue.

The file is locked for as long as it is open. It holds all the secrets the users have, so nobody
else may read it.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from mtt.errors import MttError, StartError, describe
from mtt.files import warn_if_exposed
from mtt_mu_server.records import Counters, Row

# "mttu", in the field of a database file that says whose it is.
APPLICATION_ID = 0x6D747475
SCHEMA_VERSION = 1

# The order in which users were added is that of their rowids.
_SCHEMA = f"""
BEGIN IMMEDIATE;
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
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""

_PUT = """
INSERT INTO users (path, dst, max_conns, rate, expires) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (path) DO UPDATE SET dst = excluded.dst, max_conns = excluded.max_conns,
    rate = excluded.rate, expires = excluded.expires
"""
_COUNT = """
UPDATE users SET bytes_up = ?, bytes_down = ?, total_conns = ?, last_seen = ? WHERE path = ?
"""

Result = TypeVar("Result")


class StoreError(MttError):
    """The database could not be changed, and was not."""


class Store:
    """The open database; made by `open_store()`."""

    def __init__(self, path: str, thread: ThreadPoolExecutor, database: sqlite3.Connection) -> None:
        self._path = path
        self._thread = thread
        self._database = database

    async def put(self, rows: dict[str, Row]) -> None:
        """Add users or overwrite what was said about them. Raises StoreError."""
        await self._change(_PUT, ((path, *row) for path, row in rows.items()))

    async def remove(self, paths: list[str]) -> None:
        """Delete users. Raises StoreError."""
        await self._change("DELETE FROM users WHERE path = ?", ((path,) for path in paths))

    async def clear(self) -> None:
        """Delete all users. Raises StoreError."""
        await self._change("DELETE FROM users", [()])

    async def count(self, counters: list[tuple[str, Counters]]) -> None:
        """Set the counters of users; those who are not there any more are skipped.

        Raises StoreError.
        """
        await self._change(_COUNT, ((*counts, path) for path, counts in counters))

    async def close(self) -> None:
        """Close the database after what was begun."""
        await self._run(self._database.close)
        self._thread.shutdown(wait=False)

    async def _change(self, statement: str, parameters: Iterable[tuple[Any, ...]]) -> None:
        def change() -> None:
            with _transaction(self._database):
                self._database.executemany(statement, parameters)

        try:
            await self._run(change)
        except sqlite3.Error as error:
            raise StoreError(f"database {self._path}: {error}") from None

    async def _run(self, work: Callable[[], Result]) -> Result:
        # To the end also when nobody waits for it any more: half a command is none.
        running = asyncio.get_running_loop().run_in_executor(self._thread, work)
        return await asyncio.shield(running)


async def open_store(path: str) -> tuple[Store, dict[str, Row], dict[str, Counters]]:
    """Open the database, or make it, and read what it holds.

    Returns rows and counters by path, those in the order in which the users were added. Raises
    StartError: the file cannot be used, is damaged, in use, of a newer version or none of ours.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database")

    def prepare() -> tuple[sqlite3.Connection, dict[str, Row], dict[str, Counters]]:
        with _start_errors(path):
            database = _open(path)
            try:
                return database, *_read(database)
            except BaseException:
                database.close()
                raise

    try:
        opened = await asyncio.get_running_loop().run_in_executor(thread, prepare)
    except BaseException:
        thread.shutdown(wait=False)
        raise
    database, rows, counters = opened
    return Store(path, thread, database), rows, counters


def _open(path: str) -> sqlite3.Connection:
    # SQLite gives its other files the permissions of this one.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        warn_if_exposed("-db", path, os.fstat(descriptor))
    finally:
        os.close(descriptor)
    # Without a timeout: who has locked it is another server, and that one will not let go of it.
    database = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        # Before WAL is entered: no other process can open the file then, and no shared memory
        # is needed, which network file systems do not have.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        _check(database, path)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if not database.execute("PRAGMA user_version").fetchone()[0]:
            database.executescript(_SCHEMA)
        with _transaction(database):  # takes the lock for good
            database.execute("DELETE FROM users WHERE 0")
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection, path: str) -> None:
    """Raise StartError, or sqlite3.Error, if the file is not a database that we can use."""
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    application: int = database.execute("PRAGMA application_id").fetchone()[0]
    tables: int = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if not (version or application or tables):
        return  # new
    if application != APPLICATION_ID:
        raise StartError(f"-db: {path} is the database of another program; choose another file")
    if version > SCHEMA_VERSION:
        raise StartError(
            f"-db: {path} is of a newer version of this program (format {version}, this one knows "
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
        if database.in_transaction:  # SQLite has ended it itself after some errors
            database.execute("ROLLBACK")
        raise


@contextmanager
def _start_errors(path: str) -> Iterator[None]:
    """Make what keeps the database from being opened one clear line."""
    try:
        yield
    except OSError as error:
        raise StartError(f"-db: cannot open {path}: {describe(error)}") from None
    except sqlite3.OperationalError as error:
        reason = str(error)
        if "locked" in reason:
            reason = "another program has it open; stop that one, or choose another file"
        raise StartError(f"-db: cannot open {path}: {reason}") from None
    except sqlite3.Error as error:
        raise StartError(
            f"-db: {path} is damaged ({' '.join(str(error).split())}); restore a copy, or move it "
            "away to begin anew"
        ) from None
