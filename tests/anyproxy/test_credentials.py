"""Who may join a group and who may use it: passwords, limits, stores that fail."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from anyproxy import credentials
from anyproxy.credentials import (
    HAS_NO_PASSWORD,
    NO_PASSWORD,
    STORE_FAILED,
    WRONG_PASSWORD,
    Credentials,
)
from anyproxy.options import DATABASE, FILE, MEMORY, CredentialOptions, GroupOptions
from mtt.errors import UsageError
from mtt.outbound.groups import Groups
from mtt.users import group_passwords
from mtt.users.login_throttle import MAX_FAILURES
from tests.anyproxy.admission import (
    HOME,
    PASSWORD,
    WRONG,
    Scene,
    in_both_stores,
    in_every_store,
)
from tests.support.files import written
from tests.support.tunnels import logged

# Agents.


@in_every_store
async def test_first_agent_sets_the_password_for_all(kind: str, tmp_path: Path) -> None:
    async with Scene(kind, tmp_path) as scene:
        assert scene.user() is None
        await scene.joins()
        assert await scene.asks(WRONG) == WRONG_PASSWORD
        assert scene.user(WRONG) is False
        assert scene.user() is True
        await scene.joins(agent="b")
        await scene.joins(WRONG, group="other")
        assert scene.user(WRONG, "other") is True
        assert scene.user(WRONG) is False


@in_every_store
async def test_group_without_agents_keeps_its_password_in_stores(
    kind: str, tmp_path: Path
) -> None:
    async with Scene(kind, tmp_path) as scene:
        await scene.joins()
        scene.leaves()
        assert scene.user() is None
        assert await scene.asks(WRONG) == ("" if kind == MEMORY else WRONG_PASSWORD)


@in_both_stores
async def test_stored_password_survives_a_restart(kind: str, tmp_path: Path) -> None:
    async with Scene(kind, tmp_path) as scene:
        await scene.joins()
        scene.credentials.close()
        scene.restart()
        assert await scene.asks(WRONG) == WRONG_PASSWORD
        assert scene.user() is None
        await scene.joins()
        assert scene.user() is True


@in_every_store
async def test_two_first_agents_with_different_passwords_have_one_winner(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier, hash_password = threading.Barrier(2), group_passwords.hash_password

    def hash_together(password: bytes) -> str:
        barrier.wait(20)
        return hash_password(password)

    monkeypatch.setattr(group_passwords, "hash_password", hash_together)
    async with Scene(kind, tmp_path) as scene:

        async def joins(number: int) -> bool:
            try:
                await scene.joins(b"password %d" % number, agent=str(number))
            except AssertionError:
                return False
            return True

        won = await asyncio.gather(joins(0), joins(1))
        assert sorted(won) == [False, True]
        assert [scene.user(b"password %d" % number) for number in (0, 1)] == list(won)


@in_every_store
async def test_password_of_the_operator_counts_alone(kind: str, tmp_path: Path) -> None:
    async with Scene(kind, tmp_path) as scene:
        scene.group_options[HOME] = GroupOptions(password=PASSWORD.decode())
        assert await scene.asks(WRONG) == WRONG_PASSWORD
        assert await scene.asks(b"") == NO_PASSWORD
        await scene.joins()
        assert scene.user() is True
        assert scene.user(WRONG) is False
        # A new configuration counts at once.
        scene.group_options[HOME] = GroupOptions(password="newer")
        assert scene.user() is False
        assert scene.user(b"newer") is True
        assert await scene.asks() == WRONG_PASSWORD
        assert not scene.path.exists() or HOME not in scene.path.read_text("latin-1")


@in_both_stores
async def test_stored_password_that_was_changed_counts_from_the_next_agent(
    kind: str, tmp_path: Path
) -> None:
    async with Scene(kind, tmp_path) as scene:
        await scene.joins()
        store = scene.credentials._store
        assert store is not None
        store.replace(HOME, store.get(HOME), group_passwords.hash_password(b"newer"))
        assert await scene.asks() == WRONG_PASSWORD
        await scene.joins(b"newer", agent="b")
        assert scene.user() is False
        assert scene.user(b"newer") is True


async def test_hashes_of_the_go_program_are_accepted_and_replaced(tmp_path: Path) -> None:
    digest = hashlib.sha256(PASSWORD).hexdigest()
    written(tmp_path / "credentials", {HOME: digest, "other": digest})
    async with Scene(FILE, tmp_path) as scene:
        assert await scene.asks(WRONG) == WRONG_PASSWORD
        await scene.joins()
        await scene.joins(agent="b")
        assert scene.user() is True
        stored = json.loads(scene.path.read_text())
        assert stored["other"] == digest
        assert stored[HOME].startswith("scrypt$")


@in_both_stores
async def test_known_password_is_not_computed_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Scene(kind, tmp_path) as scene:
        await scene.joins()
        monkeypatch.setattr(group_passwords, "_scrypt", None)
        await scene.joins(agent="b")
        scene.leaves(agent="a")
        scene.leaves(agent="b")
        await scene.joins()


# Without a password.


@in_every_store
async def test_agent_without_a_password_is_refused(kind: str, tmp_path: Path) -> None:
    async with Scene(kind, tmp_path) as scene:
        assert await scene.asks(b"") == NO_PASSWORD
        await scene.joins()
        assert await scene.asks(b"") == NO_PASSWORD


@in_every_store
async def test_groups_without_a_password_are_never_taken_over(kind: str, tmp_path: Path) -> None:
    async with Scene(kind, tmp_path, open_groups=True) as scene:
        await scene.joins(b"")
        await scene.joins(b"", agent="b")
        assert await scene.asks(WRONG) == HAS_NO_PASSWORD
        assert scene.user(WRONG) is False
        assert scene.user(b"") is False
        scene.leaves(agent="a")
        scene.leaves(agent="b")
        await scene.joins()
        assert await scene.asks(b"") == NO_PASSWORD
        assert scene.user() is True


@in_both_stores
async def test_group_with_a_stored_password_needs_it_also_when_others_do_not(
    kind: str, tmp_path: Path
) -> None:
    async with Scene(kind, tmp_path, open_groups=True) as scene:
        await scene.joins()
        scene.credentials.close()
        scene.restart()
        assert await scene.asks(b"") == NO_PASSWORD
        await scene.joins(b"", group="other")


async def test_password_set_while_an_agent_without_one_joins_opens_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Scene(FILE, tmp_path, open_groups=True) as scene:
        let_go, started, loop = threading.Event(), asyncio.Event(), asyncio.get_running_loop()
        hash_password = group_passwords.hash_password

        def hash_later(password: bytes) -> str:
            loop.call_soon_threadsafe(started.set)
            assert let_go.wait(20)
            return hash_password(password)

        monkeypatch.setattr(group_passwords, "hash_password", hash_later)
        asking = asyncio.ensure_future(scene.asks())
        await started.wait()
        await scene.joins(b"", agent="b")
        let_go.set()
        assert await asking == HAS_NO_PASSWORD
        assert scene.user() is False


async def test_password_of_the_operator_is_checked_without_agents(tmp_path: Path) -> None:
    async with Scene(MEMORY, tmp_path) as scene:
        assert scene.user(WRONG) is None
        scene.group_options[HOME] = GroupOptions(password=WRONG.decode())
        assert scene.user(WRONG) is None
        for _ in range(MAX_FAILURES):
            assert scene.user() is False
        assert scene.user(WRONG) is False  # blocked


async def test_operator_sets_password_during_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Scene(FILE, tmp_path) as scene:
        hash_password = group_passwords.hash_password

        def hash_and_change(password: bytes) -> str:
            scene.group_options[HOME] = GroupOptions(password=WRONG.decode())
            return hash_password(password)

        monkeypatch.setattr(group_passwords, "hash_password", hash_and_change)
        assert await scene.asks() == WRONG_PASSWORD
        await scene.joins(WRONG)


# Limits.


@in_every_store
async def test_number_of_agents_is_limited(kind: str, tmp_path: Path) -> None:
    async with Scene(kind, tmp_path) as scene:
        scene.group_options[HOME] = GroupOptions(max_agents=2)
        await scene.joins(agent="a")
        await scene.joins(agent="b")
        assert await scene.asks(agent="c") == "the group has 2 agents, its limit"
        assert await scene.asks(WRONG, agent="c") == WRONG_PASSWORD
        await scene.joins(agent="c", group="other")
        scene.leaves(agent="a")
        await scene.joins(agent="c")


async def test_agent_that_comes_back_has_room(tmp_path: Path) -> None:
    async with Scene(MEMORY, tmp_path) as scene:
        scene.group_options[HOME] = GroupOptions(max_agents=1)
        await scene.joins()
        await scene.joins()  # its lost connection is not noticed yet


async def test_memory_of_groups_that_have_gone_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "MAX_VERIFIED", 10)
    async with Scene(MEMORY, tmp_path) as scene:
        await scene.joins()
        for number in range(100):
            await scene.joins(group=f"group {number}")
            scene.leaves(group=f"group {number}")
            assert len(scene.credentials._verified) <= 11
        assert scene.user() is True
        assert await scene.asks(WRONG) == WRONG_PASSWORD


# Stores that fail.


async def test_store_that_fails_admits_nothing_and_is_logged_once(tmp_path: Path) -> None:
    with logged() as lines:
        async with Scene(FILE, tmp_path, open_groups=True) as scene:
            await scene.joins()
            scene.path.write_text("{")
            for _ in range(2 * MAX_FAILURES):
                assert await scene.asks() == STORE_FAILED
                assert await scene.asks(WRONG) == STORE_FAILED
                assert await scene.asks(b"") == STORE_FAILED
            assert scene.user() is True  # its agents are still there
    (line,) = lines
    assert line.startswith(f"ERROR passwords of groups: {scene.path}: Expecting")
    assert PASSWORD.decode() not in line


@pytest.mark.parametrize(
    "make, key",
    [
        (lambda path: CredentialOptions(kind=FILE, path=path), "file_path"),
        (lambda path: CredentialOptions(kind=DATABASE, path=path), "db.data_source"),
        (lambda path: CredentialOptions(kind=DATABASE, path=path, table="-"), "db.table_name"),
    ],
)
async def test_unusable_store_is_a_usage_error(
    make: Callable[[str], CredentialOptions], key: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "file", "neither of them" * 100)
    options = make(path)
    with pytest.raises(UsageError, match=rf"^gateway\.credential\.{key}: "):
        Credentials(options, lambda _: GroupOptions(), Groups())
