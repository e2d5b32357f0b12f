"""Connections leave nothing to the garbage collector, however they end.

Each test runs one scenario several times with the collector switched off. What was made for the
connections has to be gone by then; what waits for the collector is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from mtt.client import Client
from mtt.http import tls_detector
from mtt.layers import linger, tls
from mtt.server import Server
from tests.engine.pools import full
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.garbage import collector_off
from tests.support.gopeer import tls_connect
from tests.support.metrics import numbers
from tests.support.tunnels import (
    Listening,
    Tcp,
    both_ends,
    client_of,
    clock_of_tunnels,
    connect,
    empty,
    eventually,
    in_every_mode,
    listening,
    maybe_reset,
    port_of,
    server_at,
    serving,
    settled,
)

TIMES = 3


class Both:
    """A client and a server, and a destination in the test's hands."""

    def __init__(self, client: Client, server: Server, there: Listening) -> None:
        self.client = client
        self.server = server
        self.there = there

    async def ready(self) -> tuple[Tcp, Tcp]:
        """An application and the destination's end of its tunnel."""
        application = await connect(port_of(self.client))
        await application.send(b"hello")
        destination = await self.there.accept()
        assert await destination.exactly(5) == b"hello"
        return application, destination

    async def over(self) -> None:
        """Wait until all tunnels have ended."""
        await eventually(lambda: not (self.client.tunnels or self.server.tunnels))
        await settled()


@contextlib.asynccontextmanager
async def both(mode: str, certs: Certs, **options: object) -> AsyncIterator[Both]:
    async with (
        listening() as there,
        both_ends(mode, there.port, certs, **options) as (server, client),
    ):
        yield Both(client, server, there)


async def ended(both: Both) -> None:
    application, destination = await both.ready()
    await application.finish()
    assert await destination.rest() == b""
    await destination.send(b"answer")
    destination.close()
    assert await application.rest() == b"answer"
    application.close()


async def ended_by_destination(both: Both) -> None:
    application, destination = await both.ready()
    destination.close()
    assert await application.rest() == b""
    application.close()


async def reset_by_application(both: Both) -> None:
    application, destination = await both.ready()
    application.reset()
    with maybe_reset():
        await destination.rest()
    destination.close()


async def reset_by_destination(both: Both) -> None:
    application, destination = await both.ready()
    destination.reset()
    with maybe_reset():
        await application.rest()
    application.close()


async def reset_while_busy(both: Both) -> None:
    application, destination = await both.ready()
    pushing = asyncio.create_task(destination.send(bytes(1 << 24)))
    await application.exactly(100_000)
    application.reset()
    with contextlib.suppress(OSError):
        await pushing
    destination.close()


async def closed_without_a_byte(both: Both) -> None:
    (await connect(port_of(both.client))).close()
    (await both.there.accept()).close()


ENDS = (
    ended, ended_by_destination, reset_by_application, reset_by_destination, reset_while_busy,
    closed_without_a_byte,
)  # fmt: skip


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
@in_every_mode
async def test_ended_tunnels(
    mode: str, end: Callable[[Both], Awaitable[None]], certs: Certs, short_quiet: None,
) -> None:
    async with both(mode, certs) as pair:
        with collector_off() as left:
            for _ in range(TIMES):
                await end(pair)
            await pair.over()
        assert not left


@in_every_mode
async def test_refused_destinations(mode: str, certs: Certs) -> None:
    async with both(mode, certs) as pair:
        pair.there.close()
        with collector_off() as left:
            for _ in range(TIMES):
                async with await connect(port_of(pair.client)) as application:
                    with maybe_reset():
                        assert await application.rest() == b""
            await pair.over()
        assert not left


@in_every_mode
async def test_missing_server_fails_applications(mode: str, certs: Certs) -> None:
    async with both(mode, certs) as pair:
        await pair.server.close()
        with collector_off() as left:
            for _ in range(TIMES):
                await refused(pair.client)
            await pair.over()
        assert not left


@in_every_mode
async def test_wrong_certificate(mode: str, certs: Certs) -> None:
    async with both(mode, certs) as pair, client_of(
        mode, port_of(pair.server), certs, ca=certs.other_ca
    ) as client:
        await check_refused(pair, client)


@pytest.mark.parametrize("mode", ["wss", "wss+mux"])
async def test_wrong_path(mode: str, certs: Certs) -> None:
    async with both(mode, certs, **{"wss-path": "/a"}) as pair, client_of(
        mode, port_of(pair.server), certs, **{"wss-path": "/b"}
    ) as client:
        await check_refused(pair, client)


async def test_wrong_password(certs: Certs) -> None:
    async with both("anytls", certs) as pair, client_of(
        "anytls", port_of(pair.server), certs, p="another"
    ) as client:
        await check_refused(pair, client)


async def check_refused(pair: Both, client: Client) -> None:
    """The server of `pair` refuses `client`, and nothing of that is left."""
    with collector_off() as left:
        for _ in range(TIMES):
            await refused(client)
        await eventually(lambda: not client.tunnels and empty(pair.server))
        await pair.over()
    assert not left


async def refused(client: Client) -> None:
    """An application that gets no tunnel."""
    async with await connect(port_of(client)) as application:
        await application.send(b"hello")
        with maybe_reset():
            assert await application.rest() == b""


@pytest.mark.parametrize(
    "said", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256))],
    ids=["nothing", "beginning", "http", "garbage"],
)
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@in_every_mode
async def test_connections_without_a_handshake(
    mode: str, said: bytes, reset: bool, certs: Certs
) -> None:
    async with listening() as there, server_at(mode, there.port, certs) as server:
        with collector_off() as left:
            for _ in range(TIMES):
                visitor = await connect(port_of(server))
                if said:
                    await visitor.send(said)
                await eventually(lambda: numbers(server)["handshakes"] or len(said) > 10)
                visitor.reset() if reset else visitor.close()
            await eventually(lambda: empty(server))
            await settled()
        assert not left


@in_every_mode
async def test_services_that_close(mode: str, certs: Certs) -> None:
    async with both(mode, certs) as pair:
        with collector_off() as left:
            pairs = [await pair.ready() for _ in range(TIMES)]
            connecting = await connect(port_of(pair.client))
            visitor = await connect(port_of(pair.server))
            await eventually(lambda: numbers(pair.server)["handshakes"])
            await pair.client.close()
            await pair.server.close()
            for end in (connecting, visitor, *(end for ends in pairs for end in ends)):
                end.close()
            del end, pairs, connecting, visitor
            await pair.over()
        assert not left


@in_every_mode
async def test_idle_tunnels(
    mode: str, certs: Certs, short_quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = clock_of_tunnels(monkeypatch)
    async with both(mode, certs, timeout=4.0) as pair:
        with collector_off() as left:
            pairs = [await pair.ready() for _ in range(TIMES)]
            await clock.until(lambda: not (pair.client.tunnels or pair.server.tunnels))
            for end in (end for ends in pairs for end in ends):
                end.close()
            del end, pairs
            # Idle sessions go as well, and connections that linger.
            await clock.passes(60.0)
            await pair.over()
        assert not left


@in_every_mode
async def test_handshakes_that_take_too_long(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening() as there, server_at(mode, there.port, certs) as server:
        clock = Clock(monkeypatch, tls, linger)
        with collector_off() as left:
            visitors = [await connect(port_of(server)) for _ in range(TIMES)]
            await eventually(lambda: numbers(server)["handshakes"] == TIMES)
            await clock.passes(tls_detector.HANDSHAKE_TIME)  # the longest
            for visitor in visitors:
                assert await visitor.rest() == b""
                visitor.close()
            del visitor, visitors
            await eventually(lambda: empty(server))
            await clock.passes(60.0)
        assert not left


@pytest.mark.parametrize("mode", ["wss", "wss+mux", "anytls"])
@pytest.mark.parametrize("there", [True, False], ids=["site", "no site"])
async def test_visitors_of_a_web_site(
    mode: str, there: bool, certs: Certs, refused_port: int
) -> None:
    async with listening() as nothing, serving(page) as site:
        fallback = {"fallback": f"127.0.0.1:{site.port if there else refused_port}"}
        async with server_at(mode, nothing.port, certs, **fallback) as server:
            with collector_off() as left:
                for _ in range(TIMES):
                    visitor = await tls_connect(port_of(server), certs)
                    await visitor.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    with contextlib.suppress(ConnectionResetError, ssl.SSLError):
                        await visitor.read()
                    visitor.close()
                    del visitor
                await eventually(lambda: empty(server))
                await settled()
            assert not left


async def page(connection: Tcp) -> None:
    await connection.until(b"\r\n\r\n")
    await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\npage")
    await connection.rest()


@in_every_mode
async def test_client_without_its_certificate(mode: str, certs: Certs) -> None:
    async with (
        listening() as there,
        server_at(mode, there.port, certs, **{"client-ca": certs.ca}) as server,
        client_of(mode, port_of(server), certs) as client,
    ):
        await check_refused(Both(client, server, there), client)


@pytest.mark.parametrize("mode", ["tls", "wss"])
@pytest.mark.parametrize("taken", [True, False], ids=["taken", "lost"])
async def test_ready_connections(mode: str, taken: bool, certs: Certs) -> None:
    async with (
        both(mode, certs) as pair,
        client_of(mode, port_of(pair.server), certs, preconnect=TIMES) as client,
    ):
        await eventually(lambda: full(client, TIMES))
        with collector_off() as left:
            if taken:
                async with await connect(port_of(client)) as application:
                    await application.send(b"hello")
                    await eventually(lambda: numbers(client)["waiting_connections_used_total"])
            await pair.server.close()
            await eventually(lambda: not (numbers(client)["waiting_connections"] or client.tunnels))
            await client.close()
            await pair.over()
        assert not left
