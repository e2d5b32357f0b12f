"""The relay: the idle timeout."""

from __future__ import annotations

import pytest

from mtt.tunnels import relay as module
from tests.support.clock import Clock
from tests.tunnels.relays import Tunnel


@pytest.mark.parametrize("way", ["up", "down"])
async def test_one_way_transfer_is_not_idle(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(timeout=80)
    side = tunnel.near if way == "up" else tunnel.far
    for _ in range(10):
        await clock.passes(32)
        side.protocol.data_received(b".")
    assert not tunnel.ending
    last = clock.now
    await clock.until(lambda: tunnel.ending)
    assert 80 <= clock.now - last <= 80 * (1 + 1 / module.IDLE_CHECKS)
    assert tunnel.relay.reason == "idle for 80 s"
    assert tunnel.relay.error is None  # which is routine
    assert tunnel.near.aborted  # an answer that stopped half-way must not look complete
    assert tunnel.far.aborted
    await tunnel.finish()


async def test_idle_timeout_after_half_close_resets_both(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(timeout=80)
    tunnel.near.protocol.eof_received()
    await clock.until(lambda: tunnel.ending)
    assert tunnel.relay.reason == "idle for 80 s"
    assert tunnel.near.aborted  # a reply that stopped half-way must not look complete
    assert tunnel.far.aborted
    await tunnel.finish()


@pytest.mark.parametrize("size", [1, 1000])
async def test_equal_traffic_both_ways_is_not_idle(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(timeout=80)
    for _ in range(10):
        await clock.passes(32)
        # Between two checks, as an echo does.
        tunnel.near.protocol.data_received(bytes(size))
        tunnel.far.protocol.data_received(bytes(size))
    assert not tunnel.ending
    await clock.until(lambda: tunnel.ending)
    assert tunnel.relay.reason == "idle for 80 s"
    await tunnel.finish()


@pytest.mark.parametrize("side", ["near", "far"])
async def test_draining_while_receiving_as_much_is_not_idle(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shrinking buffer on one side counts as progress, whatever the other side does."""
    clock = Clock(monkeypatch)
    tunnel = Tunnel(timeout=80)
    transport = getattr(tunnel, side)
    for left in range(10, 0, -1):
        transport.buffered = left * 1000
        await clock.passes(32)
    assert not tunnel.ending
    tunnel.relay.abort("enough")
    await tunnel.finish()


async def test_reader_draining_buffers_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(timeout=80)
    for left in range(10, 0, -1):
        tunnel.near.buffered = left * 1000
        await clock.passes(32)
    assert not tunnel.ending
    await clock.until(lambda: tunnel.ending)
    assert tunnel.relay.reason == "idle for 80 s with undelivered data"
    assert tunnel.near.aborted
    assert tunnel.far.aborted
    await tunnel.finish()
