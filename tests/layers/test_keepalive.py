"""Signs of life, and the look for those of the peer."""

from __future__ import annotations

import gc
import itertools
import weakref

import pytest

from mtt.layers import keepalive
from mtt.layers.keepalive import CHECK_INTERVAL, DEAD_TIME, INTERVAL, Keepalive
from tests.support.clock import Clock


class Session:
    """Sends signs of life, and hears of a dead peer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sent: list[float] = []
        self.heard_at: float | None = clock.now
        self.dead_at: float | None = None
        self.keepalive: Keepalive | None = None

    def keep_alive(self) -> None:
        self.sent.append(self.clock.now)

    def silent_since(self) -> float | None:
        return self.heard_at

    def peer_is_dead(self) -> None:
        self.dead_at = self.clock.now
        assert self.keepalive is not None
        self.keepalive.stop()


async def test_interval_is_drawn_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    session = Session(clock)
    kept = Keepalive(session)
    start = clock.now
    await clock.passes(20 * INTERVAL[1])
    times = [start, *session.sent]
    gaps = {after - before for before, after in itertools.pairwise(times)}
    assert len(gaps) == len(session.sent) >= 20
    assert all(INTERVAL[0] - 1e-6 <= gap <= INTERVAL[1] + 1e-6 for gap in gaps)
    kept.stop()


async def test_silent_peer_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    session = Session(clock)
    session.keepalive = Keepalive(session, session)
    await clock.passes(50)
    session.heard_at = heard = clock.now
    await clock.until(lambda: session.dead_at)
    assert session.dead_at is not None
    assert DEAD_TIME <= session.dead_at - heard <= DEAD_TIME + CHECK_INTERVAL
    sent = len(session.sent)
    await clock.passes(1000)
    assert len(session.sent) == sent


async def test_peer_may_be_silent_while_it_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    session = Session(clock)
    session.heard_at = None
    session.keepalive = Keepalive(session, session)
    await clock.passes(3 * DEAD_TIME)
    assert session.dead_at is None
    session.keepalive.stop()


async def test_stop_while_a_sign_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection may turn out to be lost by that."""
    clock = Clock(monkeypatch)
    session = Session(clock)
    kept = Keepalive(session)
    session.keep_alive = kept.stop  # type: ignore[method-assign]
    await clock.passes(10 * INTERVAL[1])
    assert not [timer for _, _, timer in clock._timers if not timer.cancelled()]


async def test_stop_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a timer, nor a cycle that only the garbage collector breaks."""
    monkeypatch.setattr(keepalive, "INTERVAL", (1000.0, 1000.0))
    clock = Clock(monkeypatch)
    session = Session(clock)
    session.keepalive = Keepalive(session, session)
    gc.disable()
    try:
        session.keepalive.stop()
        assert all(timer.cancelled() for _, _, timer in clock._timers)
        clock._timers.clear()
        gone = weakref.ref(session)
        del session
        assert gone() is None
    finally:
        gc.enable()
