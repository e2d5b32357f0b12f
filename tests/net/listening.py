"""Listeners for tests, and whether they answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

from mtt.layers.base import StreamProtocol


class Accepting(StreamProtocol):
    """Sends one byte to each client and closes."""

    def connection_made(self, transport: Any) -> None:
        transport.write(b"!")
        transport.close()


async def answers(host: str, port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    return await _is_greeted(reader, writer)


async def unix_answers(address: str) -> bool:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address)  # uvloop itself cannot connect to abstract sockets
    return await _is_greeted(*await asyncio.open_unix_connection(sock=sock))


async def _is_greeted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    try:
        return await reader.read() == b"!"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
