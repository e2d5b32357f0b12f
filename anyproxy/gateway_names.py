"""Gateways behind one name: each of its addresses is a gateway of its own.

An agent keeps sessions with each of them, because users may come to any. The name is looked up
again from time to time. A name with one address, or none known, is left to the dialler.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Iterable

from mtt.address import Endpoint
from mtt.errors import MttError, describe
from mtt.log import Throttle
from mtt.net.resolve import Resolver

# Seconds between lookups, plus a random part, so that agents do not ask in step.
INTERVAL, JITTER = 60.0, 15.0
# Addresses of a name; more are ignored, because each costs sessions.
MAX_ADDRESSES = 16

# Stands for the address that the dialler finds.
ANY = ""


class GatewayNames:
    """The addresses of gateways.

    Args:
        resolver: looks names up.
        gateways: returns those that are names.
        on_change: awaited when addresses have changed.
    """

    def __init__(
        self,
        resolver: Resolver,
        gateways: Callable[[], Iterable[Endpoint]],
        on_change: Callable[[], Awaitable[object]],
    ) -> None:
        self._resolver = resolver
        self._gateways = gateways
        self._on_change = on_change
        self._known: dict[Endpoint, tuple[str, ...]] = {}
        self._task: asyncio.Task[None] | None = None
        self._failures = Throttle()

    def addresses(self, gateway: Endpoint) -> tuple[str, ...]:
        """The IP literals of a gateway's name if there are several, else ANY alone."""
        return self._known.get(gateway, (ANY,))

    async def look_up(self) -> bool:
        """Look all names up. Returns whether addresses have changed."""
        found = {}
        for gateway in self._gateways():
            addresses = await self._addresses_of(gateway)
            if len(addresses) > 1:
                found[gateway] = addresses
        is_new, self._known = found != self._known, found
        return is_new

    async def _addresses_of(self, gateway: Endpoint) -> tuple[str, ...]:
        try:
            answer = await self._resolver.resolve(gateway.host, gateway.port)
        except MttError as error:
            self._failures.warning("the known addresses stay in use: %s", describe(error))
            return self._known.get(gateway, ())
        # A gateway with IPv4 and IPv6 is one gateway: those of the larger family count.
        families: dict[int, list[str]] = {socket.AF_INET: [], socket.AF_INET6: []}
        for family, rest in answer:
            families.setdefault(family, []).append(rest[0])
        largest = max(families.values(), key=lambda addresses: len(addresses))
        return tuple(sorted(largest)[:MAX_ADDRESSES])

    def follow(self) -> None:
        """Look names up from time to time."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(INTERVAL + random.uniform(0, JITTER))
            if await self.look_up():
                await self._on_change()
