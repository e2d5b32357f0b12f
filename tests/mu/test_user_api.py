"""The API of panels: users as resources."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mtt.users.sqlite import SqliteStore
from mtt_mu_server import management
from mtt_mu_server.user import fingerprint
from tests.mu.panel import multi_user_server
from tests.mu.resting import call, user
from tests.mu.users import client, ended, one_user, upgrade
from tests.support.certs import Certs
from tests.support.processes import ROOT
from tests.support.tunnels import Tcp, check_works, connect, eventually, serving

A = f"users/{fingerprint('/a')}"


async def test_life_of_a_user(certs: Certs, tmp_path: Path) -> None:
    database = str(tmp_path / "db")
    async with multi_user_server(certs, db=database) as (_, panel):
        made = await user(panel, "POST", "users", {"dst": "h:1", "name": "J\u00f6rg <b>"})
        assert made["path"].startswith("/")
        assert len(made["path"]) == 33
        one = f"users/{made['id']}"
        assert await user(panel, "GET", one) == made
        changed = await user(panel, "PATCH", one, {"quota": 5, "reset_day": 31, "rate": 7})
        assert changed["next_reset"] > time.time()
        expected = {"quota": 5, "reset_day": 31, "rate": 7, "next_reset": changed["next_reset"]}
        assert changed == {key: made[key] for key in made if key != "path"} | expected
        # A command overwrites what it knows, and keeps the rest.
        await panel.command(1, {"path": made["path"], "dst": "h:2"})
        after = await user(panel, "GET", one)
        assert (after["dst"], after["rate"], after["quota"]) == ("h:2", 0, 5)
    async with multi_user_server(certs, db=database) as (_, panel):
        assert await user(panel, "GET", one) == after
        assert await call(panel, "GET", "users") == (
            200, {"res": 1, "total": 1, "users": [
                {key: after[key] for key in after if key != "path"}]},
        )  # fmt: skip
        assert await call(panel, "DELETE", one) == (200, {"res": 1})
        assert (await call(panel, "GET", one))[0] == 404
        assert await panel.command(9) == {"res": 1}


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "words"),
    [
        ("POST", "users", {}, 400, "dst: missing"),
        ("POST", "users", {"dst": "h"}, 400, "dst: "),
        ("POST", "users", {"dst": 1}, 400, "dst: not a string"),
        ("POST", "users", {"dst": "h:1", "path": "a"}, 400, "path: it does not start with /"),
        ("POST", "users", {"dst": "h:1", "path": "/a"}, 409, "path: the user "),
        ("POST", "users", {"dst": "h:1", "disconnect": True}, 400, "disconnect: no such field"),
        ("POST", "users", b"{", 400, "malformed JSON"),
        ("POST", "users", b"[" * 100_000, 400, "malformed JSON"),
        ("POST", "users", b"[]", 400, "the request is not a JSON object"),
        ("POST", "users", b"x" * 300_000, 413, "body: must be smaller than 262144 bytes"),
        ("PATCH", A, {"name": "a\nb"}, 400, "name: it contains control characters"),
        ("PATCH", A, {"name": "\ud800"}, 400, "name: it contains control characters"),
        ("PATCH", A, {"name": "x" * 201}, 400, "name: it is longer than 200 characters"),
        ("PATCH", A, {"enabled": 1}, 400, "enabled: not true or false"),
        ("PATCH", A, {"quota": -1}, 400, "quota: it is negative"),
        ("PATCH", A, {"quota": True}, 400, "quota: not an integer"),
        ("PATCH", A, {"reset_day": 32}, 400, "reset_day: 32 is not from 1 to 31"),
        ("PATCH", A, {"qouta": 1}, 400, "qouta: no such field here; there are path, dst"),
        ("PATCH", A, {"path": "/b", "name": "b"}, 400, "path: change it in a separate request"),
        ("PATCH", A, {"path": "/other"}, 409, "path: the user "),
        ("PATCH", "users/000000000000", {}, 404, "id: there is no such user"),
        ("GET", "users?sort=path", None, 400, "sort: not one of"),
        ("GET", "users?limit=1001", None, 400, "limit: 1001 is not from 1 to 1000"),
        ("GET", "users?offset=-1", None, 400, "offset: not an integer"),
        ("GET", "users?path=/a", None, 400, "path: no such parameter here"),
        ("DELETE", f"{A}?disconnect=1", None, 400, "disconnect: not true or false"),
        ("DELETE", "users", None, 405, "method: only GET, HEAD, POST here"),
        ("GET", f"{A}/reset", None, 405, "method: only POST here"),
        ("GET", "nothing", None, 404, "path: there is nothing here"),
        ("GET", f"{A}/reset/x", None, 404, "path: there is nothing here"),
    ],
)
async def test_errors_name_the_cause(
    certs: Certs, method: str, target: str, body: Any, status: int, words: str
) -> None:
    async with multi_user_server(certs) as (_, panel):
        await panel.add("/a", 1)
        await panel.add("/other", 1)
        before = await call(panel, "GET", "users")
        found, answer = await call(panel, method, target, body)
        assert (found, answer["res"]) == (status, 2)
        assert answer["err_string"].startswith(words)
        assert "/a" not in answer["err_string"].replace("docs/api.md", "")
        assert await call(panel, "GET", "users") == before


async def test_disabled_user_is_unknown(certs: Certs) -> None:
    async with (
        one_user("wss", certs) as (server, panel, port),
        await connect(port) as running,
    ):
        await running.check_echo(b"1")
        assert (await user(panel, "PATCH", A, {"enabled": False}))["state"] == "disabled"
        await running.check_echo(b"2")
        assert await upgrade(server, certs, "/a") == await upgrade(server, certs, "/unknown")
        await user(panel, "PATCH", A, {"enabled": False, "disconnect": True})
        await ended(running)
        found = await user(panel, "PATCH", A, {"enabled": True})
        assert (found["state"], found["bytes_up"], found["total_conns"]) == ("active", 2, 1)
        await check_works(port)


async def test_disabled_user_sees_the_fallback_site(certs: Certs) -> None:
    async def site(connection: Tcp) -> None:
        await connection.read()
        await connection.send(b"HTTP/1.1 299 Site\r\nContent-Length: 19\r\n\r\n" + b"x" * 19)

    async with (
        serving(site) as there,
        one_user("wss", certs, fallback=f"127.0.0.1:{there.port}") as (server, panel, _),
    ):
        await user(panel, "PATCH", A, {"enabled": False})
        assert (await upgrade(server, certs, "/a"))[1] == b"x" * 19


async def test_reset_that_was_missed_happens_at_the_start(
    certs: Certs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = SqliteStore(str(tmp_path / "db"))
    await store.load()
    await store.edit("/a", ("h:1", 0, 0, 0), ("", True, 5, 31, 1_000_000_000))
    await store.count([("/a", (3, 4, 5, 6))])
    await store.close()
    monkeypatch.setattr(management, "EXPIRY_INTERVAL", 0.01)
    monkeypatch.setattr(management, "QUOTA_INTERVAL", 0.01)
    async with multi_user_server(certs, db=str(tmp_path / "db")) as (server, panel):
        await eventually(lambda: not server._primary.blocked)
        found = await user(panel, "GET", A)
        assert (found["bytes_up"], found["total_conns"], found["last_seen"]) == (0, 0, 6)
        assert found["next_reset"] > time.time()


@pytest.mark.parametrize("mode", ["wss", "wss+mux"])
async def test_quota_ends_connections_and_refuses_new_ones(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(management, "EXPIRY_INTERVAL", 0.01)
    monkeypatch.setattr(management, "QUOTA_INTERVAL", 0.01)
    async with one_user(mode, certs) as (server, panel, port):
        await user(panel, "PATCH", A, {"quota": 12})
        async with await connect(port) as running:
            await running.check_echo(b"12345")  # and back
            await running.send(b"6")
            await ended(running)
        found = await user(panel, "GET", A)
        assert (found["state"], found["bytes_up"], found["bytes_down"]) == ("used up", 6, 6)
        assert (await upgrade(server, certs, "/a"))[0].startswith(b"HTTP/1.1 404")
        found = await user(panel, "POST", f"{A}/reset")
        assert (found["state"], found["bytes_up"], found["total_conns"]) == ("active", 0, 0)
        await check_works(port)


async def test_monthly_reset_frees_the_user(
    certs: Certs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(management, "EXPIRY_INTERVAL", 0.01)
    monkeypatch.setattr(management, "QUOTA_INTERVAL", 0.01)
    async with one_user("wss", certs, db=str(tmp_path / "db")) as (server, panel, port):
        found = await user(panel, "PATCH", A, {"quota": 2, "reset_day": 1})
        async with await connect(port) as running:
            await running.send(b"1")
            await ended(running)
        users = server._primary
        assert "/a" in users.blocked
        due = found["next_reset"]
        users._clock = lambda: float(due)
        await eventually(lambda: not users.blocked)
        found = await user(panel, "GET", A)
        assert (found["state"], found["bytes_up"]) == ("active", 0)
        assert found["next_reset"] > due
        await check_works(port, b"1")


async def test_new_path_cuts_the_old_one(certs: Certs) -> None:
    async with (
        one_user("wss", certs) as (server, panel, port),
        client("wss", server, certs, "/new") as new,
    ):
        await user(panel, "PATCH", A, {"name": "a"})
        async with await connect(port) as running:
            await running.check_echo(b"123")
            found = await user(panel, "PATCH", A, {"path": "/new"})
            await ended(running)
        assert (found["path"], found["id"]) == ("/new", fingerprint("/new"))
        assert (found["name"], found["bytes_up"], found["total_conns"]) == ("a", 3, 1)
        assert (await call(panel, "GET", A))[0] == 404
        assert (await upgrade(server, certs, "/a"))[0].startswith(b"HTTP/1.1 404")
        await check_works(new)


async def test_disconnect_and_delete(certs: Certs) -> None:
    async with one_user("wss", certs) as (server, panel, port):
        async with await connect(port) as running:
            await running.check_echo(b"1")
            assert (await user(panel, "POST", f"{A}/disconnect"))["id"] == fingerprint("/a")
            await ended(running)
        async with await connect(port) as running:
            await running.check_echo(b"1")
            assert (await call(panel, "DELETE", f"{A}?disconnect=true"))[0] == 200
            await ended(running)
        assert not server._primary.rows


def test_server_without_requests_loads_nothing_of_the_api() -> None:
    code = "import sys, mtt_mu_server.server, mtt_mu_server.hub; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20,
        check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert "mtt_mu_server.control" in loaded
    modules = {"user_api", "user_list", "live_events", "months"}
    assert not loaded & {"mtt.http.events", *(f"mtt_mu_server.{name}" for name in modules)}
