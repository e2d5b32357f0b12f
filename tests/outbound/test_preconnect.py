"""The pool of preconnected connections: number, age, network changes, early data."""

from __future__ import annotations

import errno

import pytest

from mtt.errors import NetworkError
from mtt.layers.parked import Parked
from mtt.outbound.preconnect import (
    MAX_AGE,
    MAX_DIALS,
    MAX_EARLY,
    MIN_LIFETIME,
    REFRESH_FRACTION,
    TIMEOUT_FRACTION,
)
from tests.outbound.preconnect_network import DOWN, Network
from tests.support.transports import turns


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
    await network.clock.passes(MAX_AGE * REFRESH_FRACTION[0] - 0.1)
    assert network.dials == 4
    network.allowed.clear()  # the dials take longer
    await network.clock.passes(MAX_AGE * (REFRESH_FRACTION[1] - REFRESH_FRACTION[0]) + 0.1)
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
    await network.clock.passes(MAX_AGE - 0.1)
    assert network.open == 3
    await network.clock.passes(0.2)
    assert network.open == len(network.pool) == 0
    await network.close()


async def test_refresh_times_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 20)
    await network.start()
    counts = []
    for _ in range(11):
        await network.clock.passes(MAX_AGE / 40)
        counts.append(network.dials)
    await network.clock.passes(10 * MAX_AGE)
    assert network.open == len(network.pool) == 20
    # Each is replaced once per REFRESH_FRACTION of MAX_AGE.
    assert 20 * (1 + 10 / REFRESH_FRACTION[1]) < network.dials < 20 * (1 + 11 / REFRESH_FRACTION[0])
    seconds = {round(waiting.heard_at) for waiting in network.pool._ready}
    assert len(seconds) > 5
    await network.close()


async def test_short_timeout_lowers_the_maximum_age(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, 1, timeout=10.0)
    await network.start()
    network.error = DOWN
    await network.clock.passes(10 * TIMEOUT_FRACTION - 0.1)
    assert network.open == 1
    await network.clock.passes(0.2)
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
        network.slept = 3600.0
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
    await network.clock.passes(MIN_LIFETIME)
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
