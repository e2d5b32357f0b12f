"""The WebSocket of the Go programs of AnyProxy: fragments from agents, writes that time out.

This shares no code with the package under test, so that a mistake cannot cancel itself out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl

from tests.support.gopeer import BINARY, CLOSE, PING, PONG, masked

FRAGMENT = 4096  # bytes in a frame of an agent
WRITE_TIME = 10.0


class Socket:
    """The WebSocket of either program. `pong_delay`: seconds before pings are answered."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, client: bool
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._client = client
        self._sending = asyncio.Lock()
        self.is_zombie = False
        self.pong_delay = 0.0
        self.pings = 0
        self.is_reading = asyncio.Event()
        self.is_reading.set()
        writer.transport.set_write_buffer_limits(FRAGMENT)

    async def send(self, message: bytes, opcode: int = BINARY) -> None:
        async with self._sending:
            if self.is_zombie:
                raise ConnectionError("zombie")
            step = FRAGMENT if self._client else len(message) or 1
            starts = list(range(0, len(message), step)) or [0]
            for start in starts:
                part = message[start : start + step]
                head = (0x80 if start == starts[-1] else 0) | (opcode if start == 0 else 0)
                self._writer.write(self._frame(head, part))
                try:
                    async with asyncio.timeout(WRITE_TIME):
                        await self._writer.drain()
                except TimeoutError:
                    self.is_zombie = True
                    raise ConnectionError("write timed out") from None

    def _frame(self, head: int, part: bytes) -> bytes:
        size = len(part)
        mask = 0x80 if self._client else 0
        if size <= 125:
            start = bytes((head, mask | size))
        elif size <= 0xFFFF:
            start = bytes((head, mask | 126)) + size.to_bytes(2, "big")
        else:
            start = bytes((head, mask | 127)) + size.to_bytes(8, "big")
        if not mask:
            return start + part
        key = os.urandom(4)
        return start + key + masked(part, key)

    async def receive(self) -> bytes | None:
        """The next message; None at the end."""
        message = b""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            while True:
                await self.is_reading.wait()
                head = await self._reader.readexactly(2)
                opcode, final = head[0] & 0x0F, head[0] & 0x80
                assert bool(head[1] & 0x80) != self._client
                size = head[1] & 0x7F
                if size >= 126:
                    size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8))
                key = await self._reader.readexactly(4) if head[1] & 0x80 else b"\0\0\0\0"
                payload = await self._reader.readexactly(size)
                if key != b"\0\0\0\0":
                    payload = masked(payload, key)
                if opcode == CLOSE:
                    return None
                if opcode == PING:
                    self.pings += 1
                    await asyncio.sleep(self.pong_delay)
                    await self.send(payload, PONG)
                elif opcode != PONG:
                    assert final, "our programs send whole messages"
                    message += payload
                    return message
        return None

    async def close(self) -> None:
        """Close without a close frame, and without waiting for the other side's end."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
