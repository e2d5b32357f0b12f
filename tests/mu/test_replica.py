"""A worker's copy of the users, without a hub."""

from __future__ import annotations

from typing import Any

import pytest

from mtt.process.link import Message
from mtt_mu_server.metrics import Events
from mtt_mu_server.replica import DOWN, UP, UserReplica
from mtt_mu_server.user import User
from tests.support.transports import FakeTransport

FAST, OTHER = User("/fast", "127.0.0.1:9"), User("/other", "127.0.0.1:9", rate=1)
SLOW = User("/slow", "127.0.0.1:9", rate=1000)


class Bucketful:
    """Stands for a rate limiter with a backlog."""

    def __init__(self) -> None:
        self.backlog = 10

    def pass_on(self, limit: int) -> int:
        passed = min(limit, self.backlog)
        self.backlog -= passed
        return passed


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Message]:
    """What the hub is told."""
    messages: list[Message] = []
    monkeypatch.setattr("mtt.process.link.Link.send", lambda _, *words: messages.append([*words]))
    return messages


async def test_tunnels_share_tokens_until_the_last_one_ends(said: list[Any]) -> None:
    replica = UserReplica(str, Events())
    tunnels = []
    for _ in range(3):
        tunnels.append(replica.enter(SLOW, FakeTransport()))
        buckets = replica.buckets(SLOW)
    assert buckets is not None
    waiting = Bucketful()
    buckets[DOWN].wait(waiting)  # type: ignore[arg-type]
    assert ["want", "/slow", DOWN, 10] in said
    for tunnel in tunnels[:2]:
        assert tunnel is not None
        replica.leave(tunnel)
    assert ["idle", "/slow"] not in said
    assert replica.buckets(SLOW) is buckets
    replica.handle(["tokens", "/slow", DOWN, 10])
    assert not waiting.backlog
    assert tunnels[2] is not None
    replica.leave(tunnels[2])
    assert said[-1] == ["idle", "/slow"]
    replica.handle(["tokens", "/slow", UP, 10])  # too late: no tunnel waits


async def test_only_users_with_a_rate_have_tokens(said: list[Any]) -> None:
    replica = UserReplica(str, Events())
    fast, other = replica.enter(FAST, FakeTransport()), replica.enter(OTHER, FakeTransport())
    assert fast is not None
    assert other is not None
    assert replica.buckets(FAST) is None
    assert replica.buckets(OTHER) is not None
    replica.leave(fast)
    assert ["idle", "/other"] not in said
    replica.leave(other)
    assert [words for words in said if words[0] == "idle"] == [["idle", "/other"]]


async def test_events_cost_nothing_without_viewers(said: list[Any]) -> None:
    replica = UserReplica(str, Events())
    replica.handle(["put", {"/fast": ["127.0.0.1:9", 0, 0, 0]}])
    replica.handle(["apply", 1])
    for watched in (False, True):
        replica.handle(["watched", watched])
        del said[:]
        tunnel = replica.enter(FAST, FakeTransport())
        assert tunnel is not None
        tunnel.reason = "idle"
        replica.leave(tunnel)
        replica.refused("/fast", "peer")
        replica.refused("/secret", "peer")
        if watched:
            assert said == [
                ["enter", 1, "/fast", False, "local socket"], ["leave", 1, 0, 0, "idle"],
                ["refused", "/fast", "peer"], ["refused", "", "peer"],
            ]  # fmt: skip
        else:
            assert said == [["enter", 0, "/fast", False], ["leave", 0, 0, 0]]
