"""A rate limiter between a fake transport and a recording protocol."""

from __future__ import annotations

import asyncio
from typing import Any

from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.tunnels.rate_limit import Bucket, RateLimiter


class Below(StreamTransport):
    """The transport below a rate limiter."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = False
        self.calls: list[str] = []
        self.sent = b""
        self.upper: Any = None

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return False

    def unsent(self) -> int:
        return 0

    def write(self, data: Any) -> None:
        self.sent += data

    def half_closes(self) -> bool | None:
        return True

    def write_eof(self) -> None:
        self.calls.append("eof")

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")


class Above(StreamProtocol):
    """The protocol above a rate limiter."""

    def __init__(self) -> None:
        self.data = b""
        self.events: list[str] = []
        self.changed = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.changed.set()

    def eof_received(self) -> bool:
        self.events.append("eof")
        self.changed.set()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(f"lost {exc}")
        self.changed.set()

    def connection_made(self, transport: Any) -> None:
        pass

    async def has(self, size: int) -> None:
        while len(self.data) < size:
            self.changed.clear()
            await self.changed.wait()

    async def had(self, *events: str) -> None:
        while self.events != list(events):
            self.changed.clear()
            await self.changed.wait()


def stack(bucket: Bucket) -> tuple[Below, RateLimiter, Above]:
    below, layer, above = Below(), RateLimiter(bucket), Above()
    layer.start(below)
    layer.set_protocol(above)
    layer.resume_reading()
    assert below.reading
    return below, layer, above
