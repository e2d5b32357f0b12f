"""The hubs of several tunnels with workers, in one process.

Each worker has one socket to that process. Over this socket it passes one end of a connection for
each tunnel, in the order of the tunnels.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, NamedTuple

from mtt.process.runtime import Hub
from mtt.process.supervisor_link import MAX_DESCRIPTORS


class TunnelHub(NamedTuple):
    """The hub of one tunnel."""

    hub: Hub
    run: Callable[..., object]  # calls a function in the tunnel's context
    task: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]  # starts a task there


class TunnelHubs(Hub):
    """The hubs of all tunnels."""

    def __init__(self, tunnels: Sequence[TunnelHub]) -> None:
        self._tunnels = tunnels
        self._channels: set[socket.socket] = set()  # to workers that have not passed all

    @property
    def addresses(self) -> list[str]:
        return [address for each in self._tunnels for address in each.hub.addresses]

    async def start(self) -> None:
        try:
            for each in self._tunnels:
                await each.task(each.hub.start())
        except BaseException:
            self.cleanup()
            raise

    def adopt(self, worker: socket.socket) -> None:
        worker.setblocking(False)
        self._channels.add(worker)
        rest = iter(self._tunnels)
        asyncio.get_running_loop().add_reader(worker, self._read, worker, rest)

    def _read(self, worker: socket.socket, rest: Iterator[TunnelHub]) -> None:
        """Take connections of a worker, until it closes its end."""
        try:
            data, descriptors, _, _ = socket.recv_fds(worker, MAX_DESCRIPTORS, MAX_DESCRIPTORS)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        for descriptor in descriptors:
            connection = socket.socket(fileno=descriptor)
            each = next(rest, None)
            if each is None:
                connection.close()
            else:
                each.run(each.hub.adopt, connection)
        if not data:
            self._forget(worker)

    def _forget(self, worker: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(worker)
        self._channels.discard(worker)
        worker.close()

    def cleanup(self) -> None:
        for each in self._tunnels:
            each.hub.cleanup()

    def reload(self) -> None:
        for each in self._tunnels:
            each.hub.reload()

    async def drain(self) -> None:
        await asyncio.gather(*(each.task(each.hub.drain()) for each in self._tunnels))

    async def close(self) -> None:
        for worker in list(self._channels):
            self._forget(worker)
        await asyncio.gather(*(each.task(each.hub.close()) for each in self._tunnels))


def connections(hub: socket.socket, count: int) -> list[socket.socket]:
    """A worker's connections to the hubs of `count` tunnels; `hub` is closed."""
    ends = []
    with hub:
        for _ in range(count):
            near, far = socket.socketpair()
            with far:
                socket.send_fds(hub, [b"\0"], [far.fileno()])
            ends.append(near)
    return ends
