"""Limits of the proxy port: slow, many, lost and misbehaving clients."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

import pytest

from mtt.errors import DestinationError, NetworkError
from mtt.log import FAILURE_BURST
from mtt.net import admission
from mtt.outcome import Outcome
from mtt.proxy import handshake, http
from mtt.proxy import port as proxy_port
from tests.proxy.clients import TUNNELS, socks4a, socks5
from tests.proxy.direct import direct_proxy
from tests.support.clock import Clock
from tests.support.tunnels import connect, eventually, port_of


@pytest.mark.parametrize("said", [b"", b"\5", b"\5\1\0", b"\4\1\0", b"GET http://a"])
async def test_stalled_handshake_times_out(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, handshake, http)
    async with direct_proxy() as proxy:
        async with await connect(port_of(proxy)) as client:
            await client.send(said)
            await eventually(lambda: proxy.proxy.pending)
            await clock.passes(9)
            assert proxy.proxy.pending == 1
            await clock.passes(1)
            assert await client.rest() == (b"\5\0" if said == b"\5\1\0" else b"")
        assert proxy.proxy.pending == 0


async def test_handshake_deadline_covers_all_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, handshake, http)
    async with direct_proxy() as proxy, await connect(port_of(proxy)) as client:
        said = socks4a(1, "a" * 200)[0]
        await client.send(said[:1])
        while not proxy.proxy.pending:
            await asyncio.sleep(0)
        sent = 1
        while proxy.proxy.pending:
            assert sent < len(said), "it was let in"
            await client.send(said[sent : sent + 1])
            sent += 1
            await clock.passes(0.5)
        assert await client.rest() == b""
        assert proxy.asked == []


async def test_oldest_of_too_many_handshakes_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def two(**options: Any) -> admission.Pending:
        return admission.Pending(2, **options)

    monkeypatch.setattr(proxy_port, "Pending", two)
    async with direct_proxy() as proxy:
        clients = [await connect(port_of(proxy)) for _ in range(3)]
        with pytest.raises(ConnectionResetError):
            await clients[0].rest()
        assert proxy.proxy.pending == 2
        for client in clients:
            client.close()


async def test_close_ends_handshakes_and_pending_opens() -> None:
    async with direct_proxy() as proxy:
        proxy.gate.clear()
        asking, waiting = await connect(port_of(proxy)), await connect(port_of(proxy))
        await asking.send(socks5(1)[0])
        assert await asking.exactly(2) == b"\5\0"
        while not proxy.asked or proxy.proxy.pending < 1:
            await asyncio.sleep(0)
        await proxy.close()
        for client in (asking, waiting):
            with pytest.raises(ConnectionResetError):
                await client.rest()
            client.close()


async def test_lost_clients_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with direct_proxy() as proxy:
        for said in (b"", b"\5", b"\5\1\0", b"\4\1", b"GET"):
            for reset in (True, False):
                client = await connect(port_of(proxy))
                await client.send(said)
                while not proxy.proxy.pending:
                    await asyncio.sleep(0)
                if reset:
                    client.reset()
                else:
                    client.close()
                while proxy.proxy.pending:
                    await asyncio.sleep(0)
    assert not [line for line in caplog.records if line.levelno > logging.DEBUG]


async def test_repeated_failures_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with direct_proxy() as proxy:
        proxy.error = NetworkError("the server is down")
        for said in (socks5(9)[0], b"\4\2\0\x50\1\2\3\4\0"):  # the second is a BIND
            for _ in range(2 * FAILURE_BURST):
                async with await connect(port_of(proxy)) as client:
                    await client.send(said)
                    await client.rest()
    lines = [line.getMessage() for line in caplog.records if line.levelno > logging.DEBUG]
    down = [line for line in lines if line.endswith("the server is down")]
    assert len(down) == len(lines) - len(down) == FAILURE_BURST


async def test_random_input(caplog: pytest.LogCaptureFixture) -> None:
    """Random input never causes an internal error, and no connection stays open."""
    rng = random.Random(5)
    starts = [said for said, _ in (request(9) for request in TUNNELS.values())]
    starts += [b"", b"GET http://a:9/ HTTP/1.1\r\nHost: a\r\n\r\n", b"\5\1\0\5\3\0"]
    async with direct_proxy(udp=True) as proxy:
        proxy.error = DestinationError(Outcome.CONNECTION_REFUSED)

        async def one() -> None:
            noise = bytearray(rng.choice(starts) + rng.randbytes(rng.randrange(40)))
            for _ in range(rng.randrange(4)):
                if noise:
                    noise[rng.randrange(len(noise))] = rng.randrange(256)
            async with await connect(port_of(proxy)) as client:
                await client.send(bytes(noise))
                await client.finish()
                await client.rest()

        for _ in range(15):
            await asyncio.gather(*(one() for _ in range(20)))
        assert proxy.proxy.pending == 0
        while proxy.tunnels:
            await asyncio.sleep(0)
    assert "internal error" not in caplog.text
    assert proxy.asked
