"""The metrics of a client or server in the test's process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mtt.client import Client
from mtt.server import Server
from tests.support.metrics import failures, scrape
from tests.support.tunnels import SOON

METRICS = {"metrics": "0"}


def address(service: Client | Server) -> str:
    return service.metrics_addresses[0]


async def until(service: Client | Server, condition: Callable[[dict[str, float]], bool]) -> Any:
    """Scrape until `condition` holds for the samples; returns them."""
    async with asyncio.timeout(SOON):
        while not condition(samples := await scrape(address(service))):
            await asyncio.sleep(0.01)
    return samples


async def failing(service: Client | Server) -> dict[str, float]:
    """The failures by cause, once there are any."""
    return failures(await until(service, failures))


