"""What applications see that get no tunnel."""

from __future__ import annotations

import asyncio

from tests.support.tunnels import SOON, connect, maybe_reset


async def is_cut(port: int) -> None:
    """An application's connection fails."""
    with maybe_reset():
        async with asyncio.timeout(SOON), await connect(port) as application:
            await application.send(b"hello")
            assert await application.rest() == b""
            raise AssertionError("an orderly end")


async def lost(port: int) -> None:
    """An application that gets no tunnel."""
    with maybe_reset():
        async with asyncio.timeout(SOON), await connect(port) as application:
            assert await application.rest() == b""
