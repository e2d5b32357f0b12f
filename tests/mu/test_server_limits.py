"""What users may have: connections, rates, and time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest

from mtt.layers.smux import SmuxSession
from mtt_mu_server import management
from tests.mu.panel import multi_user_server
from tests.mu.users import client, ended, in_both_modes, one_user, upgrade
from tests.support.certs import Certs
from tests.support.tunnels import (
    Tcp,
    check_works,
    client_of,
    connect,
    echo,
    eventually,
    port_of,
    serving,
)


@in_both_modes
async def test_max_conns(mode: str, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        multi_user_server(certs) as (server, panel),
        client(mode, server, certs, "/a") as port,
        client(mode, server, certs, "/b") as other,
        contextlib.AsyncExitStack() as stack,
    ):
        await panel.add("/a", there.port, max_conns=2)
        await panel.add("/b", there.port)
        allowed = [await stack.enter_async_context(await connect(port)) for _ in range(2)]
        for application in allowed:
            await application.check_echo()
        for _ in range(5):
            async with await connect(port) as refused:
                with pytest.raises(ConnectionResetError):  # not an empty answer
                    await refused.read()
        assert server._events.full == 5
        assert (await panel.statistics("/a"))["open_conns"] == 2
        await check_works(other)
        for application in allowed:
            await application.check_echo(b"y")
        allowed[0].close()
        await eventually(lambda: server._users.tunnels_open == 1)
        await check_works(port)


async def test_a_full_user_looks_like_an_unknown_one(certs: Certs) -> None:
    async with (
        one_user("wss", certs, limits={"max_conns": 1}) as (server, _, port),
        await connect(port) as application,
    ):
        await application.check_echo()
        full, unknown = await upgrade(server, certs, "/a"), await upgrade(server, certs, "/b")
        assert full[0].partition(b"Date:")[0] == unknown[0].partition(b"Date:")[0]
        assert full[1] == unknown[1]


@in_both_modes
async def test_rate_is_shared_by_all_connections(mode: str, certs: Certs) -> None:
    rate, size, streams = 400_000, 60_000, 4

    async def upload(port: int) -> None:
        async with await connect(port) as application:
            await application.send(bytes(size))
            await application.finish()
            assert await application.rest() == b"%d" % size

    async def count(connection: Tcp) -> None:
        total = 0
        while data := await connection.read():
            total += len(data)
        await connection.send(b"%d" % total)

    async with one_user(mode, certs, count, limits={"rate": rate}) as (server, _, port):
        start = time.monotonic()
        uploads = [asyncio.create_task(upload(port)) for _ in range(streams)]
        while not all(task.done() for task in uploads):
            await asyncio.sleep(0.05)
            server._users.settle("/a")
            assert server._users.bytes_up <= rate * (time.monotonic() - start) + rate * 0.25 + 1
        await asyncio.gather(*uploads)
        await eventually(lambda: not server.open_tunnels.open)
        assert server._users.bytes_up == size * streams
        assert time.monotonic() - start >= (size * streams - rate * 0.25) / rate * 0.98


async def test_rate_limits_downloads(certs: Certs) -> None:
    rate, size = 200_000, 150_000

    async def pour(connection: Tcp) -> None:
        await connection.send(bytes(range(250)) * (size // 250))

    async with one_user("wss", certs, pour, limits={"rate": rate}) as (_, _, port):
        start = time.monotonic()
        async with await connect(port) as application:
            assert await application.rest() == bytes(range(250)) * (size // 250)
        assert time.monotonic() - start >= (size - rate * 0.25) / rate * 0.98


async def test_low_rate_does_not_look_idle(certs: Certs) -> None:
    """Many connections share so little that one read would take longer than the idle timeout."""
    async with (
        one_user("wss", certs, limits={"rate": 500}, timeout=1.0) as (_, _, port),
        contextlib.AsyncExitStack() as stack,
    ):
        ends = [await stack.enter_async_context(await connect(port)) for _ in range(3)]
        for end in ends:
            await end.send(bytes(400))
        for end in ends:
            assert len(await end.exactly(400)) == 400


@in_both_modes
async def test_expiry(mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(management, "EXPIRY_INTERVAL", 0.02)
    async with (
        serving(echo) as there,
        multi_user_server(certs) as (server, panel),
        client(mode, server, certs, "/a") as port,
        client(mode, server, certs, "/b") as other,
    ):
        await panel.add("/a", there.port, expires=int(time.time()) + 3600)
        await panel.add("/b", there.port)
        async with await connect(port) as application, await connect(other) as neighbour:
            for end in (application, neighbour):
                await end.check_echo()
            await panel.add("/a", there.port, expires=int(time.time()))
            await ended(application)
            async with await connect(port) as late:
                await ended(late)
            await neighbour.check_echo(b"y")
        assert (await panel.command(9)) == {"res": 1, "current_users": 2}


async def test_sessions_without_streams_are_bounded(certs: Certs) -> None:
    """max_conns limits multiplexed connections without streams as well."""
    async with multi_user_server(certs) as (server, panel), contextlib.AsyncExitStack() as stack:
        await panel.add("/a", 1, max_conns=3)
        options: dict[str, Any] = {"wss-path": "/a"}
        clients = [
            await stack.enter_async_context(
                client_of("wss+mux", port_of(server), certs, **options)
            )
            for _ in range(6)
        ]
        opened = 0
        for started in clients:
            session = SmuxSession()
            try:
                await started._connector.attach(session)
            except Exception as error:
                assert "404" in str(error)
            else:
                opened += 1
                stack.callback(session.abort)
        assert opened == 3
        assert server._users.sessions_open == 3
