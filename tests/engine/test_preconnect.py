"""Connections that wait for applications, between real ends."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from mtt.outbound import preconnect
from mtt.outbound.preconnect import MAX_DIALS
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
from tests.support.metrics import numbers
from tests.support.tunnels import (
    SOON,
    Tcp,
    cancel,
    check_works,
    client_of,
    connect,
    echo,
    empty,
    eventually,
    logged,
    port_of,
    server_at,
    serving,
    settled,
)

BANNER = b"SSH-2.0-OpenSSH_9.2p1\r\n"


async def welcome(connection: Tcp) -> None:
    """A destination that speaks first, and then like `echo`."""
    await connection.send(BANNER)
    await echo(connection)


class Recording:
    """Carries connections to a port and writes down who spoke when: "u" for up, "d" for down."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.turns: list[str] = []

    async def carry(self, near: Tcp) -> None:
        number = len(self.turns)
        self.turns.append("")

        async def copy(source: Tcp, sink: Tcp, sign: str) -> None:
            while data := await source.read():
                if not self.turns[number].endswith(sign):
                    self.turns[number] += sign
                await sink.send(data)
            await sink.finish()

        async with await connect(self._target) as far:
            ways = [
                asyncio.create_task(copy(near, far, "u")),
                asyncio.create_task(copy(far, near, "d")),
            ]
            try:
                await asyncio.gather(*ways)
            finally:
                await cancel(*ways)


@to_both_servers
@in_both_modes
async def test_the_first_byte_of_a_connection_takes_one_round_trip(
    mode: str, far: str, certs: Certs
) -> None:
    async with serving(echo) as there, server_of(far, mode, there.port, certs) as port:
        recording = Recording(port)
        async with serving(recording.carry) as between:
            async with client_of(mode, between.port, certs) as client:
                await check_works(port_of(client))
                assert recording.turns[0].count("u") >= (2 if mode == "tls" else 3)
            async with prepared(mode, between.port, certs) as client:
                await settled()  # tickets, and the sign of a WebSocket server
                recording.turns = [""] * len(recording.turns)
                async with await connect(port_of(client)) as application:
                    await application.check_echo(b"hello")
                    used = [turns for turns in recording.turns[: SIZE + 1] if turns]
                    assert used == ["ud"]
                assert numbers(client)["waiting_connections_used_total"] == 1
                await eventually(lambda: full(client))


@to_both_servers
@in_both_modes
async def test_burst_of_applications_is_served_and_the_pool_refilled(
    mode: str, far: str, certs: Certs, short_quiet: None
) -> None:
    async with (
        serving(echo) as there,
        server_of(far, mode, there.port, certs) as port,
        prepared(mode, port, certs) as client,
    ):
        for _ in range(2):
            await asyncio.gather(
                *(check_works(port_of(client), bytes([n]) * 100_000) for n in range(4 * SIZE))
            )
        assert SIZE <= numbers(client)["waiting_connections_used_total"] < 8 * SIZE
        await eventually(lambda: full(client) and empty(client))


@to_both_servers
@in_both_modes
async def test_what_the_destination_said_is_delivered(mode: str, far: str, certs: Certs) -> None:
    async with (
        serving(welcome) as there,
        server_of(far, mode, there.port, certs) as port,
        prepared(mode, port, certs) as client,
    ):
        waiting = client._upstream._ready
        await eventually(lambda: all(one.early == BANNER for one in waiting))
        for _ in range(2 * SIZE):
            async with asyncio.timeout(SOON), await connect(port_of(client)) as application:
                assert await application.exactly(len(BANNER)) == BANNER
                await application.check_echo()
        assert numbers(client)["waiting_connections_used_total"] >= SIZE


@in_both_modes
async def test_endless_greeting_is_held_within_a_limit(mode: str, certs: Certs) -> None:
    """What waits holds a little of it, and the application gets every byte."""
    message = bytes(range(251)) * 40_000

    async def talk(connection: Tcp) -> None:
        await connection.send(message)
        await connection.finish()

    async with (
        serving(talk) as there,
        server_at(mode, there.port, certs) as server,
        prepared(mode, port_of(server), certs, preconnect=1) as client,
    ):
        (waiting,) = client._upstream._ready
        await eventually(lambda: not waiting.lower.is_reading())
        assert len(waiting.early) < 200_000
        async with await connect(port_of(client)) as application:
            received = await application.rest()
        assert numbers(client)["waiting_connections_used_total"] == 1
        assert received == message


@to_both_servers
@in_both_modes
async def test_pool_refills_when_the_server_returns(
    mode: str, far: str, certs: Certs, short_quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconnect, "MAX_RETRY", preconnect.FIRST_RETRY)
    async with (
        serving(echo) as there,
        FaultProxy(0) as proxy,  # no server has port 0: all are cut
        contextlib.AsyncExitStack() as server,
    ):
        proxy.target = await server.enter_async_context(server_of(far, mode, there.port, certs))
        async with prepared(mode, proxy.port, certs) as client:
            await check_works(port_of(client))
            await eventually(lambda: full(client))
            before = proxy.count
            proxy.target = 0
            with logged() as lines:
                await server.aclose()
                await eventually(lambda: not numbers(client)["waiting_connections"])
                await eventually(lambda: client._upstream._retry_timer)
                for _ in range(3):
                    await is_cut(port_of(client))
            assert len([line for line in lines if "-preconnect" in line]) == 1
            assert len([line for line in lines if line.startswith("WARNING")]) == 3
            assert proxy.count - before <= 3 + 3 * MAX_DIALS
            assert numbers(client)["waiting_connections_used_total"] == 1
            async with server_of(far, mode, there.port, certs) as port:
                proxy.target = port
                await check_works(port_of(client))
                await eventually(lambda: full(client))  # by the next try
                await check_works(port_of(client))
                assert numbers(client)["waiting_connections_used_total"] == 2


@in_both_modes
async def test_destination_that_ends_idle_connections_is_served(mode: str, certs: Certs) -> None:
    """Such as daytime: nothing can wait, but applications are served."""

    async def daytime(connection: Tcp) -> None:
        await connection.send(b"Tuesday\r\n")
        await connection.finish()
        await connection.rest()

    async with (
        serving(daytime) as there,
        server_at(mode, there.port, certs) as server,
        client_of(mode, port_of(server), certs, preconnect=20) as client,
    ):
        await eventually(lambda: client._upstream._retry_timer)
        await eventually(lambda: full(client, 0))
        before = there.count
        assert before <= 3 * MAX_DIALS
        for _ in range(3):
            async with asyncio.timeout(SOON), await connect(port_of(client)) as application:
                assert await application.rest() == b"Tuesday\r\n"
        assert numbers(client)["waiting_connections_used_total"] == 0
        assert there.count - before <= 3 + 3 * MAX_DIALS
