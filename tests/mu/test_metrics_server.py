"""-metrics of the multi-user server: its own page, and that of its users, for Prometheus."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

import pytest

from mtt.errors import StartError
from mtt.observe.certificates import NAME
from mtt_mu_server import request_slots
from mtt_mu_server.options import options
from mtt_mu_server.server import MultiUserServer
from tests.mu.controller import Connection
from tests.mu.panel import multi_user_server
from tests.mu.two_workers import Server
from tests.mu.users import one_user
from tests.support.certs import Certs
from tests.support.metrics import ask, check_with_promtool, get, parse, scrape, short
from tests.support.processes import Processes
from tests.support.tunnels import check_works
from tests.support.workers import Echo, needs_proc

METRICS = {"metrics": "0", "metrics-users": True}


async def test_the_page_has_the_server_and_its_users(certs: Certs) -> None:
    async with one_user("wss", certs, **METRICS) as (server, panel, port):
        await check_works(port, b"12345")
        (address,) = server.metrics_addresses
        page = await get(address)
        samples = parse(page.decode())
        assert samples["mtt_mu_users"] == samples["mtt_tunnels_opened_total"] == 1
        assert samples["process_open_fds"] > 3
        assert f'{NAME}{{file="{certs.cert}"}}' in samples
        (seen,) = [key for key in samples if key.startswith("mtt_mu_user_last_seen_timestamp_")]
        assert samples[seen] == samples[seen.replace("_timestamp", "")]  # its old name
        check_with_promtool(page)
        assert await get(address, "/healthz") == b"ok\n"
        # Commands are for the controller alone.
        status, body, _ = await ask(address, "POST / HTTP/1.1\r\nHost: localhost")
        assert (status, body) == (404, b"not found: this port has /metrics and /healthz\n")
        assert panel.address != address


async def test_at_a_unix_socket(certs: Certs, tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    async with multi_user_server(certs, metrics=f"unix:{path}") as (server, _):
        assert server.metrics_addresses == [str(path)]
        assert (await scrape(str(path)))["mu_users"] == 0
    assert not path.exists()


async def test_without_the_option_nothing_listens(certs: Certs) -> None:
    async with multi_user_server(certs) as (server, _):
        assert server.metrics_addresses == []


async def test_a_port_in_use_ends_the_start(certs: Certs) -> None:
    async with multi_user_server(certs) as (first, _):
        given = {"b": "127.0.0.1:0", "c": "127.0.0.1:0", "cert": certs.cert, "key": certs.key}
        metrics = first.controller_addresses[0]
        second = MultiUserServer(options(given | {"metrics": metrics}))
        with pytest.raises(StartError, match="in use"):
            await second.start()
        await second.close()


async def test_too_many_requests_get_retry_later(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_slots, "MAX_LARGE_SLOTS", 0)
    monkeypatch.setattr(request_slots, "MAX_WAITING", 0)
    async with multi_user_server(certs, **METRICS) as (server, _):
        request = "GET /metrics HTTP/1.1\r\nHost: localhost"
        status, body, _ = await ask(server.metrics_addresses[0], request)
        assert status == 503
        assert b"try again later" in body


@needs_proc
def test_of_two_workers(processes: Processes, echo: Echo, tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    server = Server(processes, tmp_path, "-metrics", f"unix:{path}", "-metrics-users")
    server.add("/a", echo)
    with contextlib.closing(Connection(path)) as connection:
        connection.request("GET", "/metrics")
        found = short(parse(connection.getresponse().read().decode()))
    assert found["mu_users"] == 1
    assert found.keys() == server.metrics().keys()
    # Two workers and the hub.
    assert found["process_max_fds"] == 3 * resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert server.process.stop() == 0
    assert not path.exists()
