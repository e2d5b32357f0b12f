"""Preconnected connections that end or cannot be made; stopping."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mtt.errors import PeerError, RefusedError
from mtt.layers import linger
from mtt.layers.layer import Layer
from mtt.layers.parked import Parked
from mtt.outbound.preconnect import (
    FAILURE_MEMORY,
    FIRST_RETRY,
    MAX_AGE,
    MAX_DIALS,
    MAX_RETRY,
    MIN_LIFETIME,
    PreconnectPool,
)
from tests.outbound.preconnect_network import DOWN, Network
from tests.support.transports import FakeLayer, attach, tcp_sockets, turns
from tests.support.tunnels import logged


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_ended_connection_is_replaced_at_once(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(monkeypatch, 2)
    await network.start()
    await network.clock.passes(MIN_LIFETIME)
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
            linger.reset_on_close(others[0])
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
        await network.clock.passes(FIRST_RETRY)
        assert network.dials == 2 * MAX_DIALS
        await network.clock.passes(3600.0)
        assert 3600 / MAX_RETRY < network.dials / MAX_DIALS < 1.5 * 3600 / MAX_RETRY + 8
    assert lines == [f"INFO -preconnect: {DOWN}; trying again from time to time"]
    network.error = None
    await network.clock.passes(MAX_RETRY)
    assert len(network.pool) == 10
    await network.close()


async def test_backoff_restarts_after_a_time_without_failures(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Network(monkeypatch, 2)
    network.error = DOWN
    with logged() as lines:
        await network.start()
        await network.clock.passes(300.0)
        network.error = None
        await network.clock.passes(FAILURE_MEMORY + MAX_RETRY)
        assert len(network.pool) == 2
        network.error = DOWN
        await network.clock.passes(MAX_AGE)
    assert len(lines) == 2
    # The first attempts follow each other quickly again.
    assert network.clock.now - network.pool._failed_at < MAX_RETRY / 2
    assert network.pool._retry_delay < MAX_RETRY
    await network.close()


async def test_successful_open_ends_the_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 3)
    network.error = DOWN
    await network.start()
    await network.clock.passes(300.0)
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
        await network.clock.passes(3600.0)
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
    await network.clock.passes(FIRST_RETRY)
    assert len(network.pool) == 10
    await network.close()


async def test_internal_error_is_logged_and_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 1)
    network.error = ZeroDivisionError("oh")
    with logged() as lines:
        await network.start()
        await network.clock.passes(FIRST_RETRY)
    assert sum("internal error" in line for line in lines) == 2
    network.error = None
    await network.clock.passes(2 * FIRST_RETRY)
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
