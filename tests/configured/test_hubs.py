"""The hubs of several tunnels, and the connections that workers pass to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine
from typing import Any

import pytest

from mtt.configured.hubs import TunnelHub, TunnelHubs, connections
from mtt.errors import StartError
from mtt.process.runtime import Hub
from tests.support.tunnels import eventually


class Tunnel(Hub):
    """The hub of one tunnel."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name = name
        self.calls = calls
        self.workers: list[socket.socket] = []
        self.fails = False

    @property
    def addresses(self) -> list[str]:
        return [self.name]

    def adopt(self, worker: socket.socket) -> None:
        self.workers.append(worker)

    async def start(self) -> None:
        self.calls.append(f"start {self.name}")
        if self.fails:
            raise StartError("in use")

    def cleanup(self) -> None:
        self.calls.append(f"cleanup {self.name}")

    def reload(self) -> None:
        self.calls.append(f"reload {self.name}")

    async def drain(self) -> None:
        self.calls.append(f"drain {self.name}")

    async def close(self) -> None:
        self.calls.append(f"close {self.name}")
        for worker in self.workers:
            worker.close()


def hubs(count: int) -> tuple[TunnelHubs, list[Tunnel], list[str]]:
    calls: list[str] = []

    def task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    tunnels = [Tunnel(str(number), calls) for number in range(count)]
    found = TunnelHubs(
        [TunnelHub(each, lambda function, *rest: function(*rest), task) for each in tunnels]
    )
    return found, tunnels, calls


async def test_each_tunnel_gets_a_connection_of_each_worker() -> None:
    found, tunnels, _ = hubs(3)
    for _ in range(2):
        here, there = socket.socketpair()
        found.adopt(here)
        ends = await asyncio.to_thread(connections, there, 3)
        await eventually(lambda: not found._channels)
        for number, (end, tunnel) in enumerate(zip(ends, tunnels, strict=True)):
            with end:
                end.send(b"%d" % number)
            assert tunnel.workers[-1].recv(2) == b"%d" % number
    await found.close()
    assert [len(each.workers) for each in tunnels] == [2, 2, 2]


async def test_a_worker_that_ends_early_is_forgotten() -> None:
    found, tunnels, _ = hubs(2)
    here, there = socket.socketpair()
    found.adopt(here)
    with contextlib.ExitStack() as stack:
        stack.enter_context(there)
        near, far = map(stack.enter_context, socket.socketpair())
        socket.send_fds(there, [b"\0"], [far.fileno()])
        await eventually(lambda: tunnels[0].workers)
    await eventually(lambda: not found._channels)
    assert not tunnels[1].workers
    assert near.fileno() < 0
    await found.close()


async def test_too_many_connections_are_closed() -> None:
    found, tunnels, _ = hubs(1)
    here, there = socket.socketpair()
    found.adopt(here)
    ends = connections(there, 2)
    await eventually(lambda: not found._channels)
    assert len(tunnels[0].workers) == 1
    assert ends[1].recv(1) == b""
    for end in ends:
        end.close()
    await found.close()


async def test_channels_close_with_the_hubs() -> None:
    found, _, calls = hubs(2)
    await found.start()
    here, there = socket.socketpair()
    found.adopt(here)
    found.reload()
    found.cleanup()
    await found.drain()
    await found.close()
    with there:
        assert os.read(there.fileno(), 1) == b""
    words = ("start", "reload", "cleanup", "drain", "close")
    assert calls == [f"{word} {number}" for word in words for number in range(2)]
    assert found.addresses == ["0", "1"]


async def test_a_hub_that_does_not_start() -> None:
    found, tunnels, calls = hubs(2)
    tunnels[1].fails = True
    with pytest.raises(StartError, match="in use"):
        await found.start()
    assert calls == ["start 0", "start 1", "cleanup 0", "cleanup 1"]
