"""The API for panels: users as resources, by id. See docs/api.md.

    GET    /api/users?search=&sort=&offset=&limit=
    POST   /api/users                      adds one user
    GET    /api/users/ID                   with the path
    PATCH  /api/users/ID                   changes the fields in the body
    DELETE /api/users/ID?disconnect=true
    POST   /api/users/ID/reset             sets the counters to 0
    POST   /api/users/ID/disconnect        cuts the connections
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from mtt.options.flags import clipped
from mtt.users.store import NO_PROFILE, Profile, Row, StoreError
from mtt_mu_server import api
from mtt_mu_server.commands import Commands
from mtt_mu_server.decoding import Refused, WrongTypeError
from mtt_mu_server.months import next_reset
from mtt_mu_server.user import fingerprint
from mtt_mu_server.user_list import UserList
from mtt_mu_server.users import Users

USERS = "/api/users"

# A body of this size or more is refused: that of one user, whose path may have 32 KiB, in JSON.
BODY_LIMIT = 256 * 1024
# Users between two yields, of about 10 us each.
SLICE = 100
# Characters of a name: one line of a page.
MAX_NAME = 200
DEFAULT_LIMIT = 100

# Characters that break a line or a log, or are not valid text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NO_ROW: Row = ("", 0, 0, 0)


class Fields(NamedTuple):
    """The settings of a user in the API, in the order of `Row` and `Profile`."""

    dst: str
    max_conns: int
    rate: int
    expires: int
    name: str
    enabled: bool
    quota: int
    reset_day: int


class UserApi:
    """Answers the API's requests about users."""

    body_limit = BODY_LIMIT

    def __init__(self, users: Users, commands: Commands) -> None:
        self._users = users
        self._commands = commands
        self._list = UserList(users)

    def methods(self, path: str) -> tuple[str, ...]:
        """The methods for the path of a request; none if the API does not have it."""
        _, _, first, *rest = path.split("/")
        if first == "events" and not rest:
            return ("GET",)
        if first != "users":
            return ()
        match rest:
            case []:
                return "GET", "HEAD", "POST"
            case [_]:
                return "GET", "HEAD", "PATCH", "DELETE"
            case [_, "reset" | "disconnect"]:
                return ("POST",)
        return ()

    async def run(self, method: str, path: str, query: str, body: bytes) -> tuple[int, bytes]:
        """Execute a request with one of `methods`; returns an HTTP status and the answer."""
        done = self._commands.done
        try:
            answer = api.encode({"res": 1} | await self._run(method, path, query, body))
            done["done"] += method not in ("GET", "HEAD")
            return 200, answer
        except Refused as refused:
            done["refused"] += 1
            return refused.status, api.error_answer(str(refused))
        except StoreError as error:
            done["failed"] += 1
            return 500, api.error_answer(str(error))

    async def _run(self, method: str, path: str, query: str, body: bytes) -> dict[str, Any]:
        match method, path.removeprefix(USERS).split("/")[1:]:
            case "GET" | "HEAD", []:
                return await self._page(query)
            case "POST", []:
                return await self._add(_members(body, "path", *Fields._fields))
            case "GET" | "HEAD", [ident]:
                return await self._shown(await self._list.find(ident), with_path=True)
            case "PATCH", [ident]:
                return await self._change(
                    ident, _members(body, "path", *Fields._fields, "disconnect")
                )
            case "DELETE", [ident]:
                given = _query(query, "disconnect")
                disconnect = _truth("disconnect", given.get("disconnect", "false"))
                async with self._commands.changing:
                    found = await self._list.find(ident)
                    await self._commands.remove([found])
                    if disconnect:
                        await self._commands.disconnect(found)
                return {}
            case "POST", [ident, "reset"]:
                found = await self._list.find(ident)
                await self._commands.reset([found])
                return await self._shown(found)
            case "POST", [ident, "disconnect"]:
                found = await self._list.find(ident)
                await self._commands.disconnect(found)
                return await self._shown(found)
        raise AssertionError("the caller has checked the method")

    async def _page(self, query: str) -> dict[str, Any]:
        given = _query(query, "search", "sort", "offset", "limit")
        offset = _number("offset", given.get("offset", "0"))
        limit = _number("limit", given.get("limit", str(DEFAULT_LIMIT)))
        if not 1 <= limit <= api.PAGE_LIMIT:
            raise Refused(400, f"limit: {limit} is not from 1 to {api.PAGE_LIMIT}")
        await self._commands.settle()
        total, paths = await self._list.page(
            given.get("search", ""), given.get("sort", ""), offset, limit
        )
        users = []
        for number, path in enumerate(paths, 1):
            if path in self._users.rows:  # it may have been deleted meanwhile
                users.append(self._user(path))
            if number % SLICE == 0:
                await asyncio.sleep(0)
        return {"total": total, "users": users}

    async def _shown(self, path: str, *, with_path: bool = False) -> dict[str, Any]:
        await self._commands.settle()
        if path not in self._users.rows:
            raise Refused(404, "id: there is no such user")
        return {"user": self._user(path) | ({"path": path} if with_path else {})}

    def _user(self, path: str) -> dict[str, Any]:
        """The fields of a user in lists: all but the path, which is secret."""
        users = self._users
        used = users.statistics(path)
        assert used is not None
        fields, next_time = self._fields(path)
        return {
            "id": fingerprint(path), "state": users.state(path),
            **fields._asdict(), "next_reset": next_time, **used._asdict(),
        }  # fmt: skip

    def _fields(self, path: str) -> tuple[Fields, int]:
        """The settings of a user, and the time of the next reset."""
        profile = self._users.profiles.get(path, NO_PROFILE)
        return Fields(*self._users.rows.get(path, _NO_ROW), *profile[:4]), profile[4]

    async def _add(self, given: dict[str, Any]) -> dict[str, Any]:
        path = given.pop("path", None) or "/" + secrets.token_hex(16)
        if "dst" not in given:
            raise Refused(400, "dst: missing; give the user's destination, as host:port")
        async with self._commands.changing:
            if path in self._users.rows:
                raise Refused(409, f"path: the user {fingerprint(path)} has it already")
            await self._put(path, Fields(*_NO_ROW, *NO_PROFILE[:4]), given)
        return await self._shown(path, with_path=True)

    async def _change(self, ident: str, given: dict[str, Any]) -> dict[str, Any]:
        disconnect = given.pop("disconnect", False)
        new = given.pop("path", None)
        if new is not None and given:
            raise Refused(400, "path: change it in a separate request, because changes are atomic")
        async with self._commands.changing:
            path = await self._list.find(ident)
            if new is not None and new != path and new in self._users.rows:
                raise Refused(409, f"path: the user {fingerprint(new)} has it already")
            if given:
                await self._put(path, self._fields(path)[0], given)
            if new is not None and new != path:
                await self._commands.rename(path, new)
                path = new
            elif disconnect:
                await self._commands.disconnect(path)
        return await self._shown(path, with_path=new is not None)

    async def _put(self, path: str, before: Fields, given: dict[str, Any]) -> None:
        fields = before._replace(**given)
        _, next_time = self._fields(path)
        if fields.reset_day != before.reset_day:
            day = fields.reset_day
            next_time = next_reset(day, self._users.now) if day else 0
        dst, max_conns, rate, expires, name, enabled, quota, day = fields
        profile: Profile = (name, enabled, quota, day, next_time)
        await self._commands.edit(path, (dst, max_conns, rate, expires), profile)


def _members(body: bytes, *names: str) -> dict[str, Any]:
    """The checked members of a body: a JSON object of `names`. Raises Refused."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "malformed JSON") from None
    if not isinstance(given, dict):
        raise Refused(400, "the request is not a JSON object")
    for name, value in given.items():
        if name not in names:
            known = ", ".join(names)
            raise Refused(400, f"{clipped(name)}: no such field here; there are {known}")
        _check(name, value)
    return given


def _check(name: str, value: Any) -> None:
    match name:
        case "path" | "dst" | "name":
            if not isinstance(value, str):
                raise WrongTypeError(name, "a string")
            if name == "path" and (fault := api.path_fault(value) or api.unreachable(value)):
                raise Refused(400, f"path: {fault}")
            if name == "dst":
                api.check_dst(name, value)
            if name == "name" and len(value) > MAX_NAME:
                raise Refused(400, f"name: it is longer than {MAX_NAME} characters")
            if name == "name" and _CONTROL.search(value):
                raise Refused(400, "name: it contains control characters")
        case "max_conns" | "rate" | "expires" | "quota":
            api.natural(name, value)
        case "reset_day":
            if not 0 <= api.natural(name, value) <= 31:
                raise Refused(400, f"reset_day: {value} is not from 1 to 31, or 0 for never")
        case _:
            if not isinstance(value, bool):
                raise WrongTypeError(name, "true or false")


def _query(query: str, *names: str) -> dict[str, str]:
    given: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in names:
            known = ", ".join(names)
            raise Refused(400, f"{clipped(name)}: no such parameter here; there are {known}")
        given[name] = value
    return given


def _number(name: str, text: str) -> int:
    if not re.fullmatch("[0-9]{1,18}", text):
        raise WrongTypeError(name, "an integer")
    return int(text)


def _truth(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise WrongTypeError(name, "true or false")
    return text == "true"
