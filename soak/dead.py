"""A network that fails silently and returns: no program needs a restart.

With the real constants of the program: every connection, idle or waiting for an answer, ends within
NOTICE_TIME at both ends. Afterwards the same processes serve new connections.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence

from soak.programs import Pair, Programs
from soak.report import Broken, say
from soak.talk import LOOPBACK
from tests.support.faults import ELSEWHERE, FaultProxy

# What docs/differences.md promises, and some more for the machine.
NOTICE_TIME = 80.0 + 10.0
# A new connection when the network is there again: a dial that is under way must fail first.
RETURN_TIME = 25.0


async def _connected(port: int, greeting: bytes) -> socket.socket:
    """An application that has got an answer, and waits for more."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    await loop.sock_connect(sock, (LOOPBACK, port))
    await loop.sock_sendall(sock, greeting)
    return sock


async def _hears(sock: socket.socket, who: str) -> float:
    """Read until the end, which must be an error; how many seconds that took."""
    loop = asyncio.get_running_loop()
    start = time.monotonic()
    try:
        async with asyncio.timeout(NOTICE_TIME):
            while await loop.sock_recv(sock, 65536):
                pass
    except TimeoutError:
        raise Broken(f"{who} was not told within {NOTICE_TIME:g} s") from None
    except OSError:
        return time.monotonic() - start
    raise Broken(f"{who} got a clean end although the network was gone")


class Quiet:
    """A destination that says nothing and waits."""

    def __init__(self) -> None:
        self._listener = socket.create_server((LOOPBACK, 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]

    async def accept(self) -> socket.socket:
        sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_recv(sock, 100)
        return sock

    def close(self) -> None:
        self._listener.close()


async def soak_mode(programs: Programs, mode: str) -> None:
    quiet = Quiet()
    server = await programs.server(mode, quiet.port)
    async with FaultProxy(server.port, host=ELSEWHERE) as proxy:
        client = await programs.client(mode, proxy.port, host=ELSEWHERE)
        pair = Pair(mode, client, server)
        loop = asyncio.get_running_loop()
        ends: dict[str, socket.socket] = {}
        for name in ("idle", "asking"):
            ends[f"the {name} application"] = await _connected(client.port, b"hello")
            ends[f"the destination of the {name} application"] = await quiet.accept()
        try:
            await proxy.vanish()
            await loop.sock_sendall(ends["the asking application"], b"are you there?")
            seconds = await asyncio.gather(
                *(_hears(sock, f"dead, {mode}: {name}") for name, sock in ends.items())
            )
            pair.check()
            proxy.come_back()
            await _serves(pair, quiet)
            say(f"dead, {mode}: told after {', '.join(f'{each:.0f}' for each in seconds)} s")
        finally:
            for sock in ends.values():
                sock.close()
            quiet.close()


async def _serves(pair: Pair, quiet: Quiet) -> None:
    """The same processes carry a new connection."""
    until = time.monotonic() + RETURN_TIME
    while time.monotonic() < until:
        application = await _connected(pair.client.port, b"again")
        try:
            async with asyncio.timeout(RETURN_TIME / 2):
                (await quiet.accept()).close()
            return
        except TimeoutError:
            pass
        finally:
            application.close()
    raise Broken(f"dead, {pair.mode}: the network is back, but the tunnel is not")


async def soak(programs: Programs, modes: Sequence[str]) -> None:
    """All modes side by side. Raises Broken."""
    async with asyncio.TaskGroup() as group:
        for mode in modes:
            group.create_task(soak_mode(programs, mode))
