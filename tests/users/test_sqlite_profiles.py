"""The API's fields in the database, and databases of earlier versions."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mtt.errors import StartError
from mtt.users import sqlite
from mtt.users.sqlite import _STEPS, SCHEMA_VERSION, SqliteStore
from mtt.users.store import Profile, StoreError

ROW = ("h:1", 1, 2, 3)
PROFILE: Profile = ("J\u00f6rg", False, 10**12, 31, 2**33)


async def opened(path: Path) -> SqliteStore:
    store = SqliteStore(str(path))
    await store.load()
    return store


async def test_profiles_are_restored(tmp_path: Path) -> None:
    store = await opened(tmp_path / "db")
    assert await store.profiles() == {}
    await store.edit("/a", ROW, PROFILE)
    await store.put({"/a": ("h:2", 0, 0, 0), "/b": ROW})  # a command keeps the profile
    await store.close()
    store = SqliteStore(str(tmp_path / "db"))
    assert (await store.load())[0] == {"/a": ("h:2", 0, 0, 0), "/b": ROW}
    assert await store.profiles() == {"/a": PROFILE}
    await store.remove(["/a"])
    await store.put({"/a": ROW})
    assert await store.profiles() == {}
    await store.close()


async def test_renamed_user_keeps_everything_and_becomes_the_last(tmp_path: Path) -> None:
    store = await opened(tmp_path / "db")
    await store.edit("/a", ROW, PROFILE)
    await store.put({"/b": ROW})
    await store.count([("/a", (1, 2, 3, 4))])
    await store.rename("/a", "/c")
    with pytest.raises(StoreError, match="UNIQUE"):
        await store.rename("/c", "/b")
    await store.close()
    store = SqliteStore(str(tmp_path / "db"))
    rows, counters = await store.load()
    assert (list(rows), counters) == (["/b", "/c"], {"/c": (1, 2, 3, 4)})
    assert await store.profiles() == {"/c": PROFILE}
    await store.close()


async def test_reset_keeps_the_time_of_the_last_connection(tmp_path: Path) -> None:
    store = await opened(tmp_path / "db")
    await store.edit("/a", ROW, PROFILE)
    await store.count([("/a", (1, 2, 3, 4))])
    await store.reset([("/a", 77), ("/gone", 78)])
    await store.close()
    store = SqliteStore(str(tmp_path / "db"))
    assert (await store.load())[1] == {"/a": (0, 0, 0, 4)}
    assert await store.profiles() == {"/a": (*PROFILE[:4], 77)}
    await store.close()


async def test_database_of_the_first_version_is_upgraded(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = sqlite3.connect(path)
    database.executescript(f"BEGIN; {_STEPS[0]} PRAGMA user_version = 1; COMMIT;")
    database.execute("INSERT INTO users VALUES ('/a', 'h:1', 1, 2, 3, 4, 5, 6, 7)")
    database.commit()
    database.close()
    store = SqliteStore(str(path))
    assert await store.load() == ({"/a": ROW}, {"/a": (4, 5, 6, 7)})
    assert await store.profiles() == {}
    await store.edit("/a", ROW, PROFILE)
    await store.close()
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    database.close()
    store = await opened(path)
    assert await store.profiles() == {"/a": PROFILE}
    await store.close()


async def test_interrupted_upgrade_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(sqlite, "_STEPS", _STEPS[:1])
        store = await opened(tmp_path / "db")
        await store.put({"/a": ROW})
        await store.close()
    with monkeypatch.context() as broken:
        broken.setattr(sqlite, "_STEPS", (_STEPS[0], f"{_STEPS[1]} SELECT missing FROM users;"))
        with pytest.raises(StartError, match="no such column: missing"):
            await opened(tmp_path / "db")
    store = SqliteStore(str(tmp_path / "db"))
    assert (await store.load())[0] == {"/a": ROW}
    await store.edit("/a", ROW, PROFILE)
    assert await store.profiles() == {"/a": PROFILE}
    await store.close()
