"""The database: what is kept, and what keeps the server from starting."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mtt.errors import StartError
from mtt.users.sqlite import APPLICATION_ID, SCHEMA_VERSION, SqliteStore
from mtt.users.store import StoreError
from tests.support.tunnels import logged

ROWS = {"/b": ("h:1", 1, 2, 3), "/\u00e4": ("[::1]:2", 0, 0, 2**63 - 1)}


async def contents(path: Path) -> tuple[object, object]:
    store = SqliteStore(str(path))
    rows, counters = await store.load()
    await store.close()
    return list(rows.items()), counters


async def opened(path: Path) -> SqliteStore:
    store = SqliteStore(str(path))
    await store.load()
    return store


async def test_users_are_restored_in_order(tmp_path: Path) -> None:
    path = tmp_path / "users.sqlite"
    store = SqliteStore(str(path))
    assert await store.load() == ({}, {})
    await store.put(ROWS)
    await store.put({"/c": ("h:3", 0, 0, 0), "/d": ("h:4", 0, 0, 0)})
    await store.count([("/b", (1, 2, 3, 4)), ("/gone", (9, 9, 9, 9))])
    await store.put({"/b": ("h:9", 0, 0, 0)})
    await store.remove(["/c", "/gone"])
    await store.close()
    assert await contents(path) == (
        [("/b", ("h:9", 0, 0, 0)), ("/\u00e4", ROWS["/\u00e4"]), ("/d", ("h:4", 0, 0, 0))],
        {"/b": (1, 2, 3, 4)},
    )


async def test_clear(tmp_path: Path) -> None:
    store = await opened(tmp_path / "db")
    await store.put(ROWS)
    await store.clear()
    await store.close()
    assert await contents(tmp_path / "db") == ([], {})


async def test_user_added_again_has_new_counters(tmp_path: Path) -> None:
    store = await opened(tmp_path / "db")
    await store.put(ROWS)
    await store.count([("/b", (1, 2, 3, 4))])
    await store.remove(["/b"])
    await store.put(ROWS)
    await store.close()
    assert (await contents(tmp_path / "db"))[1] == {}


async def test_commits_wait_for_the_disk(tmp_path: Path) -> None:
    store = await opened(tmp_path / "db")

    def settings() -> list[object]:
        names = ("journal_mode", "synchronous")
        return [store._database.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    assert await store._run(settings) == ["wal", 2]
    await store.close()


async def test_all_files_are_private(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = await opened(tmp_path / "db")
        await store.put(ROWS)
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    await store.close()
    assert modes == {"db": 0o600, "db-wal": 0o600}


@pytest.mark.parametrize(("mode", "count"), [(0o600, 0), (0o640, 0), (0o644, 1)])
async def test_world_readable_database_causes_a_warning(
    tmp_path: Path, mode: int, count: int
) -> None:
    path = tmp_path / "db"
    path.touch(0o600)
    path.chmod(mode)
    with logged() as lines:
        store = await opened(path)
        await store.close()
    assert lines == [f"WARNING -db: every user can read {path}; run chmod o-r on it"] * count


async def test_a_failed_change_changes_nothing(tmp_path: Path) -> None:
    store = await opened(tmp_path / "db")
    await store.put(ROWS)
    bad: dict[str, tuple[str, int, int, int]] = {
        "/x": ("h:1", 0, 0, 0), "/y": (None, 0, 0, 0),  # type: ignore[dict-item]
    }  # fmt: skip
    with pytest.raises(StoreError, match="NOT NULL"):
        await store.put(bad)
    await store.put({"/z": ("h:1", 0, 0, 0)})
    await store.close()
    assert await contents(tmp_path / "db") == (
        [*ROWS.items(), ("/z", ("h:1", 0, 0, 0))], {}
    )  # fmt: skip


async def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    store = await opened(tmp_path / "db")
    await store.put(ROWS)
    await store._run(lambda: store._database.execute("PRAGMA max_page_count = 8").fetchall())
    many = {f"/{number:0100}": ("h:1", 0, 0, 0) for number in range(2000)}
    with pytest.raises(StoreError, match="full"):
        await store.put(many)
    await store.close()
    assert await contents(tmp_path / "db") == (list(ROWS.items()), {})


async def test_a_cancelled_change_is_carried_out(tmp_path: Path) -> None:
    store = await opened(tmp_path / "db")
    task = asyncio.create_task(store.put(ROWS))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.close()
    assert await contents(tmp_path / "db") == (list(ROWS.items()), {})


async def damaged(path: Path) -> None:
    store = await opened(path)
    await store.put({f"/{number}": ("h:1", 0, 0, 0) for number in range(3000)})
    await store.close()
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 5] = os.urandom(4096 * 3)
    path.write_bytes(data)


async def cut_off(path: Path) -> None:
    await damaged(path)
    path.write_bytes(path.read_bytes()[:5000])


async def no_database(path: Path) -> None:
    path.write_bytes(b"this is not a database, however long it may be" * 100)


async def newer(path: Path) -> None:
    store = await opened(path)
    await store.close()
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()


async def foreign(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE users (name)")
    database.close()


async def wrong_types(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("CREATE TABLE users (name)")
    database.close()


async def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (damaged, "is damaged"),
        (cut_off, "is damaged"),
        (no_database, "is damaged"),
        (newer, "newer version"),
        (foreign, "another program"),
        (wrong_types, "cannot open"),
        (directory, "is a directory"),
    ],
)
async def test_unusable_files(
    make: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "users.sqlite"
    await make(path)  # type: ignore[misc]
    with pytest.raises(StartError) as caught:
        await opened(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("-db: ")


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="the directory does not exist; create it"):
        await opened(tmp_path / "nowhere" / "db")


async def test_one_server_per_database(tmp_path: Path) -> None:
    store = await opened(tmp_path / "db")
    with pytest.raises(StartError, match="another program has it open"):
        await opened(tmp_path / "db")
    await store.put(ROWS)
    await store.close()
    assert await contents(tmp_path / "db") == (list(ROWS.items()), {})
