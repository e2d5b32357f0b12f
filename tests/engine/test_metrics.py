"""The numbers of both ends while tunnels come and go."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from mtt.client import Client
from mtt.errors import StartError
from mtt.server import Server
from tests.engine.applications import lost
from tests.engine.scraping import METRICS, address, until
from tests.support.certs import Certs
from tests.support.metrics import check_with_promtool, failures, get, parse, scrape
from tests.support.processes import Processes, run
from tests.support.programs import require_package, require_program
from tests.support.tunnels import (
    SESSION_MODES,
    Tcp,
    both_ends,
    check_works,
    client_of,
    connect,
    echo,
    eventually,
    in_every_mode,
    listening,
    logged,
    port_of,
    server_at,
    serving,
)

UP, DOWN = (f'transferred_bytes_total{{direction="{way}"}}' for way in ("up", "down"))


# Tunnels.


@in_every_mode
async def test_tunnels_are_counted_to_the_byte(mode: str, certs: Certs, short_quiet: None) -> None:
    count = 12

    async def answer(connection: Tcp) -> None:
        while data := await connection.read():
            await connection.send(data * 2)

    async def one(port: int, size: int) -> None:
        async with await connect(port) as application:
            data = bytes(size)
            await asyncio.gather(application.send(data), application.exactly(2 * size))

    async with (
        serving(answer) as there,
        both_ends(mode, there.port, certs, **METRICS) as (server, client),
    ):
        await asyncio.gather(*(one(port_of(client), 1000 * n) for n in range(1, count + 1)))
        total = 1000 * count * (count + 1) // 2
        for service in (client, server):
            samples = await until(service, lambda samples: not samples["tunnels"])
            assert (samples[UP], samples[DOWN]) == (total, 2 * total)
            assert samples["tunnels_opened_total"] == count
            sessions = samples["sessions_opened_total"]
            if mode == "anytls":
                assert samples["streams_opened_total"] == count
                assert 1 <= sessions <= count  # a later stream may find one that is idle again
                assert samples["streams"] == 0
            elif "mux" in mode:
                assert samples["streams_opened_total"] == count
                assert 3 <= sessions <= count  # four streams in each
                assert samples["streams"] == 0
            else:
                assert (samples["streams_opened_total"], sessions) == (0, 0)
            accepted = count if service is client or mode not in SESSION_MODES else sessions
            assert samples["connections_total"] == accepted
            assert samples["handshakes"] == samples["connections_refused_total"] == 0
            assert samples["dial_failures_total"] == samples["session_failures_total"] == 0
            assert not failures(samples)


@in_every_mode
async def test_open_tunnels_are_in_the_numbers(mode: str, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        both_ends(mode, there.port, certs, **METRICS) as (server, client),
        await connect(port_of(client)) as application,
    ):
        await application.send(bytes(777))
        await application.exactly(777)
        for service in (client, server):
            samples = await scrape(address(service))
            assert (samples[UP], samples[DOWN], samples["tunnels"]) == (777, 777, 1)
            assert samples["sessions"] == samples["streams"] == (mode in SESSION_MODES)
            assert samples["event_loop_lag_max_seconds"] < 5


@in_every_mode
async def test_scraping_under_load(mode: str, certs: Certs, short_quiet: None) -> None:
    """Every page is in order, and no counter ever falls."""
    async with (
        serving(echo) as there,
        both_ends(mode, there.port, certs, **METRICS) as (server, client),
    ):

        async def load() -> None:
            for _ in range(5):
                await check_works(port_of(client), bytes(100_000))

        async def watch(service: Client | Server) -> int:
            before: dict[str, float] = {}
            scrapes = 0
            while not loads.done():
                samples = await scrape(address(service))
                for name, value in before.items():
                    assert "_total" not in name or samples[name] >= value, name
                before = samples
                scrapes += 1
            return scrapes

        loads = asyncio.gather(*(load() for _ in range(8)))
        scrapes = await asyncio.gather(watch(client), watch(server))
        await loads
        assert min(scrapes) > 3
        for service in (client, server):
            samples = await until(service, lambda samples: not samples["tunnels"])
            assert (samples[UP], samples["tunnels_opened_total"]) == (4_000_000, 40)
            check_with_promtool(await get(address(service)))


REFUSED = ("connections_total", "connections_refused_total", "tunnels_refused_total")


@in_every_mode
async def test_refusals_by_max_conns_are_counted(mode: str, certs: Certs) -> None:
    async with (
        listening() as there,
        server_at(mode, there.port, certs) as server,
        client_of(mode, port_of(server), certs, **METRICS, **{"max-conns": 1}) as client,
        await connect(port_of(client)),
    ):
        await eventually(lambda: client.open_tunnels.open)
        for _ in range(3):
            await lost(port_of(client))
        samples = await scrape(address(client))
        assert [samples[name] for name in REFUSED] == [1, 3, 0]


@in_every_mode
async def test_every_connection_is_accepted_or_refused(mode: str, certs: Certs) -> None:
    """At a full server: those that were let in and then got no tunnel are not counted twice."""
    # The session counts as well. A second one would be refused as a connection.
    limit = {"max-conns": 3 if "mux" in mode else 2}
    size = 4
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs, **METRICS, **limit) as server,
        client_of(mode, port_of(server), certs, **{"mux-max-stream": 8} if "mux" in mode else {})
        as client,
        contextlib.AsyncExitStack() as stack,
    ):
        if "mux" in mode:
            await check_works(port_of(client))  # the session, in which they all are from now on
        applications = [
            await stack.enter_async_context(await connect(port_of(client))) for _ in range(size)
        ]
        for application in applications:
            with contextlib.suppress(ConnectionError):
                await application.send(b"x")
        samples = await until(
            server,
            lambda samples: samples["tunnels"] == 2
            and samples["connections_refused_total"] + samples["tunnels_refused_total"] == 2,
        )
        # All came at once: one let in while the others had no tunnels yet was refused then.
        came = samples["connections_total"] + samples["connections_refused_total"]
        assert came == (1 if "mux" in mode else size)
        opened = 3 if "mux" in mode else 2
        assert samples["tunnels_opened_total"] == opened
        if "mux" in mode:
            assert [samples[name] for name in REFUSED] == [1, 0, 2]
        else:
            assert samples["connections_total"] == opened + samples["tunnels_refused_total"]


# The options.


async def test_without_the_option_there_are_no_metrics(certs: Certs) -> None:
    async with listening() as there, server_at("tls", there.port, certs) as server:
        assert not server.metrics_addresses
        assert not server.lag.lines()


async def test_unix_socket_is_removed_with_the_service(certs: Certs, tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    with logged() as lines:
        async with server_at("tls", 1, certs, metrics=f"unix:{path}") as server:
            assert (await scrape(str(path)))["tunnels"] == 0
            server.cleanup()
            assert not path.exists()
    assert f"INFO metrics on {path}" in lines


@pytest.mark.parametrize("which", ["client", "server"])
async def test_a_port_that_is_taken_stops_the_start(which: str, certs: Certs) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = {"metrics": str(taken.getsockname()[1])}
        make = client_of if which == "client" else server_at
        with pytest.raises(StartError, match="already in use"):
            async with make("tls", 1, certs, **given):
                pass


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("name", ["mtt-client", "mtt-server"])
def test_programs_serve_metrics(name: str, loop: str) -> None:
    if loop == "uvloop":
        require_package("uvloop")
    curl = require_program("curl")
    other = "-d" if name == "mtt-server" else "-s"
    with Processes() as processes:
        process = processes.command(
            name, "-b", "127.0.0.1:0", other, "127.0.0.1:9", "-metrics", ":0", "-loop", loop
        )
        url = f"http://{process.expect(r'metrics on (127.0.0.1:[0-9]+)')[1]}"
        assert run(curl, "-sSf", f"{url}/healthz") == b"ok\n"
        page = run(curl, "-sSf", f"{url}/metrics")
        check_with_promtool(page)
        assert parse(page.decode())["mtt_tunnels"] == 0
        assert process.stop() == 0
