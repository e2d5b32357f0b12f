"""Layers that take over a parked transport, and keep its bytes as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from mtt.layers.counting import ByteCounts, CountingLayer
from mtt.layers.layer import Layer
from mtt.layers.parked import Parked, hand_over
from mtt.tunnels.rate_limit import RateLimiter, Waiter
from mtt.tunnels.two_way_rate import TwoWayRateLimiter


class _Drops:
    """A token source that gives drops, one drop in each turn of the event loop."""

    drop = 50_000

    def __init__(self) -> None:
        self._left = self.drop
        self._waiting: dict[Waiter, None] = {}
        self._serving = False

    def take(self, wanted: int) -> int:
        granted = 0 if self._waiting else max(0, min(wanted, self._left))
        self._left -= granted
        self._serve_soon()
        return granted

    def charge(self, size: int) -> None:
        self._left -= size

    def wait(self, limiter: Waiter) -> None:
        self._waiting[limiter] = None
        self._serve_soon()

    def leave(self, limiter: Waiter) -> None:
        self._waiting.pop(limiter, None)

    def _serve_soon(self) -> None:
        if not self._serving:
            self._serving = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        self._serving = False
        self._left = self.drop
        for limiter in list(self._waiting):
            del self._waiting[limiter]
            self._left -= limiter.pass_on(self._left)
            break
        if self._waiting:
            self._serve_soon()


# By name.
LAYERS: dict[str, Callable[[], Layer]] = {
    "throttle": lambda: RateLimiter(cast(Any, _Drops())),
    "two-way-throttle": lambda: TwoWayRateLimiter(cast(Any, _Drops())),
    "counter": lambda: CountingLayer(ByteCounts()),
}


def started(upper: Any, make: Callable[[], Layer]) -> Parked:
    """Puts a new layer between a transport and the protocol `upper`."""

    def ready(transport: Any) -> None:
        layer = make()
        layer.start(transport)
        hand_over(layer, upper)

    return Parked(ready)
