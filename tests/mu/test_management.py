"""What is kept of users, and what can be seen of them."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from mtt_mu_server import management
from tests.mu.panel import multi_user_server
from tests.mu.users import client, ended, get, one_user
from tests.support.certs import Certs
from tests.support.metrics import check_with_promtool, failures, parse, short
from tests.support.tunnels import check_works, connect, echo, eventually, port_of, serving


async def test_users_and_counters_survive_a_restart(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = str(tmp_path / "users.sqlite")
    async with serving(echo) as there:
        async with (
            multi_user_server(certs, db=database) as (server, panel),
            client("wss", server, certs, "/a") as port,
        ):
            await panel.add("/a", there.port, max_conns=7)
            await panel.add("/b", there.port)
            await panel.command(2, {"path": "/b"})
            await check_works(port, b"12345")
            async with await connect(port) as running:  # counted though it never ends
                await running.check_echo(b"123")
                await panel.statistics("/a")
                before = time.time()
                await server.close()
        async with (
            multi_user_server(certs, db=database) as (server, panel),
            client("wss", server, certs, "/a") as port,
        ):
            (user,) = (await panel.command(4))["users"]
            assert (user["path"], user["max_conns"]) == ("/a", 7)
            used = await panel.statistics("/a")
            assert (used["bytes_up"], used["bytes_down"], used["total_conns"]) == (8, 8, 2)
            assert used["last_seen"] <= before + 1
            await check_works(port)


async def test_counters_are_saved_now_and_then(
    certs: Certs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(management, "EXPIRY_INTERVAL", 0.02)
    monkeypatch.setattr(management, "FLUSH_INTERVAL", 0.02)
    async with (
        one_user("wss", certs, db=str(tmp_path / "db")) as (server, _, port),
        await connect(port) as application,
    ):
        await application.send(b"123")
        await application.exactly(3)
        store = server._management.store
        assert store is not None

        def saved() -> Any:
            return store._database.execute("SELECT bytes_up FROM users").fetchone()[0]

        while await store._run(saved) != 3:  # or the deadline of the test comes
            await asyncio.sleep(0.01)


async def test_database_error_is_reported_and_nothing_changes(
    certs: Certs, tmp_path: Path
) -> None:
    async with multi_user_server(certs, db=str(tmp_path / "db")) as (server, panel):
        store = server._management.store
        assert store is not None
        await store._run(lambda: store._database.execute("PRAGMA query_only = 1"))
        answer = json.loads(await panel.post({"opt": 1, "args_bunch": [
            {"path": "/a", "dst": "h:1"}]}))  # fmt: skip
        assert answer["res"] == 2
        assert "readonly" in answer["err_string"]
        assert await panel.command(9) == {"res": 1}
        await store._run(lambda: store._database.execute("PRAGMA query_only = 0"))
        await panel.add("/a", 1)


async def test_metrics_of_users(certs: Certs) -> None:
    async with one_user("wss", certs, **{"metrics-users": True}) as (_, panel, port):
        await panel.add("/never-seen", 1)
        await check_works(port, b"12345")
        text = (await get(panel, "/metrics")).decode()
        (user, _) = (await panel.command(4))["users"]
        sent = f'mtt_mu_user_transferred_bytes_total{{id="{user["id"]}",direction="up"}} 5\n'
        assert sent in text
        assert 'mtt_mu_transferred_bytes_total{direction="down"} 5\n' in text
        assert text.count("mtt_mu_user_tunnels_opened_total{") == 1
        assert "/a" not in text


@pytest.mark.parametrize("metrics_users", [False, True])
async def test_metrics_of_the_engine(metrics_users: bool, certs: Certs) -> None:
    given = {"metrics-users": metrics_users}
    async with (
        serving(echo) as there,
        multi_user_server(certs, **given) as (server, panel),
        client("wss+mux", server, certs, "/a") as port,
        client("wss", server, certs, "/nobody") as stranger,
    ):
        await panel.add("/a", there.port)
        await check_works(port, b"12345")
        async with await connect(stranger) as application:
            await ended(application)
        async with await connect(port_of(server)) as plain:
            await plain.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await plain.rest()
        await eventually(lambda: not server.open_tunnels.open)
        page = await get(panel, "/metrics")
        samples = short(parse(page.decode()))
        assert failures(samples) == {"path": 1, "plaintext_http": 1}
        assert samples["sessions"] == samples["mu_sessions"] == 1
        assert samples["sessions_opened_total"] == samples["streams_opened_total"] == 1
        assert samples["connections_total"] == 3
        for end in ("up", "down"):
            label = f'transferred_bytes_total{{direction="{end}"}}'
            assert samples[label] == samples[f"mu_{label}"] == 5
        assert samples["event_loop_lag_max_seconds"] < 5
        check_with_promtool(page)
