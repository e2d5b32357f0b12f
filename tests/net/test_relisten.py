"""Listening at new addresses while old ones are in use, or conflict with them."""

from __future__ import annotations

import pytest

from mtt.errors import StartError
from mtt.net.relisten import Occupant, listen_again, listen_instead
from tests.support.tunnels import logged


class Port:
    """A port that two things want."""

    def __init__(self) -> None:
        self.owner = "old"
        self.calls: list[str] = []
        self.listens_again = True

    def stop(self) -> None:
        self.owner = ""
        self.calls.append("stop")

    async def listen(self) -> None:
        self.calls.append("listen")
        if not self.listens_again:
            raise StartError("taken")
        self.owner = "old"

    async def bind(self) -> str:
        self.calls.append("bind")
        if self.owner:
            raise StartError("in use")
        self.owner = "new"
        return "bound"

    async def fail(self) -> str:
        raise StartError("no such address")

    @property
    def occupant(self) -> Occupant:
        return Occupant("the old one", self.stop, self.listen)


async def test_a_free_address_leaves_the_old_one_alone() -> None:
    port = Port()
    port.owner = ""
    assert await listen_instead(port.bind, [port.occupant]) == "bound"
    assert port.calls == ["bind"]


async def test_conflicting_address_is_closed_first() -> None:
    port = Port()
    assert await listen_instead(port.bind, [port.occupant]) == "bound"
    assert port.calls == ["bind", "stop", "bind"]


async def test_after_a_failure_the_old_address_listens_again() -> None:
    port = Port()
    with pytest.raises(StartError, match="no such address"):
        await listen_instead(port.fail, [port.occupant])
    assert port.calls == ["stop", "listen"]
    assert port.owner == "old"


async def test_nothing_is_tried_twice_without_an_old_address() -> None:
    port = Port()
    with pytest.raises(StartError, match="in use"):
        await listen_instead(port.bind, [])
    assert port.calls == ["bind"]


async def test_an_old_address_that_is_lost_is_logged() -> None:
    port = Port()
    port.listens_again = False
    with logged() as lines:
        await listen_again([port.occupant])
    assert lines == ["ERROR the old one no longer listens: taken"]
