"""Datagrams in every mode through a network that does everything wrong.

Every datagram that arrives is right and its own, some arrive in spite of the faults, and all do
without them; afterwards no flow and no connection is left.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from soak.datagrams import COUNT, UdpEcho, exchange
from soak.programs import Pair, Programs
from soak.report import Broken, Progress, say
from soak.usage import Gauge
from tests.support.faults import FaultProxy, random_faults

# Applications at a time, which share one connection, and how many come one after the other.
CONCURRENT, ROUNDS = 8, 12
# The connection ends soon: each fault strikes all flows.
HARMFUL, REACH = 0.6, 100_000
# Flows are to end while we look. The client may have to wait for its next attempt to connect.
OPTIONS = ("-udp", "-udp-timeout", "1s")
# The share of answers without faults: datagrams may be lost on a busy machine, too.
MOST = 0.9


async def soak_mode(programs: Programs, mode: str, seed: int) -> None:
    rng = random.Random(seed)
    async with UdpEcho() as there:
        server = await programs.server(mode, there, *OPTIONS)
        plan = random_faults(seed, harmful=HARMFUL, reach=REACH)
        async with FaultProxy(server.port, plan, seed=seed) as proxy:
            client = await programs.client(mode, proxy.port, *OPTIONS)
            direct = await programs.client(mode, server.port, *OPTIONS)
            pair = Pair(mode, client, server)
            gauge = Gauge(pair)
            await _rounds(client.port, 1, rng)
            await gauge.begin()
            progress = Progress(f"udp, {mode}", ROUNDS)
            answered = await _rounds(client.port, ROUNDS, rng, progress)
            if not answered:
                raise Broken(f"udp, {mode}: nothing was answered: {dict(proxy.struck)}")
            without = await _rounds(direct.port, 1, rng)
            if without < MOST * CONCURRENT * COUNT:
                raise Broken(f"udp, {mode}: only {without} were answered without faults")
            pair.check()
            figures = await gauge.compare()
            sent = CONCURRENT * ROUNDS * COUNT
            say(f"udp, {mode}: {answered} of {sent} answered; {sum(proxy.struck.values())} faults")
            say(f"udp, {mode}: {figures}")


async def _rounds(
    port: int, count: int, rng: random.Random, progress: Progress | None = None
) -> int:
    """Have applications exchange datagrams; how many were answered. Raises Broken."""
    answered = 0
    for number in range(count):
        answered += sum(
            await asyncio.gather(*(exchange(port, b"", rng) for _ in range(CONCURRENT)))
        )
        if progress is not None:
            progress.at(number + 1)
    return answered


async def soak(programs: Programs, modes: Sequence[str], seed: int) -> None:
    """All modes side by side: most of the time is waiting. Raises Broken."""
    async with asyncio.TaskGroup() as group:
        for number, mode in enumerate(modes):
            group.create_task(soak_mode(programs, mode, seed + number))
