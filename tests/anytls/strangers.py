"""Strangers of the AnyTLS server, and how much it has heard of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from anytls.server import Server
from mtt.http.limits import VISITORS
from mtt.inbound import anytls_reader
from mtt.layers import anytls_heads
from mtt.layers.anytls_heads import ConnectionHead
from tests.anytls.serving import empty, server_for
from tests.support.anytlspeer import SYN, frame, preamble, settings
from tests.support.certs import Certs
from tests.support.site import Site
from tests.support.tunnels import SOON, eventually, serving

SHORT_REQUEST = b"GET / HTTP/1.0\r\n\r\n"
assert len(SHORT_REQUEST) == 18
WRONG = preamble("not it") + settings() + frame(SYN, 1)

# Seconds; longer than any test: one that waits for it fails.
NEVER = 60.0


@contextlib.asynccontextmanager
async def in_front_of_a_site(certs: Certs) -> AsyncIterator[tuple[Server, Site]]:
    site = Site()
    async with (
        asyncio.timeout(SOON),
        serving(site.serve) as web,
        server_for(certs, fallback=f"127.0.0.1:{web.port}") as server,
    ):
        yield server, site
        await eventually(lambda: empty(server))


def has_heard(server: Server, data: bytes) -> bool:
    """Whether the server has received `data` from a client that is not authenticated yet."""
    pending: Any = server._frontend.handshakes._transports
    readers = [tls.upper._reader for tls in pending if isinstance(tls.upper, ConnectionHead)]
    return any(reader is not None and reader.received == data for reader in readers)


def waits(monkeypatch: pytest.MonkeyPatch, *, preamble: float) -> None:
    monkeypatch.setattr(anytls_heads, "PREAMBLE_TIME", preamble)
    monkeypatch.setattr(anytls_reader, "VISITORS", VISITORS._replace(head=preamble))
