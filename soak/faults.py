"""Thousands of connections in every mode through a network that does everything wrong.

Every byte that arrives is right; whatever fails, the application is told; a connection that the
network left alone succeeds; and afterwards nothing is left.
"""

from __future__ import annotations

import asyncio
import collections
import random
from collections.abc import Sequence

from soak.programs import Pair, Programs
from soak.report import Broken, Progress, say
from soak.talk import Destination, Talk, apply
from soak.usage import Gauge
from tests.support.faults import FaultProxy, random_faults

# At a time and mode.
CONCURRENT = 24
# The share of connections to the server that end by a fault, and within how many bytes. With
# sessions a connection carries one application after the other until a fault ends it.
HARMFUL = {False: 0.3, True: 0.9}
REACH = {False: 60_000, True: 400_000}
# Until an application must have heard: dialling (10 s), a half-open connection (12 s), both one
# after the other, and a busy machine.
HANG_TIME = 60.0
# Streams of a session at a time: the default of the client.
STREAMS = {"mux": 4, "wss+mux": 4, "v2ray+mux": 4, "anytls": 1}
# Shares of the connections before memory is first measured: allocators and caches fill up.
WARM_UP = 0.2


def talks(seed: int, count: int) -> list[Talk]:
    """What the applications do: mostly small, some large, some that quit."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        up, down = (rng.randrange(rng.choice((1, 2000, 30_000, 120_000)) + 1) for _ in range(2))
        in_turn, early = rng.random() < 0.5, rng.random()
        found.append(
            Talk(
                number * 2 + seed, up, down,
                in_turn=in_turn, quits=early < 0.05, is_cut=0.05 <= early < 0.08,
            )
        )  # fmt: skip
    return found


async def run_talks(
    port: int,
    todo: Sequence[Talk],
    progress: Progress | None = None,
    opening: tuple[bytes, bytes] = (b"", b""),
) -> collections.Counter[str]:
    """Have all talks, CONCURRENT at a time; how many were complete, failed, and ended early."""
    outcomes: collections.Counter[str] = collections.Counter()
    waiting = iter(todo)

    async def work() -> None:
        for talk in waiting:
            try:
                async with asyncio.timeout(HANG_TIME):
                    done = await apply(port, talk, opening)
            except TimeoutError:
                raise Broken(f"an application heard nothing for {HANG_TIME:g} s: {talk}") from None
            outcomes["complete" if done else "ended early" if talk.ends_early else "failed"] += 1
            if progress is not None:
                progress.at(sum(outcomes.values()))

    async with asyncio.TaskGroup() as group:
        for _ in range(CONCURRENT):
            group.create_task(work())
    return outcomes


async def soak_mode(programs: Programs, mode: str, connections: int, seed: int) -> None:
    async with Destination() as there:
        server = await programs.server(mode, there.port)
        sessions = mode in STREAMS
        plan = random_faults(seed, harmful=HARMFUL[sessions], reach=REACH[sessions])
        async with FaultProxy(server.port, plan, seed=seed) as proxy:
            client = await programs.client(mode, proxy.port)
            pair = Pair(mode, client, server)
            gauge = Gauge(pair)
            todo = talks(seed, connections)
            first = int(connections * WARM_UP)
            warm = await run_talks(client.port, todo[:first])
            await gauge.begin()
            outcomes = await run_talks(
                client.port, todo[first:], Progress(f"faults, {mode}", connections - first)
            )
            outcomes += warm
            there.look()
            pair.check()
            streams = STREAMS.get(mode, 1)
            if outcomes["failed"] > proxy.harm * streams:
                raise Broken(
                    f"{mode}: {outcomes['failed']} applications failed, but only {proxy.harm} "
                    f"connections of {streams} were harmed: {dict(proxy.struck)}"
                )
            if not outcomes["complete"]:
                raise Broken(f"{mode}: no connection was complete: {dict(outcomes)}")
            figures = await gauge.compare()
            there.look()
            say(f"faults, {mode}: {_words(outcomes)}; faults: {_words(proxy.struck)}")
            say(f"faults, {mode}: {figures}")


def _words(counts: collections.Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


async def soak(programs: Programs, modes: Sequence[str], connections: int, seed: int) -> None:
    """All modes side by side: most of the time is waiting. Raises Broken."""
    async with asyncio.TaskGroup() as group:
        for number, mode in enumerate(modes):
            group.create_task(soak_mode(programs, mode, connections, seed + number * 1_000_003))
