"""Liveness checks before reuse: sleep, network changes, silence and dead siblings."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from mtt.errors import Cause, NetworkError, PeerError
from mtt.layers import mux
from mtt.layers.smux import SmuxSession
from mtt.outbound import reuse
from mtt.outbound.reuse import ROUTE_TIME, SLEEP_TIME, UNANSWERED_TIME, ReuseGuard, is_abnormal_end
from tests.support.clock import Clock
from tests.support.faults import drop_packets, take_packets
from tests.support.transports import FakeTransport, Recorder, attach, tcp_sockets, turns
from tests.support.tunnels import eventually

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="TCP_INFO of Linux")


class World:
    """A fake network and a fake clock with sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept = 0.0
        self.source: str | None = "192.0.2.1"
        self.looks = 0
        monkeypatch.setattr(reuse, "asyncio", SimpleNamespace(get_running_loop=lambda: self))
        monkeypatch.setattr(reuse, "slept_seconds", lambda: self.slept)
        monkeypatch.setattr(reuse, "source_address", self._source_address)

    def time(self) -> float:
        return self.now

    def _source_address(self, peer: object) -> str | None:
        self.looks += 1
        return self.source


class Connection:
    """A connection whose answers the test controls."""

    def __init__(self) -> None:
        self.lower: asyncio.Transport = FakeTransport()
        self.heard_at = 1000.0
        self.asked = 0
        self.answered = False

    def ping(self) -> None:
        self.asked += 1
        self.answered = False

    def ping_answered(self) -> bool:
        return self.answered


def guarded(*connections: Connection) -> ReuseGuard:
    guard = ReuseGuard()
    for connection in connections:
        guard.add(connection)
    return guard


def sleep(world: World) -> None:
    world.slept += SLEEP_TIME + 0.1


def move(world: World) -> None:
    world.source = "198.51.100.1"


def lose_route(world: World) -> None:
    world.source = None


@pytest.mark.parametrize("change", [sleep, move, lose_route])
def test_change_requires_an_answer_before_use(
    change: Callable[[World], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, connection = World(monkeypatch), Connection()
    guard = guarded(connection)
    world.now += 60.0
    assert guard.admits(connection)
    change(world)
    world.now += 2 * ROUTE_TIME
    for _ in range(3):
        assert not guard.admits(connection)
        world.now += 60.0
    assert connection.asked == 1
    connection.answered = True
    assert guard.admits(connection)
    change(world)
    assert guard.admits(connection) is (change is not sleep)


def test_second_change_requires_a_new_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    world, connection = World(monkeypatch), Connection()
    guard = guarded(connection)
    sleep(world)
    assert not guard.admits(connection)
    connection.answered = True
    sleep(world)
    assert not guard.admits(connection)
    assert connection.asked == 2
    assert not connection.answered


def test_short_sleep_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    world, connection = World(monkeypatch), Connection()
    guard = guarded(connection)
    world.slept += SLEEP_TIME
    assert guard.admits(connection)


def test_burst_of_uses_checks_the_route_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world, connection = World(monkeypatch), Connection()
    guard = guarded(connection)
    for _ in range(1000):
        assert guard.admits(connection)
    assert world.looks == 2  # when it was made, and when it was used first


def test_siblings_of_a_dead_connection_are_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    World(monkeypatch)
    dead, *siblings = connections = [Connection() for _ in range(3)]
    guard = guarded(*connections)
    guard.discard(dead)
    guard.verify_all()
    guard.verify_all()
    assert [connection.asked for connection in connections] == [0, 1, 1]
    younger = Connection()
    guard.add(younger)
    siblings[0].answered = True
    admitted = [guard.admits(each) for each in (*siblings, younger)]
    assert admitted == [True, False, True]


@pytest.mark.parametrize(
    ("error", "dead"),
    [
        (None, False),
        (PeerError("broke the protocol"), False),
        (NetworkError("ended by the peer", cause=Cause.EOF), False),
        (NetworkError("no sign of life"), True),
        (OSError(errno.ETIMEDOUT, ""), True),
        (ConnectionResetError(errno.ECONNRESET, ""), True),
    ],
)
def test_abnormal_ends(error: Exception | None, dead: bool) -> None:
    assert is_abnormal_end(error) is dead


def test_burst_of_uses_is_not_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first use writes to a long idle connection; the answer takes a moment."""
    world, connection = World(monkeypatch), Connection()
    guard = guarded(connection)
    world.now += 20.0
    silent = [0.0, 20.0, 20.1, 26.0]
    monkeypatch.setattr(reuse, "silent_seconds", lambda transport: silent.pop(0))
    assert guard.admits(connection)
    assert guard.admits(connection)
    world.now += UNANSWERED_TIME - 0.1
    assert guard.admits(connection)
    world.now += 0.2
    assert not guard.admits(connection)


@pytest.mark.skipif(sys.platform == "win32", reason="its clocks do not differ")
def test_sleep_is_read_from_system_clocks() -> None:
    first = reuse.slept_seconds()
    assert abs(reuse.slept_seconds() - first) < SLEEP_TIME
    assert first > -SLEEP_TIME


def test_sleep_is_zero_without_a_suitable_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "_CLOCK", None)
    assert reuse.slept_seconds() == 0.0


# The answer: the peer's kernel's acknowledgement or, where the system hides it, a later frame.


@linux_only
async def test_kernel_acknowledgement_is_an_answer() -> None:
    near, far = tcp_sockets()
    with far:
        session = SmuxSession()
        attach(near, session)
        drop_packets(far)
        session.ping()
        await turns()
        assert not session.ping_answered()
        take_packets(far)
        await eventually(session.ping_answered)
        session.abort()
        await turns()


@linux_only
async def test_unacknowledged_bytes_are_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reuse, "UNANSWERED_TIME", 0.2)
    near, far = tcp_sockets()
    with far:
        session = SmuxSession()
        attach(near, session)
        guard = ReuseGuard()
        guard.add(session)
        assert guard.admits(session)
        drop_packets(far)
        session.open_stream(Recorder()).write(b"are you there?")
        await eventually(lambda: not guard.admits(session))
        take_packets(far)
        await eventually(lambda: guard.admits(session))
        session.abort()
        await turns()


async def test_later_frame_is_the_answer_without_kernel_support(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    session = SmuxSession()
    session.connection_made(FakeTransport(session))
    session.ping()
    session.data_received(b"\1\3\0\0\0\0\0\0")  # may have waited in the kernel
    assert not session.ping_answered()
    await clock.passes(mux.OLD_READ_TIME + 0.1)
    session.data_received(b"\1\3\0\0\0\0\0\0")
    assert session.ping_answered()
    session.abort()
    await turns()
