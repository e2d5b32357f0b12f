"""Executes the operator's commands: from the body of a request to the body of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Protocol, TypeVar

from mtt.users.store import NO_PROFILE, Changes, Profile, Row, Store, StoreError
from mtt_mu_server import api
from mtt_mu_server.api import Add, Ask, Clear, Delete, Page, Ping
from mtt_mu_server.decoding import Refused
from mtt_mu_server.users import Users

# Paths whose counters are updated before the event loop runs again.
SETTLE_SLICE = 500

CUT_REASON = "disconnected by the operator"

Result = TypeVar("Result")


class Replicas(Changes, Protocol):
    """Other processes that have copies of the users, and their connections.

    When a call returns, all of them have applied the change.
    """

    async def settle(self) -> None:
        """Update the byte counts of all tunnels."""


class Commands:
    """Executes commands on users and their store.

    Commands that change something run one at a time. They change the store first; once the change
    is durable, they change memory in one step, and then the replicas, if there are any.
    """

    def __init__(self, users: Users, store: Store) -> None:
        self._users = users
        self._store = store
        self.replicas: Replicas | None = None
        self.changing = asyncio.Lock()  # held by a command that changes something
        self.done: dict[str, int] = {"done": 0, "refused": 0, "failed": 0}

    async def run(self, body: bytes) -> tuple[int, bytes]:
        """Execute the command in `body`; returns an HTTP status and the answer."""
        try:
            status, answer = 200, await self._run(body)
            self.done["done"] += 1
        except Refused as refused:
            status, answer = refused.status, api.error_answer(str(refused))
            self.done["refused"] += 1
        except StoreError as error:
            status, answer = 500, api.error_answer(str(error))
            self.done["failed"] += 1
        return status, answer

    async def save_counters(self) -> None:
        """Update the counters, in the store too. Raises StoreError."""
        async with self.changing:
            for index, path in enumerate(self._users.live_paths()):
                self._users.settle(path)
                if index % SETTLE_SLICE == SETTLE_SLICE - 1:
                    await asyncio.sleep(0)
            dirty = self._users.take_dirty()
            if not dirty:
                return
            try:
                await self._store.count([(path, self._users.counters(path)) for path in dirty])
            except BaseException:  # cancellation too: save them the next time
                self._users.mark_dirty(dirty)
                raise

    async def settle(self) -> None:
        """Get the byte counts of other processes, which know all earlier changes then."""
        if self.replicas is not None:
            await self.replicas.settle()

    async def edit(self, path: str, row: Row, profile: Profile) -> None:
        """Add a user, or overwrite settings and profile. Hold `changing`. Raises StoreError."""
        await self._store.edit(path, row, profile)
        self._users.edit(path, row, profile)
        if self.replicas is not None:
            await self.replicas.put({path: row})

    async def rename(self, old: str, new: str) -> None:
        """Give a user a new path, which is free, and cut the connections of the old one.

        Hold `changing`. Raises StoreError.
        """
        await self.settle()
        await self._store.rename(old, new)
        self._users.rename(old, new)
        if self.replicas is not None:
            await self.replicas.put({new: self._users.rows[new]})
            await self.replicas.remove([old])
        await self.disconnect(old)

    async def remove(self, paths: list[str]) -> None:
        """Delete users. Hold `changing`. Raises StoreError."""
        await self._store.remove(paths)
        await in_slices(self._users.remove(paths))
        if self.replicas is not None:
            await self.replicas.remove(paths)

    async def disconnect(self, *paths: str) -> None:
        """Cut the connections of users."""
        await in_slices(self._users.cut(paths, CUT_REASON))

    async def reset(self, paths: list[str]) -> None:
        """Set the counters of users to 0. Raises StoreError."""
        from mtt_mu_server.months import next_reset

        users = self._users
        times = {0: 0}  # of the next reset, by day of the month
        async with self.changing:
            await self.settle()
            resets: list[tuple[str, int]] = []
            for path in paths:
                day = users.profiles.get(path, NO_PROFILE)[3]
                if day not in times:
                    times[day] = next_reset(day, users.now)
                resets.append((path, times[day]))
            await self._store.reset(resets)
            await in_slices(users.reset(resets))
            if self.replicas is not None:
                await self.replicas.put({})  # waits until the replicas know the unblocked users

    async def _run(self, body: bytes) -> bytes:
        users = self._users
        command = await in_slices(api.parse(body))
        match command:
            case Ping():
                return api.answer(current_users=len(users))
            case Page(statistics=False):
                return api.users_answer(len(users), users.page(command.offset, command.limit))
            case Page():
                return await self._statistics(users.paths(command.offset, command.limit))
            case Ask():
                return await self._statistics(command.paths)
        async with self.changing:
            match command:
                case Add():
                    await self._store.put(command.rows)
                    users.put(command.rows)
                    if self.replicas is not None:
                        await self.replicas.put(command.rows)
                case Delete():
                    await self.remove(command.paths)
                    if command.disconnect:
                        await self.disconnect(*command.paths)
                case Clear():
                    await self._store.clear()
                    await in_slices(users.clear())
                    if self.replicas is not None:
                        await self.replicas.clear()
                    if command.disconnect:
                        await in_slices(users.cut(users.live_paths(), CUT_REASON))
        return api.answer()

    async def _statistics(self, paths: list[str]) -> bytes:
        await self.settle()
        found = [(path, used) for path in paths if (used := self._users.statistics(path))]
        return api.statistics_answer(len(self._users), found)


async def in_slices(work: Generator[None, None, Result]) -> Result:
    """Run `work` to its end, and let the event loop run whenever it yields."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        await asyncio.sleep(0)
