"""UDP sockets for tests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any, Self

LARGEST = 65535


class Udp:
    """A UDP socket of this machine, connected if `port` is given, bound to `own` if that is."""

    def __init__(self, port: int | None = None, host: str = "127.0.0.1", *, own: int = 0) -> None:
        self.sock = socket.socket(
            socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
        )
        self.sock.bind((host, own))
        if port is not None:
            self.sock.connect((host, port))
        self.sock.setblocking(False)
        self.port: int = self.sock.getsockname()[1]
        self._loop = asyncio.get_running_loop()

    def send(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.sock.send(payload)

    async def receive(self) -> bytes:
        return await self._loop.sock_recv(self.sock, LARGEST)

    async def receive_from(self) -> tuple[bytes, Any]:
        readable = asyncio.Event()  # uvloop has no sock_recvfrom()
        self._loop.add_reader(self.sock, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(self.sock)
        return self.sock.recvfrom(LARGEST)

    async def many(self, count: int) -> list[bytes]:
        return [await self.receive() for _ in range(count)]

    async def check_echo(self, payload: bytes = b"x") -> None:
        self.send(payload)
        assert await self.receive() == payload

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def echo(payload: bytes) -> bytes:
    return payload


@contextlib.contextmanager
def answering(
    answer: Callable[[bytes], bytes | None] = echo, *, port: int = 0
) -> Iterator[Udp]:
    """A destination that answers each datagram with `answer` of it, if that is not None."""
    loop = asyncio.get_running_loop()
    with Udp(own=port) as there:

        def readable() -> None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    payload, sender = there.sock.recvfrom(LARGEST)
                    reply = answer(payload)
                    if reply is not None:
                        there.sock.sendto(reply, sender)

        loop.add_reader(there.sock, readable)
        try:
            yield there
        finally:
            loop.remove_reader(there.sock)
