"""Datagrams whose content says whether it is right: through associations and forwarded ports."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time

from mtt.wire import socks
from soak import agents
from soak.agents import SOCKS_WELCOME, udp_socket
from soak.report import Broken
from soak.talk import LOOPBACK, pattern

# Datagrams of one user, and their largest size: all fit into one packet of any network.
COUNT, LARGEST = 30, 1200
# Seconds to wait for an answer before the next one is sent, and for the last ones.
ANSWER, LAST = 0.02, 0.5
# Seconds for an association to be there: the gateway asks several agents.
OPEN_TIME = 30.0


class UdpEcho(asyncio.DatagramProtocol):
    """A target that sends each datagram back."""

    async def __aenter__(self) -> int:
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=(LOOPBACK, 0)
        )
        port: int = self._transport.get_extra_info("sockname")[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def associate(port: int, target: int, rng: random.Random) -> int | None:
    """Be the user of one association; how many datagrams of COUNT were answered.

    None if there was no association. Raises Broken for a wrong answer.
    """
    try:
        async with asyncio.timeout(OPEN_TIME):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(agents.associate())
                answer = await reader.readexactly(len(SOCKS_WELCOME) + 10)
                if not answer.startswith(SOCKS_WELCOME + b"\5\0"):
                    return None
                relay = int.from_bytes(answer[-2:], "big")
                return await exchange(relay, socks.datagram_header(LOOPBACK, target), rng)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return None


async def exchange(port: int, head: bytes, rng: random.Random) -> int:
    """Send COUNT datagrams that begin with `head`; how many were answered. Raises Broken."""
    loop = asyncio.get_running_loop()
    seed = rng.randrange(1 << 30)
    sizes = [rng.randrange(LARGEST) for _ in range(COUNT)]
    answered: set[int] = set()
    with udp_socket() as sock:
        for number, size in enumerate(sizes):
            datagram = head + bytes((number,)) + pattern(seed + number, 0, size)
            await loop.sock_sendto(sock, datagram, (LOOPBACK, port))
            await _receive(sock, head, seed, sizes, answered, ANSWER)
        until = time.monotonic() + LAST
        while len(answered) < COUNT and time.monotonic() < until:
            await _receive(sock, head, seed, sizes, answered, ANSWER)
    return len(answered)


async def _receive(
    sock: socket.socket, head: bytes, seed: int, sizes: list[int], answered: set[int], wait: float
) -> None:
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(wait):
            data, _ = await asyncio.get_running_loop().sock_recvfrom(sock, 65536)
            number = data[len(head)] if len(data) > len(head) else COUNT
            if (
                not data.startswith(head) or number >= COUNT
                or data[len(head) + 1 :] != pattern(seed + number, 0, sizes[number])
            ):  # fmt: skip
                raise Broken(f"a wrong datagram was received: {data[:50]!r} (seed {seed})")
            answered.add(number)
