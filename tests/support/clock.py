"""Time that a test makes: waiting for a timer takes none, and a busy machine changes nothing."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tests.support.transports import turns


class Clock:
    """The running loop, whose time passes only when a test says so.

    It is there for code that asks `asyncio.get_running_loop()` for the time or a timer: all code,
    or that of `modules`. Everything else is the real loop's: sockets, tasks, and `asyncio.sleep`
    and `asyncio.timeout` as well.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = 1000.0
        self._timers: list[tuple[float, int, asyncio.Handle]] = []
        self._numbers = itertools.count()  # among timers of one moment, the older one is first
        if not modules:
            monkeypatch.setattr(asyncio, "get_running_loop", lambda: self)
        for module in modules:
            monkeypatch.setattr(module, "asyncio", _Asyncio(self))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    # What is kept by loop is kept by the real one.

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._loop

    def __hash__(self) -> int:
        return hash(self._loop)

    def time(self) -> float:
        return self.now

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: object
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self._loop)
        heapq.heappush(self._timers, (self.now + delay, next(self._numbers), handle))
        return handle

    @property
    def pending(self) -> int:
        """Number of timers that are due later."""
        return sum(not handle.cancelled() for _, _, handle in self._timers)

    async def passes(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        await turns()
        while self._timers and self._timers[0][0] <= end:
            await self._step()
        self.now = end

    async def until(self, condition: Callable[[], object]) -> None:
        """Let time pass until `condition()` holds; fail if no timer is left."""
        await turns()
        while not condition():
            assert self._timers, "no timer is left, and it does not hold"
            await self._step()

    async def _step(self) -> None:
        when, _, handle = heapq.heappop(self._timers)
        self.now = max(self.now, when)
        if not handle.cancelled():
            handle._run()
        await turns()


class _Asyncio:
    """asyncio as a module finds it that goes by the test's clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def get_running_loop(self) -> Clock:
        return self._clock

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)
