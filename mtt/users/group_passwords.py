"""Stores of the passwords of a gateway's groups: memory, a JSON file, a SQLite table.

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
from pathlib import Path
from typing import Protocol

from mtt.errors import UsageError, describe

# scrypt (RFC 7914) with 16 MiB and some 50 ms, as OWASP recommends at least for interactive logins
# with little memory. The gateway computes two at a time, see `anyproxy.credentials`.
_COST, _BLOCK, _LANES = 2**14, 8, 1
_MEMORY = 64 * 1024 * 1024  # OpenSSL's limit; its default of 32 MiB is too tight
_SALT_SIZE = 16
_PREFIX = "scrypt"

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)


class PasswordStore(Protocol):
    """Hashes by group. Methods may block, so they are called in threads; they raise OSError."""

    def get(self, group: str) -> str | None:
        """The hash of a group's password; None for an unknown group."""

    def put(self, group: str, hashed: str) -> None:
        """Store the hash of a group's password."""


def hash_password(password: str) -> str:
    """The salted hash of a password. Takes some 50 ms."""
    salt = os.urandom(_SALT_SIZE)
    return f"{_PREFIX}${_encode(salt)}${_encode(_scrypt(password, salt))}"


def matches(password: str, hashed: str) -> bool:
    """Whether `hashed` is a hash of `password`, in constant time. False if it is malformed."""
    if is_unsalted(hashed):
        digest = hashlib.sha256(password.encode()).hexdigest()
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
    return _SHA256.fullmatch(hashed.lower()) is not None


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(
        password.encode(), salt=salt, n=_COST, r=_BLOCK, p=_LANES, maxmem=_MEMORY, dklen=32
    )


def _encode(data: bytes) -> str:
    return b64encode(data).decode("ascii")


class FileStore:
    """A JSON file `{"group": "hash"}`, as the Go program has it. Changes to it count at once.

    Raises UsageError if the file exists but cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        try:
            self._read()
        except (OSError, ValueError) as error:
            raise UsageError(
                f"gateway.credential.file_path: {path}: {describe(error)}; it must be JSON like "
                '{"GROUP": "HASH"}'
            ) from None

    def get(self, group: str) -> str | None:
        try:
            return self._read().get(group)
        except ValueError as error:
            raise OSError(f"{self._path}: {error}") from None

    def put(self, group: str, hashed: str) -> None:
        try:
            known = self._read()
        except ValueError as error:
            raise OSError(f"{self._path}: {error}") from None
        known[group] = hashed
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(known, file, indent=2, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)

    def _read(self) -> dict[str, str]:
        try:
            known = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        if not isinstance(known, dict) or not all(isinstance(each, str) for each in known.values()):
            raise ValueError("not an object of strings")
        return known


class SqliteStore:
    """A table as the Go program's, with one more column for salted hashes.

    Raises UsageError if the database cannot be used.
    """

    def __init__(self, path: str, table: str) -> None:
        if not _TABLE_NAME.fullmatch(table):
            raise UsageError(
                f"gateway.credential.db.table_name: {table!r} is not the name of a table"
            )
        self._path = path
        self._table = table
        try:
            with self._connection() as database:
                database.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} (group_id VARCHAR(255) PRIMARY KEY, "
                    "password_hash VARCHAR(64) NOT NULL, created_at TIMESTAMP, "
                    "updated_at TIMESTAMP)"
                )
                columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
                if "salted_hash" not in columns:
                    database.execute(f"ALTER TABLE {table} ADD COLUMN salted_hash TEXT")
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"gateway.credential.db.data_source: {path}: {error}") from None

    def get(self, group: str) -> str | None:
        query = f"SELECT salted_hash, password_hash FROM {self._table} WHERE group_id = ?"
        try:
            with self._connection() as database:
                row = database.execute(query, (group,)).fetchone()
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: {error}") from None
        return row and str(row[0] or row[1])

    def put(self, group: str, hashed: str) -> None:
        statement = (
            f"INSERT INTO {self._table} VALUES (?, '', CURRENT_TIMESTAMP, CURRENT_TIMESTAMP, ?) "
            "ON CONFLICT (group_id) DO UPDATE SET salted_hash = excluded.salted_hash, "
            "updated_at = CURRENT_TIMESTAMP"
        )
        try:
            with self._connection() as database:
                database.execute(statement, (group, hashed))
        except sqlite3.Error as error:
            raise OSError(f"{self._path}: {error}") from None

    @contextlib.contextmanager
    def _connection(self):  # type: ignore[no-untyped-def]
        database = sqlite3.connect(self._path, timeout=5.0)
        try:
            with database:
                yield database
        finally:
            database.close()
