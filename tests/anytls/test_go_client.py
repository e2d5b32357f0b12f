"""Go clients, which do not know half-close, at our AnyTLS server: ends and what is under way."""

from __future__ import annotations

import asyncio
import os

import pytest

from mtt.tunnels import relay
from tests.anytls.serving import empty, server_for
from tests.support.anytlspeer import FIN, PASSWORD, PSH, SYN, SYNACK, address, frame, peer_connect
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.tunnels import SOON, Tcp, eventually, listening, port_of, server_at, serving

HERE = "127.0.0.1"
REPLY = b"the answer"
LARGE = 20_000_000


async def answer(connection: Tcp) -> None:
    await connection.until(b"?")
    await connection.send(REPLY)


async def greet(connection: Tcp) -> None:
    await connection.send(REPLY)


async def end_at_once(_connection: Tcp) -> None:
    """Closing is all that it does."""


@pytest.mark.parametrize("kind", ["anytls-server", "mtt-server"])
async def test_end_after_an_answer_is_sent_at_once(
    kind: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(SOON), serving(answer) as there:
        running = (
            server_for(certs)
            if kind == "anytls-server"
            else server_at("anytls", there.port, certs, p=PASSWORD)
        )
        async with running as server, await peer_connect(port_of(server), certs) as peer:
            Clock(monkeypatch, relay)  # which stands still
            for number in (1, 2):
                await peer.open(number, HERE, there.port, b"really?")
                assert await peer.frame() == (SYNACK, number, b"")
                assert await peer.data(number, len(REPLY)) == REPLY
                assert await peer.frame() == (FIN, number, b"")


@pytest.mark.parametrize(("serve", "reply"), [(greet, REPLY), (end_at_once, b"")])
async def test_end_of_unused_destination_arrives_at_once(
    serve: object, reply: bytes, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        asyncio.timeout(SOON),
        serving(serve) as there,  # type: ignore[arg-type]
        server_for(certs) as server,
        await peer_connect(port_of(server), certs) as peer,
    ):
        Clock(monkeypatch, relay)
        await peer.open(1, HERE, there.port)
        assert await peer.frame() == (SYNACK, 1, b"")
        assert await peer.data(1, len(reply)) == reply
        assert await peer.frame() == (FIN, 1, b"")


async def test_end_without_an_answer_is_sent_soon(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        asyncio.timeout(SOON),
        listening() as there,
        server_for(certs) as server,
        await peer_connect(port_of(server), certs) as peer,
    ):
        clock = Clock(monkeypatch, relay)
        await peer.open(1, HERE, there.port, b"really?")
        destination = await there.accept()
        assert await destination.exactly(7) == b"really?"
        await destination.finish()
        assert await peer.frame() == (SYNACK, 1, b"")
        told = asyncio.ensure_future(peer.frame())
        began = clock.now
        while not told.done():
            await clock.passes(0.005)
            await asyncio.sleep(0.001)
        assert await told == (FIN, 1, b"")
        assert clock.now - began <= 0.1


async def test_upload_to_a_half_closed_destination_arrives_whole(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(LARGE)
    async with (
        asyncio.timeout(30),
        listening() as there,
        server_for(certs) as server,
        await peer_connect(port_of(server), certs) as peer,
    ):
        clock = Clock(monkeypatch, relay)
        await peer.open(1, HERE, there.port, data[:100_000][:30_000])
        destination = await there.accept()
        assert await peer.frame() == (SYNACK, 1, b"")
        assert await destination.exactly(30_000) == data[:30_000]
        await destination.finish()
        told = asyncio.ensure_future(peer.frame())
        received = asyncio.ensure_future(destination.exactly(LARGE - 30_000))
        for at in range(30_000, LARGE, 32768):
            await peer.send(frame(PSH, 1, data[at : at + 32768]))
            await clock.passes(0.005)
        assert await received == data[30_000:]
        assert not told.done()
        await clock.passes(3)
        assert await told == (FIN, 1, b"")


async def test_stream_begun_and_ended_by_the_client_is_delivered(certs: Certs) -> None:
    """All in one record: what was said arrives, then the end."""
    async with (
        asyncio.timeout(SOON),
        listening() as there,
        server_for(certs) as server,
        await peer_connect(port_of(server), certs) as peer,
    ):
        await peer.send(
            frame(SYN, 1), frame(PSH, 1, address(HERE, there.port) + b"all of it"), frame(FIN, 1)
        )
        destination = await there.accept()
        assert await destination.rest() == b"all of it"
        destination.close()
        await eventually(lambda: server.tunnels == 0)
    assert empty(server)
