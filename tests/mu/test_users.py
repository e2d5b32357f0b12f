"""The table of users: lookups, counting, and what is open."""

from __future__ import annotations

from typing import Any

import pytest

from mtt.users.store import NO_COUNTERS
from mtt_mu_server.user import User, fingerprint
from mtt_mu_server.users import RETRY_TIME, Users

A = User("/a", "h:1", 2)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Stream:
    """The transport towards a user."""

    aborted = False

    def get_extra_info(self, name: str) -> None:
        return None

    def abort(self) -> None:
        self.aborted = True


class FakeRelay:
    def __init__(self, sent: int = 0, received: int = 0) -> None:
        self.sent, self.received = sent, received
        self.aborted = ""

    def abort(self, reason: str) -> None:
        self.aborted = reason


class Session:
    lost = False

    def abort(self) -> None:
        self.lost = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def users(clock: Clock) -> Users:
    users = Users(clock)
    users.put({"/a": ("h:1", 2, 0, 0), "/b": ("h:2", 0, 0, 1010)})
    return users


def enter(users: Users, path: str, relay: Any = None) -> Any:
    user = users.find(path)
    assert user is not None
    stream: Any = Stream()
    tunnel = users.enter(user, stream)
    if tunnel is not None:
        tunnel.relay = relay
    return tunnel


def all_of(steps: Any) -> None:
    for _ in steps:
        pass


def test_paths_are_compared_byte_for_byte(users: Users) -> None:
    assert users.find("/a") == User("/a", "h:1", 2)
    for path in ("/A", "/a/", "//a", "a", "/a?", "", "/%61"):
        assert users.find(path) is None


def test_an_expired_user_is_unknown(users: Users, clock: Clock) -> None:
    clock.now = 1009.9
    assert users.find("/b") is not None
    clock.now = 1010.0
    assert users.find("/b") is None
    assert len(users) == 2


def test_counters_grow_while_tunnels_run(users: Users, clock: Clock) -> None:
    relay = FakeRelay(10, 20)
    tunnel = enter(users, "/a", relay)
    used = users.statistics("/a")
    assert used == (10, 20, 1, 1000, 1)
    relay.sent, relay.received, clock.now = 15, 20, 1005
    assert users.statistics("/a") == (15, 20, 1, 1005, 1)
    clock.now = 1006
    assert users.statistics("/a") == (15, 20, 1, 1005, 1)  # nothing moved
    relay.received = 100
    users.leave(tunnel)
    assert users.statistics("/a") == (15, 100, 1, 1006, 0)
    assert (users.bytes_up, users.bytes_down, users.tunnels_open) == (15, 100, 0)


def test_unseen_users_have_statistics(users: Users) -> None:
    assert users.statistics("/a") == (*NO_COUNTERS, 0)
    assert users.statistics("/nobody") is None


def test_max_conns(users: Users) -> None:
    user = users.find("/a")
    assert user is not None
    first = enter(users, "/a")
    assert users.has_room(user)
    assert enter(users, "/a") is not None
    assert not users.has_room(user)
    assert enter(users, "/a") is None
    users.leave(first)
    assert users.has_room(user)
    assert enter(users, "/a") is not None
    for _ in range(100):
        assert enter(users, "/b") is not None


def test_sessions_without_streams_count_too(users: Users) -> None:
    user = users.find("/a")
    assert user is not None
    sessions: list[Any] = [Session(), Session()]
    for session in sessions:
        users.session_changed(A, session)
    assert not users.has_room(user)
    assert users.sessions_open == 2
    sessions[0].lost = True
    users.session_changed(A, sessions[0])
    assert users.has_room(user)


def test_no_state_is_kept_without_connections(users: Users) -> None:
    tunnel = enter(users, "/a")
    session: Any = Session()
    users.session_changed(A, session)
    assert users.live_paths() == ["/a"]
    users.leave(tunnel)
    session.lost = True
    users.session_changed(A, session)
    assert users.live_paths() == []


def test_overwriting_keeps_counters_and_tunnels(users: Users) -> None:
    tunnel = enter(users, "/a", FakeRelay(1, 2))
    users.put({"/a": ("h:9", 1, 0, 0)})
    assert users.find("/a") == User("/a", "h:9", 1)
    assert users.statistics("/a") == (1, 2, 1, 1000, 1)
    assert not tunnel.cut


def test_deleting_forgets_at_once_and_leaves_tunnels_alone(users: Users) -> None:
    relay = FakeRelay(1, 2)
    tunnel = enter(users, "/a", relay)
    steps = users.remove(["/a", "/nobody"])
    next(steps)
    assert users.find("/a") is None
    all_of(steps)
    assert not tunnel.cut
    assert not relay.aborted
    relay.sent = 50
    users.put({"/a": ("h:1", 1, 0, 0)})  # begins anew, with the tunnel it still has
    assert users.statistics("/a") == (49, 0, 0, 1000, 1)
    assert enter(users, "/a") is None
    users.leave(tunnel)
    assert users.live_paths() == []


def test_deleting_all(users: Users) -> None:
    tunnel = enter(users, "/a", FakeRelay(1, 2))
    steps = users.clear()
    next(steps)
    assert len(users) == 0
    all_of(steps)
    assert not tunnel.cut
    users.leave(tunnel)
    assert users.statistics("/a") is None
    assert users.take_dirty() == []


def test_cutting(users: Users) -> None:
    relay = FakeRelay()
    running, dialling, other = enter(users, "/a", relay), enter(users, "/a"), enter(users, "/b")
    session: Any = Session()
    users.session_changed(A, session)
    all_of(users.remove(["/a"]))
    all_of(users.cut(["/a", "/nobody"], "because"))  # though it was deleted before
    assert relay.aborted == "because"
    assert running.cut
    assert dialling.cut
    assert dialling.stream.aborted
    assert session.lost
    assert not other.cut


def test_lapsed(users: Users, clock: Clock) -> None:
    enter(users, "/a")
    enter(users, "/b")
    assert users.lapsed() == []
    clock.now = 1010
    assert users.lapsed() == ["/b"]
    users.put({"/b": ("h:2", 0, 0, 2000)})
    assert users.lapsed() == []


def test_dirty_counters(users: Users) -> None:
    assert users.take_dirty() == []
    enter(users, "/a", FakeRelay(3, 0))
    assert users.take_dirty() == ["/a"]
    users.settle("/a")
    assert users.take_dirty() == ["/a"]
    assert users.counters("/a") == (3, 0, 1, 1000)
    users.settle("/a")
    users.settle("/nobody")
    assert users.take_dirty() == []
    users.mark_dirty(["/a", "/nobody"])
    assert users.take_dirty() == ["/a"]


def test_pages(users: Users) -> None:
    users.put({"/c": ("h:3", 0, 0, 0), "/a": ("h:1", 0, 0, 0)})
    assert users.paths(0, 10) == ["/a", "/b", "/c"]
    assert users.page(1, 1) == [User("/b", "h:2", 0, 0, 1010)]
    assert users.page(3, 5) == []
    for offset in (2**63 - 2, 2**63 - 1):
        assert users.page(offset, 1000) == users.paths(offset, 1000) == []


async def test_a_rate_is_shared_and_follows_changes(users: Users) -> None:
    enter(users, "/a")
    assert users.buckets(User("/a", "h:1")) is None
    first = users.buckets(User("/a", "h:1", rate=100))
    assert first is not None
    assert users.buckets(User("/a", "h:1", rate=200)) is first
    assert [bucket.rate for bucket in first] == [200, 200]


def test_fingerprints() -> None:
    assert fingerprint("/a") == fingerprint("/a") != fingerprint("/b")
    assert len(fingerprint("/\udcff")) == 12


def test_failed_resets_are_tried_again_later(users: Users, clock: Clock) -> None:
    users.edit("/a", ("h:1", 0, 0, 0), ("", True, 0, 1, 1005))
    users.edit("/b", ("h:1", 0, 0, 0), ("", True, 0, 1, 1500))
    assert users.due() == []
    clock.now = 1005
    assert users.due() == ["/a"]
    users.due_again()
    assert users.due() == []
    clock.now = 1005 + RETRY_TIME
    assert users.due() == ["/a"]
    clock.now = 1500
    assert users.due() == ["/a", "/b"]
