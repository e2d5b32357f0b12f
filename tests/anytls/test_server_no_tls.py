"""A server behind a proxy that does TLS."""

from __future__ import annotations

import asyncio

import pytest

from tests.anytls.serving import empty, server_for
from tests.anytls.strangers import WRONG, waits
from tests.support.anytlspeer import (
    PSH,
    SERVER_SETTINGS,
    SYNACK,
    AnyTlsPeer,
    frame,
    preamble,
    settings,
)
from tests.support.certs import Certs
from tests.support.metrics import numbers
from tests.support.site import Site
from tests.support.tunnels import SOON, connect, echo, eventually, port_of, serving


async def test_streams_without_tls(certs: Certs) -> None:
    payload = bytes(range(256)) * 4000
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs, **{"disable-tls": True}) as server,
    ):
        async with AnyTlsPeer(await connect(port_of(server))) as peer:
            await eventually(lambda: numbers(server)["handshakes"] == 1)
            await peer.send(preamble(), settings())
            assert await peer.frame() == (SERVER_SETTINGS, 0, b"v=2")
            assert numbers(server)["handshakes"] == 0
            await peer.open(1, "127.0.0.1", there.port)
            assert await peer.frame() == (SYNACK, 1, b"")
            for start in range(0, len(payload), 60_000):
                piece = payload[start : start + 60_000]
                await peer.send(frame(PSH, 1, piece))
                assert await peer.data(1, len(piece)) == piece
        await eventually(lambda: empty(server))


async def test_client_without_tls_gets_an_answer(certs: Certs) -> None:
    async with asyncio.timeout(SOON), server_for(certs, **{"disable-tls": True}) as server:
        async with await connect(port_of(server)) as stranger:
            await stranger.send(WRONG)
            assert (await stranger.rest()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        await eventually(lambda: empty(server))


async def test_client_without_tls_sees_the_fallback_site(certs: Certs) -> None:
    site = Site()
    async with (
        asyncio.timeout(SOON),
        serving(site.serve) as web,
        server_for(certs, fallback=f"127.0.0.1:{web.port}", **{"disable-tls": True}) as server,
    ):
        async with await connect(port_of(server)) as visitor:
            await visitor.send(WRONG)
            assert await visitor.exactly(len(site.ANSWER)) == site.ANSWER
            assert site.received == WRONG
        await eventually(lambda: empty(server))


async def test_silent_connection_without_tls_is_closed(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch, preamble=0.01)
    async with asyncio.timeout(SOON), server_for(certs, **{"disable-tls": True}) as server:
        async with await connect(port_of(server)) as silent:
            assert await silent.rest() == b""
        await eventually(lambda: empty(server))


async def test_lost_connection_without_tls_is_forgotten(certs: Certs) -> None:
    async with asyncio.timeout(SOON), server_for(certs, **{"disable-tls": True}) as server:
        peer = await connect(port_of(server))
        await peer.send(preamble()[:10])
        await eventually(lambda: numbers(server)["handshakes"] == 1)
        peer.reset()
        await eventually(lambda: empty(server))
