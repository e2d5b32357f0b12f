"""Direct connections under rules: allowed addresses, outcomes and errors."""

from __future__ import annotations

import asyncio
import socket

import pytest

from mtt.errors import DestinationError, NetworkError
from mtt.net.resolve import Address, Resolver
from mtt.outbound import direct
from mtt.outbound.direct import DirectDialer
from mtt.outcome import Outcome
from tests.support.loopback import black_hole
from tests.support.tunnels import SOON, listening

HERE, DENIED = "127.0.0.1", "127.0.0.2"


class Names(Resolver):
    """Resolves "both.test" to a denied address and an allowed one, in this order."""

    def __init__(self) -> None:
        super().__init__()
        self.forgotten: list[str] = []

    async def resolve(self, host: str, port: int) -> list[Address]:
        if host == "none.test":
            raise NetworkError(f"cannot resolve {host}: no", outcome=Outcome.HOST_UNREACHABLE)
        hosts = {"both.test": [DENIED, HERE], "denied.test": [DENIED]}.get(host, [host])
        return [(socket.AF_INET, (each, port)) for each in hosts]

    def forget(self, host: str) -> None:
        self.forgotten.append(host)


def allows(_: str, host: str, port: int) -> bool:
    return host != DENIED


async def outcome_of(host: str, port: int) -> Outcome:
    with pytest.raises(DestinationError) as caught:
        await DirectDialer(Names(), allows).connect(host, port)
    return caught.value.outcome


async def test_connects_only_to_allowed_addresses() -> None:
    async with asyncio.timeout(SOON), listening() as there:
        dialer = DirectDialer(Names(), allows)
        for host in (HERE, "both.test"):
            far = await dialer.connect(host, there.port)
            assert far.get_extra_info("peername") == (HERE, there.port)
            far.abort()
            (await there.accept()).close()
        for host in (DENIED, "denied.test"):
            assert await outcome_of(host, there.port) is Outcome.NOT_ALLOWED
        assert there.count == 2


async def test_connects_to_this_machine_at_once(refused_port: int) -> None:
    async with asyncio.timeout(SOON), listening() as there:
        dialer = DirectDialer(Names(), allows)
        far = dialer.connect_at_once(HERE, there.port)
        assert far is not None
        assert far.get_extra_info("peername") == (HERE, there.port)
        far.abort()
        (await there.accept()).close()
        # `connect()` has to wait, or tells the reason.
        for host in (DENIED, "both.test", "127.0.0.1.test", "127.1", "::1%lo", "192.0.2.1"):
            assert dialer.connect_at_once(host, there.port) is None
        assert dialer.connect_at_once(HERE, refused_port) is None
        assert there.count == 1


async def test_outcome_of_failures(refused_port: int) -> None:
    assert await outcome_of("none.test", refused_port) is Outcome.HOST_UNREACHABLE
    assert await outcome_of(HERE, refused_port) is Outcome.CONNECTION_REFUSED
    assert await outcome_of("both.test", refused_port) is Outcome.CONNECTION_REFUSED


async def test_outcome_of_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "CONNECT_TIME", 0.05)
    with black_hole() as (_, port):
        assert await outcome_of(HERE, port) is Outcome.TIMED_OUT


async def test_unreachable_address_is_dropped_from_cache(refused_port: int) -> None:
    names = Names()
    with pytest.raises(DestinationError, match=rf"^both\.test:{refused_port}: cannot connect to "):
        await DirectDialer(names, allows).connect("both.test", refused_port)
    assert "both.test" in names.forgotten
