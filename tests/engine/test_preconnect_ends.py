"""Connections that wait for applications are retired, drained and refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mtt.client import Client
from mtt.errors import Cause
from mtt.options.tunnel import CLIENT_FLAGS, client_options
from mtt.outbound import preconnect
from mtt.outbound.preconnect import MAX_DIALS
from plugin.options import parse_options
from tests.engine.applications import is_cut
from tests.engine.pools import (
    SIZE,
    full,
    in_both_modes,
    prepared,
    server_of,
    to_both_servers,
)
from tests.support.certs import Certs
from tests.support.faults import FaultProxy
from tests.support.metrics import numbers, parse
from tests.support.tunnels import (
    Tcp,
    check_works,
    client_of,
    connect,
    echo,
    empty,
    eventually,
    listening,
    logged,
    port_of,
    server_at,
    serving,
)


@to_both_servers
@in_both_modes
async def test_old_connections_are_replaced(
    mode: str, far: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconnect, "MAX_AGE", 0.6)
    accepted: list[Tcp] = []
    ends: list[bytes] = []

    async def destination(connection: Tcp) -> None:
        accepted.append(connection)
        ends.append(await connection.rest())  # a reset would raise

    async with (
        serving(destination) as there,
        server_of(far, mode, there.port, certs) as port,
        prepared(mode, port, certs) as client,
    ):
        await eventually(lambda: len(ends) >= 3 * SIZE)
        assert set(ends) == {b""}
        assert numbers(client)["waiting_connections"] >= SIZE - 1
        assert len(accepted) - len(ends) <= SIZE + MAX_DIALS + 1
        assert client.counters.dial_failures == 0


@in_both_modes
async def test_shutting_down_leaves_nothing(mode: str, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs) as server,
        FaultProxy(port_of(server)) as proxy,
    ):
        for moment in range(0, 30, 3):  # with dials under way, at any stage
            client = Client(client_options(_given(mode, proxy.port, certs)))
            await client.start()
            for _ in range(moment):
                await asyncio.sleep(0.001)
            await client.close()
            assert not numbers(client)["waiting_connections"]
            assert not numbers(client)["handshakes"]
        await eventually(lambda: empty(server) and not proxy.open)


def _given(mode: str, port: int, certs: Certs) -> dict[str, Any]:
    return {
        "b": "127.0.0.1:0", "s": f"127.0.0.1:{port}", "n": certs.name, "ca": certs.ca,
        "wss": mode == "wss", "preconnect": 8,
    }  # fmt: skip


@in_both_modes
async def test_draining_closes_ready_connections_and_keeps_used_ones(
    mode: str, certs: Certs, short_quiet: None
) -> None:
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs) as server,
        prepared(mode, port_of(server), certs) as client,
    ):
        async with await connect(port_of(client)) as application:
            await application.check_echo()
            drained = asyncio.create_task(client.drain())
            await eventually(lambda: server.tunnels == 1)
            assert not numbers(client)["waiting_connections"] and not drained.done()
            await application.check_echo(b"y")
        await drained
        await eventually(lambda: empty(server))


@in_both_modes
async def test_new_certificates_retire_ready_connections(mode: str, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs) as server,
        prepared(mode, port_of(server), certs) as client,
    ):
        before = set(client._upstream._ready)
        client.reload()
        await eventually(lambda: before.isdisjoint(client._upstream._ready))
        await eventually(lambda: full(client))
        context = client._connector.files[0].context()
        for waiting in client._upstream._ready:
            assert waiting.lower.get_extra_info("ssl_object").context is context
        await check_works(port_of(client))
        assert numbers(client)["waiting_connections_used_total"] == 1


@pytest.mark.parametrize("mode", ["tls", "wss"])
async def test_refusing_server_is_retried_with_delay(mode: str, certs: Certs) -> None:
    """With TLS 1.3 that shows only after the client's handshake."""
    async with (
        listening() as there,
        server_at(mode, there.port, certs, **{"client-ca": certs.ca}) as server,
    ):
        with logged() as lines:
            async with client_of(mode, port_of(server), certs, preconnect=5) as client:
                await eventually(lambda: client._upstream._retry_timer)
                await eventually(lambda: not numbers(client)["handshakes"])
                await eventually(lambda: not numbers(client)["waiting_connections"])
                refused = client.counters.handshake_failures[Cause.CERTIFICATE]
                assert 1 <= refused <= 2 * MAX_DIALS
        told = [line for line in lines if "the server wants a client certificate" in line]
        assert len(told) == 1
        assert told[0].startswith("INFO -preconnect: ")


async def test_plugin_has_ready_connections(certs: Certs) -> None:
    values = parse_options(CLIENT_FLAGS, f"preconnect={SIZE};wss")
    assert values == {"preconnect": SIZE, "wss": True}
    async with (
        serving(echo) as there,
        server_at("wss", there.port, certs) as server,
        prepared("wss", port_of(server), certs, plugin=True, **values) as client,
    ):
        await check_works(port_of(client))
        (await connect(port_of(client))).close()  # a check by shadowsocks takes none
        await eventually(lambda: not client.waiting and full(client))
        assert numbers(client)["waiting_connections_used_total"] == 1


async def test_metrics_of_ready_connections(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("tls", there.port, certs) as server,
        prepared("tls", port_of(server), certs) as client,
    ):
        samples = parse(client.metrics_page())
        assert samples["mtt_waiting_connections"] == SIZE
        assert samples["mtt_waiting_connections_used_total"] == 0
        await check_works(port_of(client))
        samples = parse(client.metrics_page())
        assert samples["mtt_waiting_connections_used_total"] == 1


async def test_application_sees_failure_of_its_prepared_connection(certs: Certs) -> None:
    """Nothing is sent again: whether the first try arrived cannot be known."""
    said: list[bytes] = []

    async def fail(connection: Tcp) -> None:
        said.append(await connection.read())
        connection.reset()

    async with (
        serving(fail) as there,
        server_at("tls", there.port, certs) as server,
        prepared("tls", port_of(server), certs) as client,
    ):
        await is_cut(port_of(client))
        assert said == [b"hello"]
