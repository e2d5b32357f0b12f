"""Passwords of groups: their hashes, and the stores that keep them."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from mtt.errors import UsageError
from mtt.users import group_passwords
from mtt.users.group_passwords import (
    FileStore,
    PasswordStore,
    SqliteStore,
    check_stored,
    hash_password,
    is_unsalted,
    matches,
)
from tests.support.files import written

PASSWORD = "pässword".encode()
UNSALTED = hashlib.sha256(PASSWORD).hexdigest()

# Makes a store in a folder.
Make = Callable[[Path], PasswordStore]
GO_TABLE = (
    "CREATE TABLE credentials (group_id VARCHAR(255) PRIMARY KEY, password_hash VARCHAR(64) "
    "NOT NULL, created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, updated_at TIMESTAMP)"
)


COST = group_passwords._COST


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are as strong as these tests need."""
    monkeypatch.setattr(group_passwords, "_COST", 2)


def file_store(folder: Path) -> FileStore:
    return FileStore(str(folder / "credentials.json"))


def sqlite_store(folder: Path) -> SqliteStore:
    return SqliteStore(str(folder / "credentials.sqlite"), "credentials")


def go_file(folder: Path) -> FileStore:
    written(folder / "credentials.json", {"home": UNSALTED, "other": UNSALTED})
    return file_store(folder)


def go_table(folder: Path) -> SqliteStore:
    execute(folder, GO_TABLE)
    insert = "INSERT INTO credentials (group_id, password_hash) VALUES (?, ?)"
    for group in ("home", "other"):
        execute(folder, insert, group, UNSALTED)
    return sqlite_store(folder)


def execute(folder: Path, statement: str, *values: str) -> list[tuple[object, ...]]:
    database = sqlite3.connect(folder / "credentials.sqlite")
    try:
        with database:
            return database.execute(statement, values).fetchall()
    finally:
        database.close()


in_both_stores = pytest.mark.parametrize("make", [file_store, sqlite_store])
with_hashes_of_the_go_program = pytest.mark.parametrize("make", [go_file, go_table])


# Hashes.


def test_hashes_cost_some_memory_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_passwords, "_COST", COST)
    expected = hashlib.scrypt(PASSWORD, salt=b"NaCl", n=2**14, r=8, p=1, maxmem=2**25, dklen=32)
    assert group_passwords._scrypt(PASSWORD, b"NaCl") == expected


def test_hash_has_a_salt_and_fits_its_password_alone() -> None:
    first, second = hash_password(PASSWORD), hash_password(PASSWORD)
    assert first != second
    assert not is_unsalted(first)
    assert PASSWORD.decode() not in first
    assert matches(PASSWORD, first)
    assert matches(PASSWORD, second)
    for wrong in (b"", PASSWORD + b"x", PASSWORD[:-1], PASSWORD.decode().encode("latin-1")):
        assert not matches(wrong, first)


@pytest.mark.parametrize("hashed", [UNSALTED, UNSALTED.upper()])
def test_hash_of_the_go_program_fits(hashed: str) -> None:
    assert is_unsalted(hashed)
    assert matches(PASSWORD, hashed)
    assert not matches(b"wrong", hashed)


@pytest.mark.parametrize(
    "hashed",
    [
        "", "$", "scrypt", "scrypt$", "scrypt$$", "scrypt$AAAA$", "scrypt$A$A", "scrypt$\xe4$AAAA",
        "bcrypt$AAAA$AAAA", "scrypt$AAAA$AAAA", UNSALTED[:-1], f"{UNSALTED}0", f"{UNSALTED}\n",
        "\N{CYRILLIC SMALL LETTER A}" * 64, PASSWORD.decode(),
    ],
)  # fmt: skip
def test_malformed_hash_fits_nothing(hashed: str) -> None:
    assert not matches(PASSWORD, hashed)
    assert not matches(b"", hashed)


# Both stores.


@in_both_stores
def test_first_password_of_a_group_stays(make: Make, tmp_path: Path) -> None:
    store = make(tmp_path)
    assert store.get("home") is None
    hashed = check_stored(store, "home", PASSWORD)
    assert hashed is not None
    assert check_stored(store, "home", b"another") is None
    assert check_stored(store, "home", PASSWORD) == hashed
    again = make(tmp_path)
    assert again.get("home") == hashed
    assert again.get("Home") is None


@in_both_stores
def test_replacing_needs_the_present_hash(make: Make, tmp_path: Path) -> None:
    store = make(tmp_path)
    assert store.replace("home", None, "one") == "one"
    assert store.replace("home", None, "two") == "one"
    assert store.replace("home", "zero", "two") == "one"
    assert store.replace("home", "one", "two") == "two"
    assert store.get("home") == "two"


@in_both_stores
def test_names_of_groups_are_any_text(make: Make, tmp_path: Path) -> None:
    store = make(tmp_path)
    names = ["", "a b", "'; DROP TABLE credentials; --", '"', "\\", "ä\N{PILE OF POO}", "__proto__"]
    for name in names:
        store.replace(name, None, f"hash of {name}")
    for name in names:
        assert make(tmp_path).get(name) == f"hash of {name}"


@in_both_stores
def test_concurrent_agents_of_a_new_group_have_one_winner(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path)
    count = 4
    barrier = Barrier(count)

    def hash_together(password: bytes) -> str:
        barrier.wait(20)  # all have found that the group is new
        return hash_password(password)

    monkeypatch.setattr(group_passwords, "hash_password", hash_together)
    passwords = [b"password %d" % number for number in range(count)]
    with ThreadPoolExecutor(count) as threads:
        found = list(threads.map(lambda each: check_stored(store, "home", each), passwords))
    (winner,) = [number for number in range(count) if found[number] is not None]
    assert store.get("home") == found[winner]
    assert check_stored(store, "home", passwords[winner]) is not None


@in_both_stores
def test_concurrent_new_groups_are_all_kept(make: Make, tmp_path: Path) -> None:
    store = make(tmp_path)
    names = [f"group {number}" for number in range(24)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.replace(name, None, f"hash of {name}"), names))
    assert [store.get(name) for name in names] == [f"hash of {name}" for name in names]


@in_both_stores
def test_number_of_groups_is_limited(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_passwords, "MAX_GROUPS", 2)
    store = make(tmp_path)
    store.replace("one", None, "1")
    store.replace("two", None, "2")
    with pytest.raises(OSError, match="2 groups are the limit; remove unused ones"):
        store.replace("three", None, "3")
    assert store.replace("two", "2", "4") == "4"
    assert store.get("three") is None


@in_both_stores
def test_only_the_owner_can_read_the_hashes(make: Make, tmp_path: Path) -> None:
    make(tmp_path).replace("home", None, "hash")
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


# The Go program's hashes.


@with_hashes_of_the_go_program
def test_unsalted_hash_is_replaced_when_its_password_is_shown(make: Make, tmp_path: Path) -> None:
    store = make(tmp_path)
    assert check_stored(store, "home", b"wrong") is None
    assert store.get("home") == UNSALTED
    hashed = check_stored(store, "home", PASSWORD)
    assert hashed is not None and hashed == store.get("home")
    assert hashed.startswith("scrypt$")
    assert matches(PASSWORD, hashed)
    assert store.get("other") == UNSALTED
    assert check_stored(store, "home", b"wrong") is None
    # Nothing of it is left.
    (path,) = tmp_path.iterdir()
    assert path.read_bytes().count(UNSALTED.encode()) == 1
    if make is go_table:
        rows = execute(tmp_path, "SELECT group_id, password_hash FROM credentials ORDER BY 1")
        assert rows == [("home", ""), ("other", UNSALTED)]


@with_hashes_of_the_go_program
def test_unsalted_hash_serves_if_it_cannot_be_replaced(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path)

    def full(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(store, "replace", full)
    assert check_stored(store, "home", PASSWORD) == UNSALTED
    assert check_stored(store, "home", b"wrong") is None


def test_password_that_the_go_program_sets_later_counts(tmp_path: Path) -> None:
    store = go_table(tmp_path)
    assert check_stored(store, "home", PASSWORD) is not None
    newer = hashlib.sha256(b"newer").hexdigest()
    execute(tmp_path, "UPDATE credentials SET password_hash = ? WHERE group_id = 'home'", newer)
    assert check_stored(store, "home", PASSWORD) is None
    assert check_stored(store, "home", b"newer") is not None


# The file.


def test_changes_to_the_file_count_at_once(tmp_path: Path) -> None:
    store = go_file(tmp_path)
    written(tmp_path / "credentials.json", {"home": hash_password(b"newer")})
    assert check_stored(store, "home", PASSWORD) is None
    assert check_stored(store, "home", b"newer") is not None
    assert store.get("other") is None


@pytest.mark.parametrize(
    "content, text",
    [
        ("", "Expecting value"),
        ("[]", 'must be JSON like {"GROUP": "HASH"}'),
        ('{"home": 1}', 'must be JSON like {"GROUP": "HASH"}'),
        ("[" * 100_000, ""),
    ],
)
def test_unusable_file_is_named(tmp_path: Path, content: str, text: str) -> None:
    path = written(tmp_path / "credentials.json", content)
    with pytest.raises(UsageError) as caught:
        FileStore(path)
    assert str(caught.value).startswith(f"gateway.credential.file_path: {path}: ")
    assert text in str(caught.value)


def test_file_that_breaks_later_is_not_overwritten(tmp_path: Path) -> None:
    store = go_file(tmp_path)
    path = tmp_path / "credentials.json"
    written(path, "{")
    for group in ("home", "new"):
        with pytest.raises(OSError, match=r"credentials\.json: Expecting"):
            check_stored(store, group, PASSWORD)
    assert path.read_text() == "{"


def test_folder_of_the_file_is_created(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "credentials.json"
    FileStore(str(path)).replace("home", None, "hash")
    assert json.loads(path.read_text()) == {"home": "hash"}


def test_symbolic_link_to_the_file_stays(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    link.symlink_to(real)
    store = FileStore(str(link))
    store.replace("home", None, "hash")
    assert link.is_symlink()
    assert json.loads(real.read_text()) == {"home": "hash"}
    # It may lead elsewhere later, as that of a mounted secret does.
    link.unlink()
    link.symlink_to(written(tmp_path / "newer.json", {"home": "newer"}))
    assert store.get("home") == "newer"


def test_failed_write_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = go_file(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"credentials\.json: no space left on device"):
        store.replace("new", None, "hash")
    assert [path.name for path in tmp_path.iterdir()] == ["credentials.json"]
    assert set(json.loads((tmp_path / "credentials.json").read_text())) == {"home", "other"}


# The table.


@pytest.mark.parametrize("table", ["", "1st", "a b", "x; DROP TABLE y", "ä", "a" * 64, "a\n"])
def test_table_name_is_checked(tmp_path: Path, table: str) -> None:
    with pytest.raises(UsageError, match=r"gateway\.credential\.db\.table_name: .* use letters"):
        SqliteStore(str(tmp_path / "db"), table)


def test_other_table_of_that_name_is_refused(tmp_path: Path) -> None:
    execute(tmp_path, "CREATE TABLE credentials (group_id TEXT, secret TEXT)")
    with pytest.raises(UsageError, match="table credentials has no column created_at, password_h"):
        sqlite_store(tmp_path)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "credentials.sqlite", "not a database" * 100)
    with pytest.raises(UsageError) as caught:
        sqlite_store(tmp_path)
    assert str(caught.value) == (
        f"gateway.credential.db.data_source: {path}: file is not a database"
    )


def test_database_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data_source: .*/none/db: no such file or directory"):
        SqliteStore(str(tmp_path / "none" / "db"), "credentials")


def test_locked_database_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_passwords, "_LOCK_TIME", 0.0)
    store = go_table(tmp_path)
    other = sqlite3.connect(tmp_path / "credentials.sqlite", isolation_level=None)
    try:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(OSError, match=r"credentials\.sqlite: database is locked"):
            check_stored(store, "new", PASSWORD)
    finally:
        other.close()
    assert check_stored(store, "new", PASSWORD) is not None
