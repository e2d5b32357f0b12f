"""Whether processes hold no more than before."""

from __future__ import annotations

import asyncio
import time

from soak.programs import Program, Set, Usage
from soak.report import Broken

# How long closing may take when all peers are gone: the longest timeout of a connection that has
# undelivered data (linger.STALL_TIME, 30 s), and some seconds for a busy machine.
SETTLE_TIME = 45.0
LOOK_INTERVAL = 0.5
SPARE = 1

# Objects that come and go with caches (TLS sessions, interned strings, the event loop's timer heap,
# which keeps cancelled timers for a while). One forgotten connection is some 30 of them, and there
# were thousands of connections.
MORE_OBJECTS = 1500
# A share of the memory: what the allocator cannot return after a peak because something small is
# left beside it. One forgotten TLS connection is about 50 KiB, two thousand would be 100 MB.
MORE_MEMORY = 0.25


class Gauge:
    """What processes that work together hold at rest.

    Made before the first connection comes: from then on no descriptor may be left behind except
    for the one mux session that a client keeps warm, and the spare one that libuv (uvloop) takes
    with the first connection.

    Args:
        more_memory: by what share it may grow.
    """

    def __init__(self, pair: Set, *, more_memory: float = MORE_MEMORY) -> None:
        self._pair = pair
        self._more_memory = more_memory
        more = int("mux" in pair.mode) + SPARE
        self._descriptors = {each: each.descriptors + more for each in pair.programs}
        self._before: dict[Program, Usage] = {}

    async def begin(self) -> None:
        """Remember what there is, as soon as no connection is left. Raises Broken."""
        for program in self._pair.programs:
            await self._rest(program)
            self._before[program] = await program.usage()

    async def compare(self) -> str:
        """Wait until no more is held than at `begin`; the figures in words. Raises Broken."""
        words = []
        for program, old in self._before.items():
            until = time.monotonic() + SETTLE_TIME
            await self._rest(program)
            while trouble := self._excess(old, new := await program.usage()):
                if time.monotonic() > until:
                    raise Broken(f"{self._pair.mode}: {program.name} still holds {trouble}")
                await asyncio.sleep(LOOK_INTERVAL)
            words.append(
                f"{program.name} {new.descriptors} fds, {new.tasks} tasks, "
                f"{old.memory / 1e6:.1f} -> {new.memory / 1e6:.1f} MB, "
                f"{new.objects - old.objects:+d} objects"
            )
        return "; ".join(words)

    async def _rest(self, program: Program) -> None:
        until = time.monotonic() + SETTLE_TIME
        while (count := program.descriptors) > self._descriptors[program]:
            program.check()
            if time.monotonic() > until:
                raise Broken(
                    f"{self._pair.mode}: {program.name} still has {count} descriptors instead of "
                    f"{self._descriptors[program]}, {SETTLE_TIME:g} s after its last connection"
                )
            await asyncio.sleep(LOOK_INTERVAL)

    def _excess(self, old: Usage, new: Usage) -> str:
        if new.tasks > old.tasks:
            return f"{new.tasks} tasks instead of {old.tasks}"
        if new.objects > old.objects + MORE_OBJECTS:
            return f"{new.objects} objects, after {old.objects}"
        if new.memory > old.memory * (1 + self._more_memory):
            return f"{new.memory / 1e6:.1f} MB of memory, after {old.memory / 1e6:.1f} MB"
        return ""
