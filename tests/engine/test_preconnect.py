"""Connections that wait for applications, between real ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt.client import Client
from mtt.errors import Cause
from mtt.options.tunnel import CLIENT_FLAGS, client_options
from mtt.outbound import preconnect
from mtt.outbound.preconnect import MAX_DIALS
from plugin.options import parse_options
from tests.support.certs import Certs
from tests.support.faults import FaultProxy
from tests.support.goserver import go_server
from tests.support.metrics import parse
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
    listening,
    logged,
    maybe_reset,
    port_of,
    server_at,
    serving,
    settled,
)

SIZE = 3
BANNER = b"SSH-2.0-OpenSSH_9.2p1\r\n"

in_both_modes = pytest.mark.parametrize("mode", ["tls", "wss"])
to_both_servers = pytest.mark.parametrize("far", ["ours", "go"])


@contextlib.asynccontextmanager
async def server_of(far: str, mode: str, destination: int, certs: Certs) -> AsyncIterator[int]:
    """The port of our server or of a Go server."""
    if far == "go":
        async with go_server(mode, destination, certs) as go:
            yield go.port
    else:
        async with server_at(mode, destination, certs) as server:
            yield port_of(server)


@contextlib.asynccontextmanager
async def prepared(mode: str, server: int, certs: Certs, **options: Any) -> AsyncIterator[Client]:
    """A client with a full pool."""
    options = {"preconnect": SIZE} | options
    async with client_of(mode, server, certs, **options) as client:
        await eventually(lambda: full(client, options["preconnect"]))
        yield client


def full(client: Client, size: int = SIZE) -> bool:
    return len(client._upstream) == size and not client._connector.connecting


async def welcome(connection: Tcp) -> None:
    """A destination that speaks first, and then like `echo`."""
    await connection.send(BANNER)
    await echo(connection)


async def is_cut(port: int) -> None:
    """An application's connection fails."""
    with maybe_reset():
        async with asyncio.timeout(SOON), await connect(port) as application:
            await application.send(b"hello")
            assert await application.rest() == b""
            raise AssertionError("an orderly end")


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
                    await application.send(b"hello")
                    assert await application.exactly(5) == b"hello"
                    used = [turns for turns in recording.turns[: SIZE + 1] if turns]
                    assert used == ["ud"]
                assert client._upstream.used == 1
                await eventually(lambda: full(client))


@to_both_servers
@in_both_modes
async def test_a_burst_of_applications(
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
        assert SIZE <= client._upstream.used < 8 * SIZE
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
                await application.send(b"x")
                assert await application.exactly(1) == b"x"
        assert client._upstream.used >= SIZE


@in_both_modes
async def test_a_destination_that_talks_without_end(mode: str, certs: Certs) -> None:
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
        assert client._upstream.used == 1
        assert received == message


@to_both_servers
@in_both_modes
async def test_a_server_that_dies_and_returns(
    mode: str, far: str, certs: Certs, short_quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconnect, "MAX_RETRY", preconnect.FIRST_RETRY)
    async with (
        serving(echo) as there,
        FaultProxy(0) as proxy,  # nobody has port 0: whoever comes is cut
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
                await eventually(lambda: not len(client._upstream))
                await eventually(lambda: client._upstream._retry_timer)
                for _ in range(3):
                    await is_cut(port_of(client))
            assert len([line for line in lines if "-preconnect" in line]) == 1
            assert len([line for line in lines if line.startswith("WARNING")]) == 3
            assert proxy.count - before <= 3 + 3 * MAX_DIALS
            assert client._upstream.used == 1
            async with server_of(far, mode, there.port, certs) as port:
                proxy.target = port
                await check_works(port_of(client))
                await eventually(lambda: full(client))  # by the next try
                await check_works(port_of(client))
                assert client._upstream.used == 2


@in_both_modes
async def test_a_destination_that_ends_idle_connections_at_once(mode: str, certs: Certs) -> None:
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
        await eventually(lambda: not client._connector.connecting and not len(client._upstream))
        before = there.count
        assert before <= 3 * MAX_DIALS
        for _ in range(3):
            async with asyncio.timeout(SOON), await connect(port_of(client)) as application:
                assert await application.rest() == b"Tuesday\r\n"
        assert client._upstream.used == 0
        assert there.count - before <= 3 + 3 * MAX_DIALS


@to_both_servers
@in_both_modes
async def test_old_ones_are_replaced(
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
        assert len(client._upstream) >= SIZE - 1
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
            assert not len(client._upstream)
            assert not client._connector.connecting
        await eventually(lambda: empty(server) and not proxy.open)


def _given(mode: str, port: int, certs: Certs) -> dict[str, Any]:
    return {
        "b": "127.0.0.1:0", "s": f"127.0.0.1:{port}", "n": certs.name, "ca": certs.ca,
        "wss": mode == "wss", "preconnect": 8,
    }  # fmt: skip


@in_both_modes
async def test_draining_closes_what_waits_and_keeps_what_is_used(
    mode: str, certs: Certs, short_quiet: None
) -> None:
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs) as server,
        prepared(mode, port_of(server), certs) as client,
    ):
        async with await connect(port_of(client)) as application:
            await application.send(b"x")
            assert await application.exactly(1) == b"x"
            drained = asyncio.create_task(client.drain())
            await eventually(lambda: server.tunnels == 1)
            assert not len(client._upstream) and not drained.done()
            await application.send(b"y")
            assert await application.exactly(1) == b"y"
        await drained
        await eventually(lambda: empty(server))


@in_both_modes
async def test_new_certificates_retire_what_waits(mode: str, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs) as server,
        prepared(mode, port_of(server), certs) as client,
    ):
        before = set(client._upstream._ready)
        client.reload()
        await eventually(lambda: before.isdisjoint(client._upstream._ready))
        await eventually(lambda: full(client))
        context = client._connector.tls.context()
        for waiting in client._upstream._ready:
            assert waiting.lower.get_extra_info("ssl_object").context is context
        await check_works(port_of(client))
        assert client._upstream.used == 1


@pytest.mark.parametrize("mode", ["tls", "wss"])
async def test_a_server_that_refuses_us(mode: str, certs: Certs) -> None:
    """With TLS 1.3 that shows only after the client's handshake."""
    async with (
        listening() as there,
        server_at(mode, there.port, certs, **{"client-ca": certs.ca}) as server,
    ):
        with logged() as lines:
            async with client_of(mode, port_of(server), certs, preconnect=5) as client:
                await eventually(lambda: client._upstream._retry_timer)
                await eventually(lambda: not client._connector.connecting)
                await eventually(lambda: not len(client._upstream))
                refused = client.counters.handshake_failures[Cause.CERTIFICATE]
                assert 1 <= refused <= 2 * MAX_DIALS
        told = [line for line in lines if "the server wants a client certificate" in line]
        assert len(told) == 1
        assert told[0].startswith("INFO -preconnect: ")


async def test_as_a_plugin(certs: Certs) -> None:
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
        assert client._upstream.used == 1


async def test_the_metrics(certs: Certs) -> None:
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


async def test_the_application_sees_the_failure_of_the_one_it_took(certs: Certs) -> None:
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
