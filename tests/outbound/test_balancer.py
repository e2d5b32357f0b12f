"""Failover between upstreams: order, backoff and errors."""

from __future__ import annotations

import asyncio
import logging

import pytest

from mtt.errors import Cause, DestinationError, MttError, NetworkError, PeerError
from mtt.outbound import balancer
from mtt.outbound.balancer import FAILOVER_TIME, FIRST_BACKOFF, MAX_BACKOFF, Balancer
from mtt.outcome import Outcome
from tests.support.clock import Clock
from tests.support.tunnels import logged


class Fake:
    """An upstream that returns its name as the stream, or raises `error`."""

    def __init__(self, name: str, error: MttError | None = None) -> None:
        self.name = name
        self.error = error
        self.asked = self.started = 0

    def start(self) -> None:
        self.started += 1

    async def open(self) -> str:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return self.name


async def test_preferred_upstream_gets_all_streams() -> None:
    first, second = Fake("first"), Fake("second")
    among = Balancer([first, second])
    assert [await among.open(Fake.open) for _ in range(3)] == ["first"] * 3
    assert (first.started, second.started) == (3, 0)


async def test_backoff_of_failed_upstream_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, balancer)
    first, second = Fake("first", NetworkError("first: no")), Fake("second")
    among = Balancer([first, second])
    for _ in range(3):
        assert await among.open(Fake.open) == "second"
    assert first.asked == 1
    backoff, asked = FIRST_BACKOFF, 1
    while backoff < MAX_BACKOFF:
        clock.now += backoff - 1
        await among.open(Fake.open)
        assert first.asked == asked
        clock.now += 1
        await among.open(Fake.open)
        assert first.asked == asked + 1
        backoff, asked = min(2 * backoff, MAX_BACKOFF), asked + 1
    clock.now += MAX_BACKOFF
    await among.open(Fake.open)
    assert first.asked == asked + 1
    assert first.started == 0


async def test_recovered_upstream_is_preferred_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, balancer)
    first, second = Fake("first", NetworkError("first: no")), Fake("second")
    among = Balancer([first, second])
    with logged(logging.INFO) as lines:
        await among.open(Fake.open)
        first.error = None
        clock.now += FIRST_BACKOFF
        for _ in range(2):
            assert await among.open(Fake.open) == "first"
    assert lines == [
        "WARNING first: no; second is used instead",
        "INFO first can be used again",
    ]
    assert first.started == 2


async def test_one_stream_retries_and_others_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, balancer)
    first, second = Fake("first", NetworkError("first: no")), Fake("second")
    among = Balancer([first, second])
    await among.open(Fake.open)
    clock.now += FIRST_BACKOFF
    go_on = asyncio.Event()

    async def ask(upstream: Fake) -> str:
        if upstream is first:
            await go_on.wait()
        return await upstream.open()

    waiting = asyncio.create_task(among.open(ask))
    await asyncio.sleep(0)
    assert await among.open(ask) == "second"
    go_on.set()
    assert await waiting == "second"
    assert first.asked == 2


async def test_unreachable_destination_is_final() -> None:
    first = Fake("first", NetworkError("gone"))
    second = Fake("second", DestinationError(Outcome.CONNECTION_REFUSED))
    third = Fake("third")
    among = Balancer([first, second, third])
    with pytest.raises(DestinationError) as caught:
        await among.open(Fake.open)
    assert caught.value.outcome is Outcome.CONNECTION_REFUSED
    assert (second.started, third.asked) == (1, 0)
    assert not among._candidates[1].is_in_backoff


async def test_error_names_all_failed_upstreams() -> None:
    among = Balancer([
        Fake("first", PeerError("first: strange", cause=Cause.TLS)),
        Fake("second", NetworkError("gone")),
    ])  # fmt: skip
    for _ in range(2):  # all are asked, although all are in backoff
        with pytest.raises(NetworkError) as caught:
            await among.open(Fake.open)
        assert str(caught.value) == "first: strange; second: gone"
        assert caught.value.cause is Cause.TLS


async def test_error_of_single_upstream_keeps_its_class() -> None:
    with pytest.raises(PeerError, match=r"^first: strange$"):
        await Balancer([Fake("first", PeerError("strange"))]).open(Fake.open)


async def test_no_failover_after_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, balancer)
    first, second = Fake("first", NetworkError("gone")), Fake("second")

    async def ask(upstream: Fake) -> str:
        clock.now += FAILOVER_TIME
        return await upstream.open()

    among = Balancer([first, second])
    with pytest.raises(NetworkError, match=r"^first: gone$"):
        await among.open(ask)
    assert second.asked == 0
    assert await among.open(ask) == "second"
