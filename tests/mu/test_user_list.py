"""Users sorted, searched and cut into pages."""

from __future__ import annotations

import asyncio
import re

import pytest

from mtt_mu_server import user_list
from mtt_mu_server.decoding import Refused
from mtt_mu_server.user import fingerprint
from mtt_mu_server.user_list import UserList
from mtt_mu_server.users import Users

COUNT = 4321


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def users() -> Users:
    users = Users()
    paths = [f"/{number}" for number in range(COUNT)]
    users.load(
        {path: (f"host{int(path[1:]) % 7}:1", 0, 0, 0) for path in paths},
        {path: (int(path[1:]) * 7919 % COUNT, 0, 1, 1) for path in paths[10:]},
        {path: (f"User {int(path[1:]) * 31 % 100}", True, 0, 0, 0) for path in paths},
    )
    return users


def value(users: Users, sort: str, path: str) -> object:
    if sort == "name":
        return users.profiles[path][0].casefold()
    return users.counters(path)[0]


@pytest.mark.parametrize("sort", ["name", "-name", "bytes", "-bytes"])
async def test_pages_join_to_one_sorted_list(sort: str, users: Users) -> None:
    pages = UserList(users)
    found: list[str] = []
    while len(found) < COUNT:
        total, page = await pages.page("", sort, len(found), 1000)
        assert total == COUNT
        found += page
    key = sort.removeprefix("-")
    expected = sorted(
        users.rows, key=lambda path: (value(users, key, path), path), reverse=sort[0] == "-"
    )
    assert found == expected
    assert await pages.page("", sort, COUNT, 10) == (COUNT, [])


async def test_search_in_names_destinations_and_ids(users: Users) -> None:
    pages = UserList(users)
    total, found = await pages.page("USER 42", "", 0, 5)
    assert total == len([name for name, *_ in users.profiles.values() if name == "User 42"])
    assert all(users.profiles[path][0] == "User 42" for path in found)
    assert (await pages.page("host3", "-bytes", 0, 1))[0] == len(range(3, COUNT, 7))
    assert await pages.page(fingerprint("/77"), "", 0, 5) == (1, ["/77"])
    assert await pages.page("/77", "", 0, 5) == (0, [])  # paths are secret
    assert await pages.page("nothing", "name", 0, 5) == (0, [])


async def test_order_is_made_again_when_users_change(users: Users) -> None:
    pages = UserList(users, Clock())
    await pages.page("", "name", 0, 1)
    users.edit("/new", ("h:1", 0, 0, 0), ("", True, 5, 0, 0))
    assert await pages.page("", "name", 0, 1) == (COUNT + 1, ["/new"])


async def test_order_by_traffic_is_kept_for_a_while(users: Users) -> None:
    clock = Clock()
    pages = UserList(users, clock)
    _, before = await pages.page("", "-bytes", 0, 3)
    users._counters["/1"] = (10**9, 0, 0, 0)
    assert (await pages.page("", "-bytes", 0, 3))[1] == before
    clock.now = user_list.LIFETIME
    assert (await pages.page("", "-bytes", 0, 1))[1] == ["/1"]


async def test_number_of_kept_orders_is_limited(users: Users) -> None:
    pages = UserList(users)
    for number in range(2 * user_list.MAX_ORDERS):
        await pages.page(f"User {number}", "", 0, 1)
    assert len(pages._orders) == user_list.MAX_ORDERS


async def test_users_are_found_by_id(users: Users) -> None:
    pages = UserList(users)
    assert await pages.find(fingerprint("/7")) == "/7"
    users.put({"/late": ("h:1", 0, 0, 0)})
    assert await pages.find(fingerprint("/late")) == "/late"
    for _ in users.remove(["/7"]):
        pass
    for unknown in (fingerprint("/7"), "", "abc", "/7", "0" * 13):
        with pytest.raises(Refused, match="there is no such user") as refused:
            await pages.find(unknown)
        assert refused.value.status == 404
    for _ in users.clear():
        pass
    users.put({"/8": ("h:1", 0, 0, 0)})
    assert await pages.find(fingerprint("/8")) == "/8"


async def test_users_change_while_ids_are_collected(users: Users) -> None:
    pages = UserList(users)
    finding = asyncio.create_task(pages.find(fingerprint("/1")))
    await asyncio.sleep(0)
    assert users.added
    for _ in users.clear():
        pass
    users.put({"/1": ("h:1", 0, 0, 0)})
    assert await finding == "/1"


async def test_id_of_two_users_names_neither(
    users: Users, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(user_list, "FINGERPRINT_LENGTH", 2)
    pages = UserList(users)
    await pages._index()
    monkeypatch.setattr(user_list, "_ID", re.compile("[0-9a-f]{2}"))
    with pytest.raises(Refused) as refused:
        await pages.find("00")
    assert refused.value.status == 409


async def test_unknown_sort_key(users: Users) -> None:
    with pytest.raises(Refused, match="sort: not one of name, dst, expires"):
        await UserList(users).page("", "path", 0, 1)
