"""Stores of the passwords of a gateway's groups: a JSON file, a SQLite table.

A store keeps hashes: scrypt with a random salt, written `scrypt$SALT$HASH` in Base64. It also reads
the Go program's hashes, which are hexadecimal SHA-256 without a salt, and replaces each by a salted
one when its password is next shown.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import sqlite3
from base64 import b64decode, b64encode
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Protocol

from mtt.errors import UsageError, describe
from mtt.log import Throttle

# scrypt (RFC 7914) with 16 MiB and some 50 ms, as OWASP recommends at least for interactive logins
# with little memory. The gateway computes two at a time, see `anyproxy.credentials`.
_COST, _BLOCK, _LANES = 2**14, 8, 1
_MEMORY = 64 * 1024 * 1024  # OpenSSL's limit; its default of 32 MiB is too tight
_SALT_SIZE = 16
_PREFIX = "scrypt"

# Groups in a store, about 2 MB. Agents of new groups add them, perhaps strangers.
MAX_GROUPS = 10_000
# Seconds that SQLite waits for another process that writes.
_LOCK_TIME = 5.0

_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)
_COLUMNS = {"group_id", "password_hash", "created_at", "updated_at"}

_unwritable = Throttle()


class PasswordStore(Protocol):
    """Hashes by group. Methods may block and run in several threads; they raise OSError."""

    def get(self, group: str) -> str | None:
        """The hash of a group's password; None for an unknown group."""

    def replace(self, group: str, former: str | None, hashed: str) -> str:
        """Store a hash if the present one is `former`, None for an unknown group.

        Returns the hash that is stored now. Of several concurrent calls one succeeds.
        """


def hash_password(password: bytes) -> str:
    """The salted hash of a password. Takes some 50 ms."""
    salt = os.urandom(_SALT_SIZE)
    return f"{_PREFIX}${_encode(salt)}${_encode(_scrypt(password, salt))}"


def matches(password: bytes, hashed: str) -> bool:
    """Whether `hashed` is a hash of `password`, in constant time. False if it is malformed."""
    if is_unsalted(hashed):
        digest = hashlib.sha256(password).hexdigest()
        return hmac.compare_digest(digest, hashed.lower())
    kind, _, rest = hashed.partition("$")
    salt, _, digest = rest.partition("$")
    if kind != _PREFIX:
        return False
    try:
        expected = b64decode(digest, validate=True)
        return hmac.compare_digest(_scrypt(password, b64decode(salt, validate=True)), expected)
    except ValueError:
        return False


def is_unsalted(hashed: str) -> bool:
    """Whether this is a hash of the Go program."""
    return _SHA256.fullmatch(hashed) is not None


def check_stored(store: PasswordStore, group: str, password: bytes) -> str | None:
    """The stored hash of a group if it is one of `password`, else None.

    A new group gets this password. Raises OSError.
    """
    hashed = store.get(group)
    if hashed is None:
        hashed = store.replace(group, None, mine := hash_password(password))
        if hashed == mine:
            return hashed
        # Another agent of the group was first.
    if not matches(password, hashed):
        return None
    if is_unsalted(hashed):
        try:
            hashed = store.replace(group, hashed, hash_password(password))
        except OSError as error:
            # The password is right all the same.
            _unwritable.warning("unsalted password hashes stay: %s", describe(error))
    return hashed


def _scrypt(password: bytes, salt: bytes) -> bytes:
    return hashlib.scrypt(
        password, salt=salt, n=_COST, r=_BLOCK, p=_LANES, maxmem=_MEMORY, dklen=32
    )


def _encode(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def _full(path: object) -> OSError:
    return OSError(f"{path}: {MAX_GROUPS} groups are the limit; remove unused ones")


class FileStore:
    """A JSON file `{"group": "hash"}`, as the Go program has it. It is read at each call.

    Raises UsageError if the file exists but cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._lock = Lock()
        try:
            self._read()
        except OSError as error:
            raise UsageError(f"gateway.credential.file_path: {error}") from None

    def get(self, group: str) -> str | None:
        return self._read().get(group)

    def replace(self, group: str, former: str | None, hashed: str) -> str:
        with self._lock:
            known = self._read()
            present = known.get(group)
            if present is not None and present != former:
                return present
            if present is None and len(known) >= MAX_GROUPS:
                raise _full(self._path)
            self._write({**known, group: hashed})
        return hashed

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            raise OSError(f"{self._path}: {describe(error)}") from None
        if not isinstance(known, dict) or not all(isinstance(each, str) for each in known.values()):
            raise OSError(f'{self._path}: must be JSON like {{"GROUP": "HASH"}}')
        return known

    def _write(self, known: dict[str, str]) -> None:
        try:
            self._put_in_place(known)
        except OSError as error:
            raise OSError(f"{self._path}: {describe(error)}") from None

    def _put_in_place(self, known: dict[str, str]) -> None:
        # Not a symbolic link, or the new file would take its place.
        path = Path(os.path.realpath(self._path))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.unlink(missing_ok=True)  # of a crash, perhaps readable by others
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(known, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


class SqliteStore:
    """A table as the Go program's, with one more column for salted hashes.

    A hash in the Go program's column is the newer one: it is erased when it has been replaced.

    Raises UsageError if the database cannot be used.
    """

    def __init__(self, path: str, table: str) -> None:
        if not _TABLE_NAME.fullmatch(table):
            raise UsageError(
                f"gateway.credential.db.table_name: {table!r} is not the name of a table; use "
                "letters, digits and underscores"
            )
        self._path = path
        self._table = table
        try:
            self._create()
            with self._connection() as database:
                self._prepare(database)
        except OSError as error:
            raise UsageError(f"gateway.credential.db.data_source: {error}") from None

    def _create(self) -> None:
        try:
            # SQLite gives its other files the permissions of this one.
            os.close(os.open(self._path, os.O_RDONLY | os.O_CREAT, 0o600))
        except OSError as error:
            raise OSError(f"{self._path}: {describe(error)}") from None

    def _prepare(self, database: sqlite3.Connection) -> None:
        database.execute(
            f"CREATE TABLE IF NOT EXISTS {self._table} (group_id VARCHAR(255) PRIMARY KEY, "
            "password_hash VARCHAR(64) NOT NULL, created_at TIMESTAMP, updated_at TIMESTAMP)"
        )
        columns = {row[1] for row in database.execute(f"PRAGMA table_info({self._table})")}
        if not columns >= _COLUMNS:
            missing = ", ".join(sorted(_COLUMNS - columns))
            raise OSError(f"{self._path}: table {self._table} has no column {missing}")
        if "salted_hash" not in columns:
            database.execute(f"ALTER TABLE {self._table} ADD COLUMN salted_hash TEXT")

    def get(self, group: str) -> str | None:
        with self._connection() as database:
            return self._get(database, group)

    def replace(self, group: str, former: str | None, hashed: str) -> str:
        with self._connection() as database:
            # Takes the lock now: a read lock cannot always be upgraded.
            database.execute("BEGIN IMMEDIATE")
            present = self._get(database, group)
            if present is not None and present != former:
                return present
            if present is None:
                count = database.execute(f"SELECT COUNT(*) FROM {self._table}").fetchone()
                if count[0] >= MAX_GROUPS:
                    raise _full(self._path)
            database.execute(
                f"INSERT INTO {self._table} "
                "(group_id, password_hash, created_at, updated_at, salted_hash) "
                "VALUES (?, '', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, ?) "
                "ON CONFLICT (group_id) DO UPDATE SET password_hash = '', "
                "salted_hash = excluded.salted_hash, updated_at = CURRENT_TIMESTAMP",
                (group, hashed),
            )
            database.execute("COMMIT")
        return hashed

    def _get(self, database: sqlite3.Connection, group: str) -> str | None:
        query = f"SELECT password_hash, salted_hash FROM {self._table} WHERE group_id = ?"
        row = database.execute(query, (group,)).fetchone()
        return None if row is None else str(row[0] or row[1] or "")

    @contextlib.contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for one call, as SQLite's are bound to threads."""
        try:
            database = sqlite3.connect(self._path, timeout=_LOCK_TIME, isolation_level=None)
            try:
                yield database
            finally:
                database.close()  # rolls back what is not committed
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: {error}") from None
