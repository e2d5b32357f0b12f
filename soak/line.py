"""Delay, loss and a narrow link, from a proxy that delays, holds back and limits the rate.

(netem would ask for root and for a kernel that has it, and would spoil the whole machine's
loopback.) Nothing may stand still for longer than the line explains, every byte is right, and
memory stays flat although the sender is much faster than the line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

from soak.programs import MODES, Pair, Programs
from soak.report import Broken, say
from soak.talk import Destination, Stream, Talk, apply
from tests.support.faults import ROUTER_QUEUE, FaultProxy, Line

MB = 1 << 20

# Beside each bulk transfer there are small requests one after the other, this many seconds apart.
REQUEST_INTERVAL = 0.05
# What a small request may wait for beside the line's own delay: the bytes of the bulk transfer in
# front of it (in the proxy's queue and sockets, and in those of client and server), and a busy
# machine.
IN_FRONT = 1.5 * MB
BUSY = 3.0
# Buffers of the connections, as in the tests of back-pressure, and what the allocator adds.
MORE_MEMORY = 32 * MB


class Case(NamedTuple):
    line: Line
    size: int  # of the bulk transfer, bytes each way


CASES = {
    "a long line": Case(Line(delay=0.15, rate=3e6), 8 * MB),
    "a narrow link": Case(Line(delay=0.02, rate=400_000), 2 * MB),
    "a lossy line": Case(Line(delay=0.03, rate=4_000_000, loss=0.02), 4 * MB),
}


async def soak_case(programs: Programs, mode: str, name: str, seed: int) -> None:
    line, size = CASES[name]
    what = f"line, {mode}, {name}"
    async with Destination() as there:
        server = await programs.server(mode, there.port)
        async with FaultProxy(server.port, line=line, seed=seed) as proxy:
            client = await programs.client(mode, proxy.port)
            pair = Pair(mode, client, server)
            if not await apply(client.port, Talk(seed, 1000, 1000)):
                raise Broken(f"{what}: the first connection failed")
            start_memory = {program: program.memory for program in pair.programs}
            most = dict(start_memory)

            async def watch() -> None:
                while True:
                    for program in pair.programs:
                        most[program] = max(most[program], program.memory)
                    await asyncio.sleep(0.1)

            watching = asyncio.ensure_future(watch())
            start = time.monotonic()
            bulk = asyncio.ensure_future(apply(client.port, Talk(seed, size, size)))
            try:
                slowest, count = await _requests(client.port, seed, bulk)
                stream = await bulk
            finally:
                bulk.cancel()
                watching.cancel()
            seconds = time.monotonic() - start
            there.look()
            pair.check()
            if stream is None:
                raise Broken(f"{what}: the bulk transfer failed")
            pause = 4 * line.delay + (line.recovery if line.loss else 0.0)
            if line.rate:
                pause += IN_FRONT / line.rate
            for figure, words in (
                (stream.longest_pause, "a bulk transfer stood still"),
                (slowest, "a small request took"),
            ):
                # A request is a dial or a stream, and a round trip or two.
                allowed = pause + BUSY + 8 * line.delay
                if figure > allowed:
                    raise Broken(f"{what}: {words} {figure:.1f} s, {allowed:.1f} s are explained")
            for program in pair.programs:
                growth = most[program] - start_memory[program]
                if growth > MORE_MEMORY:
                    raise Broken(f"{what}: {program.name} grew by {growth / MB:.0f} MiB meanwhile")
            say(
                f"{what}: {size / MB:.0f} MiB each way in {seconds:.1f} s, longest pause "
                f"{stream.longest_pause:.2f} s, slowest of {count} requests {slowest:.2f} s, "
                "memory "
                + " ".join(f"+{(most[each] - start_memory[each]) / MB:.0f}" for each in most)
                + " MiB"
            )


async def _requests(port: int, seed: int, bulk: asyncio.Future[Stream | None]) -> tuple[float, int]:
    """Small requests as long as `bulk` goes on: the seconds of the slowest, and how many."""
    slowest, count = 0.0, 0
    while not bulk.done():
        start = time.monotonic()
        count += 1
        if not await apply(port, Talk(seed + 2 * count, 100, 1000, in_turn=True)):
            raise Broken("line: a small request failed")
        slowest = max(slowest, time.monotonic() - start)
        await asyncio.sleep(REQUEST_INTERVAL)
    return slowest, count


async def soak(programs: Programs, modes: Sequence[str], seed: int) -> None:
    """Every mode on every line, the modes side by side. Raises Broken."""
    assert set(modes) <= set(MODES) and ROUTER_QUEUE < IN_FRONT
    for name in CASES:
        async with asyncio.TaskGroup() as group:
            for mode in modes:
                group.create_task(soak_case(programs, mode, name, seed))
