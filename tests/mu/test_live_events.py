"""Connections as they begin, end and are refused, as a stream of events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt.http import listener
from mtt.http.limits import OPERATORS
from mtt_mu_server import live_events
from mtt_mu_server.live_events import LiveEvents, _Viewer
from mtt_mu_server.user import fingerprint
from tests.mu.panel import Panel
from tests.mu.resting import call, user
from tests.mu.users import ended, in_both_modes, one_user, upgrade
from tests.support.certs import Certs
from tests.support.tunnels import check_works, connect, eventually, logged

A = fingerprint("/a")
REQUEST = b"GET /api/events HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Events:
    """The events that one viewer gets."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def next(self) -> tuple[str, dict[str, Any]]:
        name = ""
        while True:
            line = (await self._reader.readline()).decode().strip()
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                return name, json.loads(line.removeprefix("data: "))


@contextlib.asynccontextmanager
async def watching(panel: Panel) -> AsyncIterator[Events]:
    reader, writer = await panel.connect()
    writer.write(REQUEST)
    events = Events(reader)
    assert (await events.next())[0] == "start"
    try:
        yield events
    finally:
        writer.transport.abort()


@in_both_modes
async def test_connection_begins_and_ends(mode: str, certs: Certs) -> None:
    async with one_user(mode, certs) as (server, panel, port):
        await user(panel, "PATCH", f"users/{A}", {"name": "<b>\u00e4\u2603"})
        (row,) = (await panel.command(4))["users"]
        async with watching(panel) as events:
            async with await connect(port) as application:
                await application.check_echo(b"12345")
                name, begun = await events.next()
                assert name == "open"
                assert begun.pop("peer").startswith("127.0.0.1:")
                assert begun.pop("time") > 0
                assert begun == {"id": A, "name": "<b>\u00e4\u2603", "conn": 1, "dst": row["dst"]}
            name, over = await events.next()
            assert (name, over["conn"], over["id"]) == ("end", 1, A)
            assert (over["bytes_up"], over["bytes_down"]) == (5, 5)
            assert 0 <= over["seconds"] < 60
            assert over["peer"].startswith("127.0.0.1:")
            async with await connect(port) as application:
                await application.check_echo(b"1")
                await call(panel, "POST", f"users/{A}/disconnect")
                await ended(application)
            assert (await events.next())[0] == "open"
            name, over = await events.next()
            assert (name, over["reason"]) == ("end", "disconnected by the operator")
        await eventually(lambda: not server._primary.is_watched)
        await check_works(port)


async def test_refusals_have_a_reason_and_no_path(certs: Certs) -> None:
    async with one_user("wss", certs, limits={"max_conns": 1}) as (server, panel, port):
        async with watching(panel) as events, await connect(port) as application:
            await application.check_echo(b"1")
            assert (await events.next())[0] == "open"
            await upgrade(server, certs, "/a")
            await upgrade(server, certs, "/wrong")
            await user(panel, "PATCH", f"users/{A}", {"enabled": False})
            await upgrade(server, certs, "/a")
            found = [await events.next() for _ in range(3)]
        assert [name for name, _ in found] == ["refused"] * 3
        reasons = [(event["id"], event["reason"]) for _, event in found]
        assert reasons == [(A, "too many connections"), ("", "unknown path"), (A, "disabled")]
        assert all(event["peer"].startswith("127.0.0.1:") for _, event in found)
        assert "/wrong" not in str(found)


async def test_destination_that_refuses(certs: Certs) -> None:
    async with one_user("wss", certs) as (_, panel, port):
        await panel.add("/a", 1)
        async with watching(panel) as events:
            async with await connect(port) as application:
                await ended(application)
            assert (await events.next())[0] == "open"
            name, over = await events.next()
        assert (name, over["bytes_up"]) == ("end", 0)
        assert "connection refused" in over["reason"]


async def test_viewer_that_does_not_read_loses_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_events, "MAX_QUEUE", 100)
    monkeypatch.setattr(live_events, "WRITE_INTERVAL", 0.0)
    viewer = _Viewer()
    for _ in range(25):
        viewer.put(b"x" * 10)
    events = viewer.events()
    assert await anext(events) == b"x" * 100 + b'event: lost\ndata: {"count":15}\n\n'
    viewer.put(b"later")
    assert await anext(events) == b"later"
    await events.aclose()


async def test_number_of_viewers_is_limited(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_events, "MAX_VIEWERS", 2)
    async with one_user("wss", certs) as (server, panel, _):
        async with watching(panel), watching(panel):
            status, answer = await call(panel, "GET", "events")
            assert (status, answer["err_string"]) == (503, "too many viewers of events; close some")
        events = server._management.controller._events  # type: ignore[union-attr]
        assert isinstance(events, LiveEvents)
        await eventually(lambda: events.has_room)
        async with watching(panel):
            assert (await call(panel, "POST", "events"))[0] == 405


async def test_viewer_that_does_not_read_is_cut(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_events, "WRITE_INTERVAL", 0.0)
    async with one_user("wss", certs) as (server, panel, port):
        monkeypatch.setattr(listener, "OPERATORS", OPERATORS._replace(body=0.05))
        users = server._primary
        with logged() as lines:
            async with watching(panel):
                while users.is_watched:  # until the buffers of both systems are full
                    for _ in range(100):
                        users.refused("", "x" * 1000)
                    await asyncio.sleep(0)
            reason = "the client did not read its answer within 0.05 s"
            await eventually(lambda: any(reason in line for line in lines))
        async with watching(panel) as events:
            await check_works(port)
            assert (await events.next())[0] == "open"
