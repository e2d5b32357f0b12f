"""Several servers of one client: which one is used."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from mtt.outbound import balancer
from mtt.outbound.balancer import FIRST_BACKOFF
from tests.anytls.proxying import check_echo, client_for, reply_of
from tests.anytls.serving import server_for
from tests.proxy.clients import TUNNELS
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.loopback import refusing
from tests.support.tunnels import SOON, connect, echo, listening, logged, port_of, serving

GENERAL, REFUSED = 1, 5


async def test_servers_are_tried_in_turn(certs: Certs, refused_port: int) -> None:
    with logged() as lines:
        async with (
            serving(echo) as there,
            server_for(certs, p="another password") as stranger,
            server_for(certs) as server,
            client_for(certs, refused_port, port_of(stranger), port_of(server)) as client,
        ):
            stranger._frontend.fallback = lambda transport: transport.close()
            for _ in range(5):
                await check_echo(client, there.port)
            # Servers that failed are tried last for a while.
            assert stranger.counters.handshake_failures["password"] <= 1
            assert client.counters.dial_failures == 1
            # The client takes a working server's answer about a destination as final.
            assert await reply_of(client, "127.0.0.1", refused_port) == REFUSED
    warnings = [line for line in lines if "is used instead" in line]
    assert len(warnings) == 2, lines
    assert f"cannot connect to 127.0.0.1:{refused_port}: connection refused" in warnings[0]
    assert all(line.endswith(f"127.0.0.1:{port_of(server)} is used instead") for line in warnings)


async def test_failed_server_is_tried_again(
    certs: Certs, refused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, balancer)
    address = f"127.0.0.1:{refused_port}"
    with logged() as lines:
        async with (
            serving(echo) as there,
            server_for(certs) as second,
            client_for(certs, refused_port, port_of(second)) as client,
        ):
            await check_echo(client, there.port)
            await clock.passes(FIRST_BACKOFF)
            await check_echo(client, there.port)  # and backs off for twice as long
            assert client.counters.dial_failures == 2
            async with server_for(certs, b=address) as server:
                await clock.passes(2 * FIRST_BACKOFF - 1)
                await check_echo(client, there.port)
                assert server.counters.streams == 0
                await clock.passes(1)
                await check_echo(client, there.port)
                await check_echo(client, there.port)
                assert server.counters.streams == 2
    assert f"INFO {address} can be used again" in lines


async def test_one_connection_at_a_time_tries_a_failed_server(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, balancer)
    async with (
        listening() as silent,
        serving(echo) as there,
        server_for(certs) as second,
        client_for(certs, silent.port, port_of(second)) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        waiting = await stack.enter_async_context(await connect(port_of(client)))
        async with asyncio.timeout(SOON):
            failing = asyncio.create_task(check_echo(client, there.port))
            (await silent.accept()).close()
            await failing
            await clock.passes(FIRST_BACKOFF)
            await waiting.send(TUNNELS["socks5"](there.port)[0])
            tried = await silent.accept()
            await check_echo(client, there.port)
            tried.close()
            answer = TUNNELS["socks5"](there.port)[1]
            assert await waiting.exactly(len(answer)) == answer
        assert silent.count == 2


async def test_all_servers_refuse(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    with logged() as lines, contextlib.ExitStack() as stack:
        ports = [stack.enter_context(refusing()) for _ in range(3)]
        async with client_for(certs, *ports) as client:
            for _ in range(2):  # all are tried, although all are in backoff
                assert await reply_of(client, "127.0.0.1", 1) == GENERAL
            assert client.counters.dial_failures == 6
            monkeypatch.setattr(balancer, "FAILOVER_TIME", 0.0)
            assert await reply_of(client, "127.0.0.1", 1) == GENERAL
            assert client.counters.dial_failures == 7
    assert all(f"127.0.0.1:{port}: connection refused" in lines[0] for port in ports)
