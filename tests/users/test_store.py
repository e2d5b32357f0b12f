"""What all stores do alike, and what only a durable one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtt.users.sqlite import SqliteStore
from mtt.users.store import MemoryStore, Store

ROWS = {"/a": ("h:1", 1, 2, 3), "/b": ("h:2", 0, 0, 0)}
COUNTERS = (1, 2, 3, 4)


def store_at(path: Path, *, durable: bool) -> Store:
    return SqliteStore(str(path)) if durable else MemoryStore()


@pytest.mark.parametrize("durable", [True, False])
async def test_only_durable_stores_keep_users(durable: bool, tmp_path: Path) -> None:
    store = store_at(tmp_path / "db", durable=durable)
    assert store.is_durable == durable
    assert await store.load() == ({}, {})
    await store.put(ROWS)
    await store.count([("/a", COUNTERS)])
    await store.close()
    await store.close()
    again = store_at(tmp_path / "db", durable=durable)
    assert await again.load() == ((ROWS, {"/a": COUNTERS}) if durable else ({}, {}))
    await again.clear()
    await again.close()


@pytest.mark.parametrize("durable", [True, False])
async def test_closing_a_store_that_was_never_loaded(durable: bool, tmp_path: Path) -> None:
    await store_at(tmp_path / "db", durable=durable).close()
    assert not list(tmp_path.iterdir())
