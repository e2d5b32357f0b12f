"""A few seconds of each soak, so that none of them rusts; and that they can fail."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from soak import (
    churn,
    dead,
    faults,
    fuzz,
    fuzz_gateway,
    fuzz_proxy,
    gateway,
    line,
    mutation,
    parsers,
    udp,
    usage,
)
from soak.__main__ import main
from soak.programs import CONSTANTS, IDLE, MODES, Pair, Programs
from soak.report import Broken
from soak.talk import Destination, Talk, apply
from soak.usage import Gauge
from tests.support import faults as network
from tests.support.certs import Certs
from tests.support.faults import Fault, FaultProxy, Plan
from tests.support.tunnels import (
    Tcp,
    client_of,
    connect,
    listening,
    port_of,
    server_at,
    serving,
)

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
SEED = 5


@pytest.fixture
def programs(certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Programs]:
    # Idle sessions of AnyTLS last for some seconds at least.
    monkeypatch.setitem(IDLE, "anytls", ("-dr",))
    with Programs(tmp_path, certs) as running:
        yield running


@contextlib.asynccontextmanager
async def through_faults(
    mode: str, destination: int, certs: Certs, plan: Plan
) -> AsyncIterator[tuple[int, FaultProxy]]:
    """Both ends of ours in this event loop with a faulty network between them."""
    async with (
        server_at(mode, destination, certs) as server,
        FaultProxy(port_of(server), plan) as proxy,
        client_of(mode, proxy.port, certs) as client,
    ):
        yield port_of(client), proxy


def first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


# A little of each.


async def test_faults(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "HALF_OPEN_TIME", (0.2, 0.5))
    monkeypatch.setattr(network, "STALL_TIME", 0.2)
    await faults.soak(programs, ("tls", "wss+mux", "anytls"), 40, SEED)
    await programs.stop()


async def test_churn(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    # So few connections say nothing about a share; a few of everything are allocated anew.
    monkeypatch.setattr(churn, "GROWTH", 0.2)
    await churn.soak(programs, ("wss", "mux", "anytls"), 400, SEED)
    await programs.stop()


async def test_fuzz(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fuzz, fuzz_proxy):
        monkeypatch.setattr(module, "HONEST_INTERVAL", 0.3)
    await fuzz.soak(programs, ("wss+mux", "anytls"), 1.0, SEED)
    await programs.stop()


async def test_gateway(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "HALF_OPEN_TIME", (0.2, 0.5))
    monkeypatch.setattr(gateway, "UDP_TIMEOUT", 1)
    await gateway.soak(programs, 100, SEED)
    await programs.stop()


@pytest.mark.deadline(60)
async def test_fuzz_of_a_gateway(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONSTANTS, "anyproxy.forwarded.HOLD_TIME", 1.0)
    monkeypatch.setattr(fuzz_gateway, "HONEST_INTERVAL", 0.3)
    monkeypatch.setattr(fuzz_gateway, "REPLICAS", 4)
    await fuzz_gateway.soak(programs, 1.0, SEED)
    await programs.stop()


async def test_line(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "a lossy line"
    case = line.CASES[name]._replace(size=256 * 1024)
    monkeypatch.setattr(line, "CASES", {name: case})
    await line.soak(programs, ("tls", "mux"), SEED)
    await programs.stop()


@pytest.mark.parametrize("mode", ["tls", "wss+mux"])
async def test_datagrams_in_one_process(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "CONCURRENT", 3)
    async with (
        udp.UdpEcho() as there,
        server_at(mode, there, certs, udp=True) as server,
        FaultProxy(port_of(server), lambda _: Fault("cut", 20_000)) as proxy,
        client_of(mode, proxy.port, certs, udp=True) as client,
    ):
        assert await udp._rounds(port_of(client), 1, random.Random(SEED))
        assert proxy.struck["cut"]


@pytest.mark.parametrize("mode", MODES)
async def test_every_fault_in_one_process(mode: str, certs: Certs) -> None:
    """Client and server in this event loop, where every task and descriptor left over shows."""
    kinds = ("none", "tiny", "delay", "rate", "cut", "reset", "corrupt")

    def plan(number: int) -> Fault:
        return Fault(kinds[number % len(kinds)], 3000 + 500 * number, upstream=number % 2 == 0)

    async with (
        Destination() as there,
        through_faults(mode, there.port, certs, plan) as (
            port,
            proxy,
        ),
    ):
        outcomes = await faults.run_talks(port, faults.talks(SEED, 28))
        there.look()
        assert outcomes["failed"] <= proxy.harm * faults.STREAMS.get(mode, 1)
        assert outcomes["complete"] > 7


# They can fail.


async def test_a_peer_that_was_killed_may_end_early() -> None:
    async with Destination() as destination:
        for is_killed in (True, False):
            async with await connect(destination.port) as application:
                if is_killed:
                    destination.killed.add(application.sock.getsockname()[1])
                await application.send(b"SOAK")
                await application.finish()
                await application.rest()
            assert len(destination.broken) == (not is_killed)


async def test_a_wrong_byte_and_a_clean_end_that_comes_too_early() -> None:
    async def corrupt(connection: Tcp) -> None:
        await connection.rest()
        await connection.send(bytes(1000))

    async def truncate(connection: Tcp) -> None:
        await connection.rest()

    for handle, words in ((corrupt, "wrong bytes at 0"), (truncate, "clean end after 0 of 1000")):
        async with serving(handle) as there:
            with pytest.raises(Broken, match=words):
                await apply(there.port, Talk(1, 0, 1000))
    async with Destination() as destination, await connect(destination.port) as application:
        await application.send(b"SOAK")
        await application.finish()
        with pytest.raises(Broken, match="within the header"):
            while True:
                destination.look()
                await asyncio.sleep(0.01)


async def test_an_error_is_a_failure_and_not_a_broken_promise() -> None:
    async def reset(connection: Tcp) -> None:
        await connection.read()
        connection.reset()

    async with serving(reset) as there:
        assert await apply(there.port, Talk(1, 10, 1000)) is None


async def test_what_is_left_behind_is_found(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "SETTLE_TIME", 0.5)
    async with listening() as there:
        server = await programs.server("tls", there.port)
        pair = Pair("tls", await programs.client("tls", server.port), server)
        gauge = Gauge(pair)
        await gauge.begin()
        async with await connect(pair.client.port):
            await there.accept()
            with pytest.raises(Broken, match="descriptors"):
                await gauge.compare()


async def test_a_program_that_ends_or_complains_is_found(programs: Programs) -> None:
    server = await programs.server("tls", 9)
    server.check()
    with server._log.open("a") as log:
        log.write("Traceback (most recent call last):\n")
    with pytest.raises(Broken, match="Traceback"):
        server.check()
    server.kill()
    with pytest.raises(Broken, match="ended with -9"):
        server.check()


async def test_an_unexpected_error_of_a_parser_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def feed(data: bytes) -> None:
        if len(data) > 5:
            raise IndexError("list index out of range")

    broken = mutation.Parser(feed, (b"0123456789",), (ValueError,))
    monkeypatch.setitem(parsers.PARSERS, "HTTP request", broken)
    with pytest.raises(Broken, match="HTTP request raised IndexError"):
        await fuzz.fuzz_parsers(5.0, SEED)


def test_mutations_are_the_same_for_the_same_seed() -> None:
    one, other = ([mutation.mutated(random.Random(3), b"sample") for _ in range(50)] for _ in "12")
    assert one == other


async def test_a_network_that_stays_away_is_found(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead, "NOTICE_TIME", 0.5)  # too short to notice
    with pytest.raises(ExceptionGroup) as raised:
        await dead.soak(programs, ("wss",))
    assert "was not told within 0.5 s" in str(first(raised.value))


def test_command_reports_what_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def soak(*_: object) -> None:
        raise ExceptionGroup("", [Broken("the promise")])

    monkeypatch.setattr(faults, "soak", soak)
    assert main(["faults", "--seed", "7"]) == 1
    assert "BROKEN: the promise (--seed 7)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["nonsense"])
