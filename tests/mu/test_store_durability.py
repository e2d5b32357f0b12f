"""What was answered `res 1` survives kill -9; what was not is there as a whole or not at all."""

from __future__ import annotations

import http.client
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.mu.controller import Connection, start
from tests.support.processes import Processes

KILLS = 20
BUNCH = 40  # users per command

Users = dict[str, str]


def users_of(connection: Connection) -> Users:
    found: Users = {}
    while True:
        page = connection.command(4, [], offset=len(found))
        found |= {user["path"]: user["dst"] for user in page["users"]}
        if len(found) == page["total"]:
            return found


def some_command(chance: random.Random, number: int, users: Users) -> tuple[int, Any, Users]:
    """A command, and the users there must be after it."""
    if chance.random() < 0.05:
        return 3, [], {}
    if chance.random() < 0.3 and users:
        paths = chance.sample(sorted(users), min(BUNCH, len(users)))
        left = {path: dst for path, dst in users.items() if path not in paths}
        return 2, [{"path": path} for path in paths], left
    new = {f"/{chance.randrange(400)}": f"h:{number % 65535 + 1}" for _ in range(BUNCH)}
    return 1, [{"path": path, "dst": dst} for path, dst in new.items()], users | new


@pytest.mark.deadline(100)
def test_kill_in_the_middle_of_commands(tmp_path: Path) -> None:
    chance = random.Random(20)
    control = tmp_path / "control.sock"
    possible: list[Users] = [{}]  # after a kill: with and without the command that was under way
    commands = interrupted = 0
    with Processes() as processes:
        for _ in range(KILLS + 1):
            server = start(processes, tmp_path, "-disable-tls")
            connection = Connection(control)
            users = users_of(connection)
            assert users in possible
            done, took = 0, 0.0
            before_that = chance.randrange(3, 20)  # commands
            killer: threading.Timer | None = None
            try:
                while True:
                    commands += 1
                    opt, args, after = some_command(chance, commands, users)
                    possible = [users, after]
                    began = time.monotonic()
                    if done == before_that:
                        # At some moment of this command, if it takes as long as the one before.
                        killer = threading.Timer(
                            chance.random() * took, server.send, [signal.SIGKILL]
                        )
                        killer.start()
                    assert connection.command(opt, args) == {"res": 1}
                    took = time.monotonic() - began
                    done += 1
                    users = after
                    possible = [users]
            except (OSError, http.client.HTTPException):
                interrupted += len(possible) - 1
            finally:
                if killer is not None:
                    killer.join()
                connection.close()
            assert server.wait() == -signal.SIGKILL
    assert commands > 3 * KILLS
    assert interrupted > KILLS / 2  # the kills did fall into commands
