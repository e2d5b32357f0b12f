"""Our client and our server joined: what applications and destinations see."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import AsyncExitStack

import pytest

from mtt.client import Client
from mtt.server import Server
from tests.support.certs import Certs
from tests.support.tunnels import (
    MEGABYTE,
    SOON,
    both_ends,
    check_works,
    client_of,
    connect,
    echo,
    empty,
    eventually,
    in_every_mode,
    in_mux_modes,
    joined,
    listening,
    logged,
    maybe_reset,
    port_of,
    server_at,
    serving,
    tunnel,
)


@in_every_mode
async def test_bytes_arrive_unchanged_both_ways_at_once(
    mode: str, certs: Certs, short_quiet: None
) -> None:
    async def one(port: int, size: int) -> None:
        data = os.urandom(size)
        async with await connect(port) as application:
            _, received = await asyncio.gather(application.send(data), application.exactly(size))
            assert received == data

    async with serving(echo) as there, tunnel(mode, there.port, certs) as port:
        await asyncio.gather(*(one(port, size) for size in (1, 16384, 16385, 65536, 1_000_001)))
        assert there.count == 5


@in_every_mode
async def test_the_destination_may_speak_first(mode: str, certs: Certs) -> None:
    async with listening() as there, joined(mode, there, certs) as (application, destination):
        await destination.send(b"220 welcome\r\n")
        assert await application.exactly(13) == b"220 welcome\r\n"
        await application.send(b"quit")
        assert await destination.exactly(4) == b"quit"


@in_every_mode
async def test_the_server_is_dialled_before_the_application_speaks(mode: str, certs: Certs) -> None:
    async with (
        listening() as there,
        tunnel(mode, there.port, certs) as port,
        await connect(port),
        asyncio.timeout(SOON),
    ):
        await there.accept()


@in_every_mode
async def test_unreachable_destination_closes_the_application(
    mode: str, certs: Certs, refused_port: int
) -> None:
    with logged() as lines:
        async with (
            tunnel(mode, refused_port, certs) as client,
            asyncio.timeout(SOON),
            await connect(client) as application,
        ):
            with maybe_reset():
                assert await application.rest() == b""
    failures = [line for line in lines if line.startswith("WARNING")]
    if mode == "anytls":  # in which the server says why
        assert failures.pop().endswith(": the server says: connection refused")
    assert len(failures) == 1, failures
    assert f"cannot connect to 127.0.0.1:{refused_port}: connection refused" in failures[0]
    assert "127.0.0.1:" in failures[0].split(": ")[0]


@in_every_mode
async def test_unreachable_server_closes_the_application(
    mode: str, certs: Certs, refused_port: int
) -> None:
    with logged() as lines:
        async with (
            client_of(mode, refused_port, certs) as client,
            asyncio.timeout(SOON),
            await connect(port_of(client)) as application,
        ):
            await application.send(b"anybody there?")
            with maybe_reset():
                assert await application.rest() == b""
    failures = [line for line in lines if line.startswith("WARNING")]
    assert len(failures) == 1, failures
    assert f"cannot connect to 127.0.0.1:{refused_port}: connection refused" in failures[0]


@in_every_mode
async def test_next_connection_works_after_a_server_restart(
    mode: str, certs: Certs
) -> None:
    async with serving(echo) as there, AsyncExitStack() as stack:
        async with server_at(mode, there.port, certs) as server:
            address = server.addresses[0]
            client = await stack.enter_async_context(client_of(mode, port_of(server), certs))
            await check_works(port_of(client))
            old = await stack.enter_async_context(await connect(port_of(client)))
            await old.check_echo()
        with maybe_reset():
            assert await old.rest() == b""
        async with server_at(mode, there.port, certs, b=address):
            await check_works(port_of(client))


@in_every_mode
async def test_nothing_is_kept_of_tunnels_that_are_over(
    mode: str, certs: Certs, short_quiet: None
) -> None:
    async with (
        serving(echo) as there,
        both_ends(mode, there.port, certs) as (server, client),
    ):
        for _ in range(3):
            await check_works(port_of(client))
        await eventually(lambda: not len(client.open_tunnels))
        await client._upstream.close()  # an idle session is kept on purpose
        await eventually(lambda: empty(client) and empty(server))


@in_every_mode
async def test_closing_either_end_cuts_its_tunnels(mode: str, certs: Certs) -> None:
    for which in (Client, Server):
        async with (
            listening() as there,
            both_ends(mode, there.port, certs) as (server, client),
            await connect(port_of(client)) as application,
        ):
            destination = await there.accept()
            await application.send(b"x")
            assert await destination.exactly(1) == b"x"
            async with asyncio.timeout(SOON):
                await (client if which is Client else server).close()
                for end in (application, destination):
                    with maybe_reset():
                        assert await end.rest() == b""


@in_every_mode
@pytest.mark.parametrize("plugin", [False, True])
async def test_closing_cuts_connections_just_accepted(
    plugin: bool, mode: str, certs: Certs
) -> None:
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs) as server,
        client_of(mode, port_of(server), certs, plugin=plugin) as client,
    ):
        for service in (client, server):
            newcomers = [await connect(port_of(service)) for _ in range(5)]
            await service.close()
            for newcomer in newcomers:
                with maybe_reset():
                    async with newcomer, asyncio.timeout(SOON):
                        assert await newcomer.rest() == b""
            await eventually(lambda: empty(service))  # noqa: B023


@in_every_mode
async def test_verbose_logs_open_and_close_with_the_bytes(
    mode: str, certs: Certs, short_quiet: None
) -> None:
    with logged(logging.DEBUG) as lines:
        async with serving(echo) as there, tunnel(mode, there.port, certs) as port:
            await check_works(port, b"SECRET-PAYLOAD")
            await eventually(lambda: sum(" closed after " in line for line in lines) == 2)
    assert sum(line.endswith(": open") for line in lines) == 2
    assert sum("14 bytes up, 14 bytes down" in line for line in lines) == 2
    assert not any("SECRET-PAYLOAD" in line for line in lines)


async def test_secret_path_is_not_logged(certs: Certs) -> None:
    with logged(logging.DEBUG) as lines:
        async with (
            serving(echo) as there,
            both_ends("wss", there.port, certs, **{"wss-path": "/hush-hush"}) as (server, client),
            client_of("wss", port_of(server), certs, **{"wss-path": "/wrong-one"}) as stranger,
        ):
            await check_works(port_of(client))
            async with await connect(port_of(stranger)) as application:
                with maybe_reset():
                    assert await application.rest() == b""
    assert any("404" in line for line in lines)
    assert not any("hush" in line or "wrong-one" in line for line in lines)


@in_mux_modes
async def test_broken_tunnel_is_logged_but_not_reset_application(mode: str, certs: Certs) -> None:
    async with (
        listening() as there,
        both_ends(mode, there.port, certs) as (server, client),
    ):
        async with await connect(port_of(client)) as application:
            await application.send(b"x")
            await (await there.accept()).exactly(1)
            with logged() as lines:
                application.reset()
                ends = client.open_tunnels, server.open_tunnels
                await eventually(lambda: not any(end.open for end in ends))
            assert not lines
        async with await connect(port_of(client)) as application:
            await application.send(b"x")
            await (await there.accept()).exactly(1)
            with logged() as lines:
                server._frontend.close()
                await eventually(lambda: not client.open_tunnels.open)
            assert len([line for line in lines if line.startswith("WARNING")]) == 1, lines


@pytest.mark.parametrize("mode", ["wss", "wss+mux"])
async def test_random_masking_keys_change_nothing_for_applications(mode: str, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs) as server,
        client_of(mode, port_of(server), certs, **{"wss-mask": True}) as client,
    ):
        await check_works(port_of(client), MEGABYTE[:300_001])
