"""Memory stays flat however fast one end sends and however slowly the other reads."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.support.certs import Certs
from tests.support.tunnels import (
    MODES,
    SMALL,
    Tcp,
    cancel,
    connect,
    listening,
    tunnel,
)

MEGA = 1 << 20
TOTAL = 200 * MEGA
# A prime, so that no buffer or frame size divides it: a lost or doubled piece shows.
BLOCK = os.urandom(65521)
# What a tunnel takes from a sender whose receiver has stopped: kernel buffers of SMALL (the kernel
# doubles the figure) for each of six sockets, and in each process the event loop's write buffer
# with one read on top, a session's receive budget, and what layers hold for a paused reader.
MOST_ACCEPTED = 4 * MEGA
# For whole processes with all four ends in it: allocator slack, and those buffers again.
MOST_GROWTH = 32 * MEGA
STALL = 20  # looks at the sender without a byte accepted: it is blocked


class Pushing:
    """A sender of TOTAL bytes of BLOCK after BLOCK."""

    def __init__(self, end: Tcp) -> None:
        self.accepted = 0
        self.task = asyncio.create_task(self._push(end))

    async def _push(self, end: Tcp) -> None:
        while self.accepted < TOTAL:
            at = self.accepted % len(BLOCK)
            piece = BLOCK[at : at + min(len(BLOCK), TOTAL - self.accepted)]
            await end.send(piece)
            self.accepted += len(piece)
        await end.finish()

    async def blocked(self) -> int:
        """Wait until nothing more is taken; how much was."""
        seen, looks = -1, 0
        while looks < STALL:
            looks = looks + 1 if self.accepted == seen else 0
            seen = self.accepted
            await asyncio.sleep(0.02)
        return seen


async def read_and_compare(end: Tcp) -> int:
    """Read to the end; the process's memory at its highest meanwhile, in bytes."""
    position, highest, measured = 0, 0, 0
    twice = BLOCK * 2
    while data := await end.read(len(BLOCK)):
        at = position % len(BLOCK)
        assert data == twice[at : at + len(data)], f"wrong at {position}"
        position += len(data)
        if position - measured > 4 * MEGA:
            measured = position
            highest = max(highest, resident())
    assert position == TOTAL
    return highest


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.deadline(60)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("stopped", ["destination", "application"])
# v2ray+mux has the buffers of wss+mux.
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "v2ray+mux"])
async def test_a_stopped_reader_stops_a_fast_sender(
    mode: str, stopped: str, certs: Certs, small_buffers: None
) -> None:
    asyncio.get_running_loop().set_debug(False)  # it took half of the time
    async with (
        listening(buffer=SMALL) as there,
        tunnel(mode, there.port, certs) as port,
        await connect(port, buffer=SMALL) as application,
    ):
        sender, reader = application, await there.accept()
        if stopped == "application":
            sender, reader = reader, sender
        before = resident()
        pushing = Pushing(sender)
        try:
            assert await pushing.blocked() < MOST_ACCEPTED
            assert resident() - before < MOST_GROWTH
            assert await read_and_compare(reader) - before < MOST_GROWTH
            await pushing.task
        finally:
            await cancel(pushing.task)
