"""What the hub says to workers."""

from __future__ import annotations

import socket

import pytest

from mtt.process.link import MAX_MESSAGE, encode
from mtt.users.store import NO_PROFILE, MemoryStore, Row
from mtt_mu_server.api import BODY_LIMIT
from mtt_mu_server.commands import Commands, Replicas
from mtt_mu_server.hub import SLICE, MultiUserHub, _slices
from mtt_mu_server.metrics import Events
from mtt_mu_server.replica import UserReplica
from mtt_mu_server.user import User
from mtt_mu_server.users import Users
from tests.support.transports import turns
from tests.support.tunnels import eventually

# Most bytes in JSON for one in UTF-8.
LONG_LETTER = "\N{MUSICAL SYMBOL G CLEF}"


@pytest.mark.parametrize(
    ("count", "length"), [(0, 0), (1, BODY_LIMIT), (3, BODY_LIMIT), (2500, 10), (2500, 2000)]
)
def test_a_message_with_users_is_never_too_long(count: int, length: int) -> None:
    text = LONG_LETTER * (length // 4)
    rows: dict[str, Row] = {f"/{number}{text}": ("127.0.0.1:9", 0, 0, 0) for number in range(count)}
    found: dict[str, Row] = {}
    for piece in _slices(rows):
        assert 0 < len(piece) <= SLICE
        assert len(encode("put", piece)) < MAX_MESSAGE
        found |= piece
    assert list(found.items()) == list(rows.items())


class ManagedUsers:
    """Stands for the management of a hub."""

    def __init__(self, users: Users) -> None:
        self.commands = Commands(users, MemoryStore())

    def replicate_to(self, workers: Replicas, page: object) -> None:
        self.commands.replicas = workers


async def test_worker_does_not_keep_blocks_of_users_deleted_before_it_loads() -> None:
    users = Users()
    management = ManagedUsers(users)
    hub = MultiUserHub(management, users, Events())  # type: ignore[arg-type]
    commands = management.commands
    replica = UserReplica(str, Events())
    ours, theirs = socket.socketpair()
    row: Row = ("127.0.0.1:9", 0, 0, 0)
    async with commands.changing:
        await commands.edit("/a", row, NO_PROFILE)
        hub.adopt(ours)
        await turns()  # it waits for this command
        await commands.edit("/a", row, ("", False, 0, 0, 0))
        await commands.remove(["/a"])
    try:
        await replica.connect(theirs)
        async with commands.changing:
            await commands.edit("/a", row, NO_PROFILE)
        assert users.find("/a") == replica.find("/a") == User("/a", *row)
    finally:
        await replica.close()
        await eventually(lambda: not hub.members)
