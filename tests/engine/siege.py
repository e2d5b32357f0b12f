"""A server besieged by strangers, and what strangers do."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt.server import Server
from tests.support.certs import Certs
from tests.support.tunnels import (
    SOON,
    Tcp,
    check_works,
    client_of,
    echo,
    empty,
    eventually,
    logged,
    maybe_reset,
    port_of,
    server_at,
    serving,
)


@contextlib.asynccontextmanager
async def besieged(mode: str, certs: Certs, **options: Any) -> AsyncIterator[Server]:
    """A server for strangers; afterwards an honest client must be served and nothing be left."""
    async with serving(echo) as there, server_at(mode, there.port, certs, **options) as server:
        with logged() as lines:
            yield server
            if not options:
                async with client_of(mode, port_of(server), certs) as client:
                    await check_works(port_of(client))
            await eventually(lambda: empty(server))
        assert not [line for line in lines if "internal error" in line]


async def ended(stranger: Tcp) -> bytes:
    """What the server still says before it closes, which it must do soon."""
    heard = bytearray()
    async with asyncio.timeout(SOON):
        with maybe_reset(), contextlib.suppress(ssl.SSLError):
            while data := await stranger.read():
                heard += data
    return bytes(heard)


async def send(stranger: Tcp, data: bytes) -> None:
    """Send to a server that may have had enough already."""
    with contextlib.suppress(ConnectionError):
        await stranger.send(data)


def shorten(monkeypatch: pytest.MonkeyPatch, cls: type, name: str, time: object) -> None:
    """Change the default of a time that `cls` takes as a keyword."""
    defaults: dict[str, Any] = cls.__init__.__kwdefaults__  # type: ignore[misc]
    assert name in defaults
    monkeypatch.setitem(defaults, name, time)
