"""The pool of preconnected connections: size, age, ends and failures."""

from __future__ import annotations

import asyncio
import errno
import heapq
import itertools
import random
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from mtt.errors import NetworkError, PeerError, RefusedError
from mtt.layers.layer import Layer
from mtt.layers.parked import Parked
from mtt.outbound import preconnect, reuse
from mtt.outbound.preconnect import (
    FAILURE_MEMORY,
    FIRST_RETRY,
    MAX_AGE,
    MAX_DIALS,
    MAX_EARLY,
    MAX_RETRY,
    MIN_LIFETIME,
    REFRESH_FRACTION,
    TIMEOUT_FRACTION,
    PreconnectPool,
)
from tests.support.transports import FakeLayer, attach, tcp_sockets, turns
from tests.support.tunnels import RESET, logged

DOWN = NetworkError("example.com:443: connection refused")


class Timer:
    """A timer of `Clock`."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """An event loop whose time tests advance."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asleep = 0.0  # time that only one of the two clocks counts
        self._timers: list[tuple[float, int, Timer, Callable[..., object], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self.create_task = asyncio.get_running_loop().create_task

    def time(self) -> float:
        return self.now

    def boot_time(self) -> float:
        return self.now + self.asleep

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any) -> Timer:
        timer = Timer()
        entry = (self.now + delay, next(self._numbers), timer, callback, args)
        heapq.heappush(self._timers, entry)
        return timer

    async def advance(self, seconds: float) -> None:
        await turns()
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now, _, timer, callback, args = heapq.heappop(self._timers)
            if not timer.cancelled:
                callback(*args)
                await turns()
        self.now = until

    @property
    def pending(self) -> int:
        return sum(not entry[2].cancelled for entry in self._timers)


class Network:
    """What the pool dials: fake connections, made while `allowed` is set."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, size: int, *, timeout: float = 300.0
    ) -> None:
        self.clock = Clock()
        self.address = "192.0.2.1"
        loop = SimpleNamespace(get_running_loop=lambda: self.clock)
        monkeypatch.setattr(preconnect, "get_running_loop", loop.get_running_loop)
        monkeypatch.setattr(reuse, "asyncio", loop)
        monkeypatch.setattr(preconnect, "_now", self.clock.boot_time)
        monkeypatch.setattr(reuse, "slept_seconds", lambda: self.clock.asleep)
        monkeypatch.setattr(reuse, "source_address", lambda peer: self.address)
        self.made: list[FakeLayer] = []
        self.dials = self.dialling = self.most = 0
        self.allowed = asyncio.Event()
        self.allowed.set()
        self.error: Exception | None = None
        self.on_made: Callable[[FakeLayer], object] = lambda layer: None
        self.lost: list[Exception | None] = []
        self.pool = PreconnectPool(self._connect, size, timeout=timeout, on_lost=self.lost.append)

    async def _connect(self) -> asyncio.Transport:
        self.dials += 1
        self.dialling += 1
        self.most = max(self.most, self.dialling)
        try:
            await self.allowed.wait()
            await asyncio.sleep(0)
            if self.error is not None:
                raise self.error
        finally:
            self.dialling -= 1
        layer = FakeLayer(Parked())
        layer.protocol.connection_made(layer)
        self.made.append(layer)
        self.on_made(layer)
        return layer

    async def start(self) -> None:
        self.pool.start()
        await turns()

    async def take(self) -> FakeLayer:
        transport = await self.pool.open()
        assert isinstance(transport, FakeLayer)
        return transport

    @property
    def open(self) -> int:
        return sum(not layer.closing for layer in self.made)

    async def close(self) -> None:
        await self.pool.close()
        await turns()
        assert not len(self.pool) and not self.clock.pending and not self.dialling
        assert not self.pool._closing


@pytest.fixture(autouse=True)
def same_dice() -> None:
    random.seed(7)


async def test_pool_keeps_the_wanted_number_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 5)
    await network.start()
    assert (len(network.pool), network.dials, network.most) == (5, 5, MAX_DIALS)
    await network.close()
    assert all(layer.closing for layer in network.made)


async def test_taken_connection_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 2)
    await network.start()
    network.allowed.clear()
    taken = [await network.take(), await network.take()]
    assert taken == [network.made[1], network.made[0]]  # newest first
    assert (len(network.pool), network.pool.used) == (0, 2)
    network.allowed.set()
    await turns()
    assert (len(network.pool), network.dials) == (2, 4)
    await network.close()
    assert not any(layer.closing for layer in taken)


async def test_pool_of_size_zero_always_dials(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 0)
    await network.start()
    assert network.dials == 0
    await network.take()
    assert (network.dials, network.pool.used) == (1, 0)
    await network.close()


async def test_empty_pool_dials_and_raises_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 1)
    network.error = DOWN
    await network.start()
    with pytest.raises(NetworkError, match="refused"):
        await network.take()
    assert network.dials == 2
    await network.close()


# Age.


async def test_stale_connections_are_replaced_then_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 4)
    await network.start()
    first = list(network.made)
    await network.clock.advance(MAX_AGE * REFRESH_FRACTION[0] - 0.1)
    assert network.dials == 4
    network.allowed.clear()  # the dials take longer
    await network.clock.advance(MAX_AGE * (REFRESH_FRACTION[1] - REFRESH_FRACTION[0]) + 0.1)
    assert network.most == MAX_DIALS
    assert (len(network.pool), network.open) == (4, 4)  # until their replacements are there
    network.allowed.set()
    await turns()
    assert all(layer.closing for layer in first)
    assert not any(layer.aborted for layer in first)  # an orderly end
    assert (len(network.pool), network.open, network.dials) == (4, 4, 8)
    await network.close()


async def test_maximum_age_holds_without_a_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 3)
    await network.start()
    network.error = DOWN
    await network.clock.advance(MAX_AGE - 0.1)
    assert network.open == 3
    await network.clock.advance(0.2)
    assert network.open == len(network.pool) == 0
    await network.close()


async def test_refresh_times_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 20)
    await network.start()
    counts = []
    for _ in range(11):
        await network.clock.advance(MAX_AGE / 40)
        counts.append(network.dials)
    await network.clock.advance(10 * MAX_AGE)
    assert network.open == len(network.pool) == 20
    # Each is replaced once per REFRESH_FRACTION of MAX_AGE.
    assert 20 * (1 + 10 / REFRESH_FRACTION[1]) < network.dials < 20 * (1 + 11 / REFRESH_FRACTION[0])
    seconds = {round(waiting.since) for waiting in network.pool._ready}
    assert len(seconds) > 5
    await network.close()


async def test_short_timeout_lowers_the_maximum_age(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 1, timeout=10.0)
    await network.start()
    network.error = DOWN
    await network.clock.advance(10 * TIMEOUT_FRACTION - 0.1)
    assert network.open == 1
    await network.clock.advance(0.2)
    assert network.open == 0
    await network.close()


@pytest.mark.parametrize("how", ["sleep", "network"])
async def test_not_used_after_sleep_or_network_change(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(monkeypatch, 3)
    await network.start()
    old = list(network.made)
    if how == "sleep":
        network.clock.asleep = 3600.0
    else:
        network.address = "198.51.100.1"
    fresh = await network.take()
    assert fresh not in old
    assert all(layer.aborted for layer in old)
    await turns()
    assert len(network.pool) == 3
    assert await network.take() not in old
    assert network.pool.used == 1
    await network.close()


@pytest.mark.parametrize("error", [errno.ETIMEDOUT, errno.ECONNRESET])
async def test_siblings_of_a_dead_connection_are_not_used(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They cannot be verified. A reset does not count: it may come from the destination."""
    network = Network(monkeypatch, 3)
    await network.start()
    old = list(network.made)
    await network.clock.advance(MIN_LIFETIME)
    network.made[0].lose(OSError(error, ""))
    await turns()
    for _ in range(2):
        await network.take()  # the replacement, which was made afterwards, is one of them
    taken = await network.take()
    assert (taken in old) is (error == errno.ECONNRESET)
    await network.close()


async def test_renew_replaces_ready_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 3)
    await network.start()
    network.allowed.clear()
    taken = await network.take()
    await turns()
    assert network.dialling == 1  # with the old certificates
    network.pool.renew()
    network.allowed.set()
    await turns()
    # Two ready connections and the pending one are gone.
    assert (network.dials, network.open, len(network.pool)) == (7, 4, 3)
    assert not taken.closing
    assert all(waiting.lower in network.made[3:] for waiting in network.pool._ready)
    await network.close()


# Early data.


async def test_early_data_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 1)
    network.on_made = lambda layer: layer.protocol.data_received(b"220 ")
    await network.start()
    layer = network.made[0]
    assert layer.reading
    layer.protocol.data_received(b"ready\r\n")
    parked = (await network.take()).protocol
    assert isinstance(parked, Parked)
    assert parked.early == b"220 ready\r\n"
    parked.data_received(b"more")
    assert parked.early == b"220 ready\r\nmore"
    assert not parked.eof and parked.eof_received() and parked.eof
    await network.close()


async def test_early_data_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 1)
    await network.start()
    layer = network.made[0]
    pieces = 0
    while layer.reading:
        layer.protocol.data_received(bytes(1000))
        pieces += 1
    assert pieces == -(-MAX_EARLY // 1000)
    taken = await network.take()
    assert taken is layer
    assert len(taken.protocol.early) == 1000 * pieces
    await network.close()


# Ends.


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_ended_connection_is_replaced_at_once(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(monkeypatch, 2)
    await network.start()
    await network.clock.advance(MIN_LIFETIME)
    layer = network.made[0]
    if how == "eof":
        assert not layer.protocol.eof_received()
        assert len(network.pool) == 1
        layer.close()  # as eof_received() returned False
    else:
        layer.lose(ConnectionResetError())
    await turns()
    assert (len(network.pool), network.dials) == (2, 3)
    assert len(network.lost) == 1
    assert not network.pool._closing
    assert layer not in {await network.take() for _ in range(2)}
    await network.close()


async def test_connection_that_ends_while_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(layer: FakeLayer) -> None:
        layer.closing = True
        layer.protocol.connection_lost(PeerError("no"))

    def ended(layer: FakeLayer) -> None:
        layer.protocol.eof_received()

    for what in (dead, ended):
        network = Network(monkeypatch, 1)
        network.on_made = what
        with logged() as lines:
            await network.start()
        assert (len(network.pool), network.open, network.dials) == (0, 0, 1)
        assert len(network.lost) == len(lines) == 1
        await network.close()


async def test_log_has_the_reason_of_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 1)
    await network.start()
    refused = RefusedError("give it one with -cert and -key")
    with logged() as lines:
        network.made[0].lose(refused)
        await turns()
    assert network.lost == [refused]
    assert lines == [
        "INFO -preconnect: give it one with -cert and -key; trying again from time to time"
    ]
    await network.close()


async def test_end_of_a_taken_connection_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 1)
    await network.start()
    layer = await network.take()
    await turns()
    layer.lose(ConnectionResetError())
    await turns()
    assert isinstance(layer.protocol.error, ConnectionResetError)
    assert (network.dials, len(network.pool), network.lost) == (2, 1, [])
    await network.close()


class _Bare(Layer):
    """A layer that changes nothing."""

    def data_received(self, data: Any) -> None:
        self.upper.data_received(data)

    def eof_received(self) -> bool:
        return bool(self.upper.eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        self.upper.connection_lost(exc)

    def close(self) -> None:
        self.lower.close()

    def abort(self) -> None:
        self.lower.abort()


@pytest.mark.parametrize("how", ["end", "reset", "data"])
async def test_unread_socket_events_are_checked_before_use(how: str) -> None:
    """The pool polls the socket before it hands out a connection."""
    others = []

    async def connect() -> asyncio.Transport:
        near, far = tcp_sockets()
        others.append(far)
        layer = _Bare(Parked())
        attach(near, layer)
        layer.upper.connection_made(layer)
        return layer

    pool = PreconnectPool(connect, 1, timeout=300.0)
    pool.start()
    while not len(pool):
        await asyncio.sleep(0)
    waiting = next(iter(pool._ready))
    if how == "data":
        others[0].send(b"220 ready\r\n")
    else:
        if how == "reset":
            others[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        others[0].close()
    # No turn of the loop since then, or the loop would have seen it.
    transport = await pool.open()
    assert transport is not waiting.lower
    while how == "data" and not waiting.early:
        await asyncio.sleep(0)
    transport.abort()
    await pool.close()
    for sock in others:
        sock.close()


# Failures.


async def test_failing_dials_back_off_and_log_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 10)
    network.error = DOWN
    with logged() as lines:
        await network.start()
        assert network.dials == MAX_DIALS
        await network.clock.advance(FIRST_RETRY)
        assert network.dials == 2 * MAX_DIALS
        await network.clock.advance(3600.0)
        assert 3600 / MAX_RETRY < network.dials / MAX_DIALS < 1.5 * 3600 / MAX_RETRY + 8
    assert lines == [f"INFO -preconnect: {DOWN}; trying again from time to time"]
    network.error = None
    await network.clock.advance(MAX_RETRY)
    assert len(network.pool) == 10
    await network.close()


async def test_backoff_restarts_after_a_time_without_failures(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(monkeypatch, 2)
    network.error = DOWN
    with logged() as lines:
        await network.start()
        await network.clock.advance(300.0)
        network.error = None
        await network.clock.advance(FAILURE_MEMORY + MAX_RETRY)
        assert len(network.pool) == 2
        network.error = DOWN
        await network.clock.advance(MAX_AGE)
    assert len(lines) == 2
    # The first attempts follow each other quickly again.
    assert network.clock.now - network.pool._failed_at < MAX_RETRY / 2
    assert network.pool._retry_delay < MAX_RETRY
    await network.close()


async def test_successful_open_ends_the_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 3)
    network.error = DOWN
    await network.start()
    await network.clock.advance(300.0)
    network.error = None
    await network.take()
    await turns()
    assert len(network.pool) == 3
    await network.close()


async def test_connections_ended_at_once_cause_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 10)
    network.on_made = lambda layer: asyncio.get_running_loop().call_soon(layer.lose, None)
    with logged() as lines:
        await network.start()
        await network.clock.advance(3600.0)
        assert network.dials < 4 * MAX_DIALS * 3600 / MAX_RETRY
        before = network.dials
        await network.take()  # says nothing about ready connections
        await turns()
        assert network.dials == before + 1
    assert len(lines) == 1
    network.made[-1].close()
    await network.close()


async def test_simultaneous_ends_count_as_one_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 10)
    await network.start()
    with logged() as lines:
        for layer in list(network.made):
            layer.lose(ConnectionResetError())
        await turns()
    assert len(lines) == 1
    assert len(network.pool) == 0
    await network.clock.advance(FIRST_RETRY)
    assert len(network.pool) == 10
    await network.close()


async def test_internal_error_is_logged_and_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 1)
    network.error = ZeroDivisionError("oh")
    with logged() as lines:
        await network.start()
        await network.clock.advance(FIRST_RETRY)
    assert sum("internal error" in line for line in lines) == 2
    network.error = None
    await network.clock.advance(2 * FIRST_RETRY)
    assert len(network.pool) == 1
    await network.close()


# Stopping.


async def test_stop_closes_ready_connections_and_dials(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 3)
    await network.start()
    network.allowed.clear()
    taken = await network.take()
    await turns()
    network.pool.stop()
    await turns()
    assert (len(network.pool), network.dialling) == (0, 0)
    assert not any(layer.aborted for layer in network.made)
    assert [layer for layer in network.made if not layer.closing] == [taken]
    network.allowed.set()
    await network.take()  # open() keeps working
    assert network.dials == 5
    await network.close()
    assert network.dials == 5


async def test_close_does_not_wait_for_lingering_connections(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(monkeypatch, 1)
    await network.start()
    layer = network.made[0]
    monkeypatch.setattr(layer, "close", lambda: None)
    network.pool.stop()
    await turns()
    assert not layer.closing
    await network.close()
    assert layer.aborted
