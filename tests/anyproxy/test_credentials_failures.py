"""Failed logins of agents and users: which addresses they block, and what they cost others."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from anyproxy import credentials
from anyproxy.credentials import BLOCKED, NO_PASSWORD, WRONG_PASSWORD
from anyproxy.options import FILE, GroupOptions
from mtt.users import group_passwords
from mtt.users.login_throttle import MAX_FAILURES
from tests.anyproxy.admission import (
    HOME,
    NAT,
    WRONG,
    Scene,
    in_both_stores,
    in_every_store,
)


@in_every_store
async def test_failures_of_agents_and_users_block_an_address(kind: str, tmp_path: Path) -> None:
    async with Scene(kind, tmp_path) as scene:
        await scene.joins()
        for _ in range(MAX_FAILURES // 2):
            assert await scene.asks(WRONG) == WRONG_PASSWORD
            assert scene.user(WRONG) is False
        # Even the right password, or a guesser would see which one it is.
        assert await scene.asks() == BLOCKED
        assert scene.user() is False
        assert scene.user(group="nobody's") is False
        # Others are not in the way.
        assert scene.user(address="192.0.2.2") is True
        await scene.joins(agent="b", address="192.0.2.2")


@in_every_store
async def test_agents_behind_one_nat_are_not_blocked_by_their_successes(
    kind: str, tmp_path: Path
) -> None:
    async with Scene(kind, tmp_path) as scene:
        for _ in range(3):
            for number in range(2 * MAX_FAILURES):
                await scene.joins(agent=str(number))
            assert all(scene.user() for _ in range(2 * MAX_FAILURES))
            for number in range(2 * MAX_FAILURES):
                scene.leaves(agent=str(number))


async def test_refusals_that_are_no_guesses_do_not_count(tmp_path: Path) -> None:
    async with Scene(FILE, tmp_path) as scene:
        scene.group_options[HOME] = GroupOptions(max_agents=1)
        await scene.joins()
        for _ in range(2 * MAX_FAILURES):
            assert await scene.asks(b"") == NO_PASSWORD
            assert "its limit" in await scene.asks(agent="b")
            assert scene.user(group="elsewhere") is None
        assert scene.user() is True


@in_both_stores
async def test_guesses_at_the_same_moment_are_few(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bytes] = []
    matches = group_passwords.matches

    def count(password: bytes, hashed: str) -> bool:
        tried.append(password)
        return matches(password, hashed)

    async with Scene(kind, tmp_path) as scene:
        await scene.joins()
        monkeypatch.setattr(group_passwords, "matches", count)
        guesses = [b"guess %d" % number for number in range(50)]
        found = await asyncio.gather(*map(scene.asks, guesses))
        assert set(found) <= {WRONG_PASSWORD, BLOCKED}
        assert len(tried) < MAX_FAILURES + credentials.CHECKS
        assert await scene.asks() == BLOCKED


async def test_guesses_count_although_the_agent_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Scene(FILE, tmp_path) as scene:
        await scene.joins()
        loop, started = asyncio.get_running_loop(), asyncio.Event()
        matches = group_passwords.matches

        def tell(password: bytes, hashed: str) -> bool:
            loop.call_soon_threadsafe(started.set)
            return matches(password, hashed)

        monkeypatch.setattr(group_passwords, "matches", tell)
        for _ in range(MAX_FAILURES):
            started.clear()
            asking = asyncio.ensure_future(scene.asks(WRONG))
            await started.wait()
            asking.cancel()
            await asyncio.wait([asking])
        await asyncio.to_thread(scene.credentials._checks.shutdown)
        assert scene.credentials.throttle.blocks(NAT)


@in_both_stores
async def test_slow_checks_are_few_and_others_do_not_wait(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, let_go = [0], [0], threading.Event()
    lock = threading.Lock()

    def slowly(password: bytes, hashed: str) -> bool:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        assert let_go.wait(20)
        with lock:
            running[0] -= 1
        return False

    async with Scene(kind, tmp_path) as scene:
        await scene.joins()
        monkeypatch.setattr(group_passwords, "matches", slowly)
        asking = [asyncio.ensure_future(scene.asks(WRONG, address=f"10.0.0.{n}")) for n in range(9)]
        # The event loop turns; agents with the right password join, and users come in.
        await scene.joins(agent="b")
        assert scene.user() is True
        let_go.set()
        assert await asyncio.gather(*asking) == [WRONG_PASSWORD] * 9
        assert 1 <= most[0] <= credentials.CHECKS
