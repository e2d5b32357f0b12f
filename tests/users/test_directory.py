"""What directories keep of a user's open connections."""

from __future__ import annotations

from typing import Any

import pytest

from mtt.users.accounts import Account, Accounts
from mtt.users.directory import OpenConnections


class Tunnel:
    sent = received = 0
    reason = ""

    def abort(self, reason: str) -> None:
        self.reason = reason


class Session:
    lost = False

    def abort(self) -> None:
        self.lost = True


@pytest.mark.parametrize(
    ("tunnels", "sessions", "limit", "room"),
    [(0, 0, 1, True), (1, 0, 1, False), (0, 1, 1, False), (1, 1, 2, True), (9, 9, 0, True)],
)
def test_streams_and_sessions_are_limited(
    tunnels: int, sessions: int, limit: int, room: bool
) -> None:
    connections: OpenConnections[Any] = OpenConnections()
    connections.tunnels |= {Tunnel(): None for _ in range(tunnels)}
    for _ in range(sessions):
        connections.session_changed(Session())
    assert connections.has_room(limit) == room


def test_cutting_takes_one_step_per_connection() -> None:
    connections: OpenConnections[Any] = OpenConnections()
    tunnel, session = Tunnel(), Session()
    connections.tunnels[tunnel] = None
    connections.session_changed(session)
    steps = connections.cut("because")
    next(steps)
    assert (tunnel.reason, session.lost) == ("because", False)
    next(steps)
    assert session.lost
    connections.session_changed(session)
    assert not connections.sessions


async def test_existing_connections_share_a_changed_rate() -> None:
    connections: OpenConnections[Any] = OpenConnections()
    first = connections.limited_to(100)
    assert connections.limited_to(200) is first
    assert [bucket.rate for bucket in first] == [200, 200]


def test_accounts_add_up_ended_and_open_streams() -> None:
    accounts = Accounts({"a": b"hash"}, prefix="p_")
    account = accounts.find(b"hash")
    assert isinstance(account, Account)
    ended, running = Tunnel(), Tunnel()
    for tunnel in (ended, running):
        account.begin(tunnel)
    ended.sent, ended.received, running.sent = 1, 2, 10
    account.end(ended)
    assert (account.bytes_up, account.bytes_down, account.streams) == (11, 2, 2)
    assert list(account.tunnels) == [running]


def test_accounts_show_only_users_that_have_connected() -> None:
    accounts = Accounts({"a": b"1", "b": b"2"}, prefix="p_")
    account, session = accounts.find(b"1"), Session()
    assert account is not None
    accounts.session_changed(account, session)
    assert 'p_sessions{user="a"} 1\n' in accounts.page()
    assert 'user="b"' not in accounts.page()
    session.lost = True
    accounts.session_changed(account, session)
    assert 'p_sessions{user="a"} 0\n' in accounts.page()
    assert accounts.replace({"b": b"2"}) == {account}
    assert 'user="a"' not in accounts.page()
