"""The endpoint of metrics: access, answers and ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from mtt.address import Endpoint
from mtt.errors import StartError
from mtt.net.resolve import Resolver
from mtt.observe import server as metrics_server
from mtt.observe.metrics import CONTENT_TYPE
from mtt.observe.server import MetricsServer
from tests.support.metrics import ask, get
from tests.support.tunnels import connect, eventually, logged, port_of


@contextlib.asynccontextmanager
async def serving(*hosts: str, unix: str = "") -> AsyncIterator[MetricsServer]:
    endpoint = None if unix else Endpoint(hosts or ("127.0.0.1",), 0)
    server = MetricsServer(lambda: "a 1\n", endpoint, unix)
    await server.serve(Resolver())
    try:
        yield server
    finally:
        await server.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("line", "status", "body"),
    [
        ("GET /metrics HTTP/1.1", 200, b"a 1\n"),
        ("GET /metrics?x=y HTTP/1.0", 200, b"a 1\n"),
        ("HEAD /metrics HTTP/1.1", 200, b""),
        ("GET /healthz HTTP/1.1", 200, b"ok\n"),
        ("GET / HTTP/1.1", 404, b"not found: this port has /metrics and /healthz\n"),
        ("GET /metrics/ HTTP/1.1", 404, b"not found: this port has /metrics and /healthz\n"),
        ("POST /metrics HTTP/1.1", 405, b"method: use GET or HEAD\n"),
        ("DELETE /x HTTP/1.1", 404, b"not found: this port has /metrics and /healthz\n"),
    ],
)
async def test_requests(line: str, status: int, body: bytes) -> None:
    async with serving() as server:
        answer = await ask(server.addresses[0], f"{line}\r\nHost: 127.0.0.1:9")
        assert answer[:2] == (status, body)
        assert (answer[2] == CONTENT_TYPE) == ("/metrics" in line and status == 200)


async def test_pages_in_browsers_are_refused() -> None:
    async with serving() as server:
        address = server.addresses[0]
        request = "GET /metrics HTTP/1.1\r\nHost: "
        assert (await ask(address, request + "evil.example"))[0] == 403
        assert (await ask(address, request + "localhost\r\nOrigin: http://localhost"))[0] == 403
        assert (await ask(address, request + "localhost:1"))[0] == 200
        upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"
        assert (await ask(address, f"{request}localhost\r\n{upgrade}"))[0] == 200


async def test_a_unix_socket_is_for_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    before = os.umask(0)
    try:
        async with serving(unix=str(path)) as server:
            assert server.addresses == [str(path)]
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            status, body, _ = await ask(str(path), "GET /metrics HTTP/1.1\r\nHost: whatever")
            assert (status, body) == (200, b"a 1\n")
            assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert not path.exists()


async def test_public_address_causes_a_warning_and_accepts_any_host() -> None:
    with logged() as lines:
        async with serving("0.0.0.0") as server:
            port = server.addresses[0].rpartition(":")[2]
            request = "GET /metrics HTTP/1.1\r\nHost: tunnel.example"
            assert (await ask(f"127.0.0.1:{port}", request))[0] == 200
    assert lines == [
        f"WARNING -metrics: anyone who can reach 0.0.0.0:{port} can read the metrics",
        f"INFO metrics on 0.0.0.0:{port}",
    ]
    with logged() as lines:
        async with serving("127.0.0.1") as server:
            pass
    assert lines == [f"INFO metrics on {server.addresses[0]}"]


async def test_a_port_that_is_taken() -> None:
    async with serving() as server:
        port = port_of(server)
        other = MetricsServer(str, Endpoint(("127.0.0.1",), port), "")
        with pytest.raises(StartError, match="already in use"):
            await other.serve(Resolver())


async def test_connections_are_bounded_and_cut_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_server, "MAX_CONNECTIONS", 3)
    with logged() as lines:
        async with serving() as server:
            port = port_of(server)
            silent = [await connect(port) for _ in range(8)]
            assert await get(server.addresses[0]) == b"a 1\n"
            await eventually(lambda: len(server._pending) == 3 - 1)
    assert lines[1].startswith("WARNING more than 3 connections are open at -metrics")
    for connection in silent:
        with pytest.raises(ConnectionResetError):
            await connection.read()
        connection.close()


async def test_invalid_requests() -> None:
    async with serving() as server:
        port = port_of(server)
        for garbage in (b"\x16\x03\x01\0\0\r\n\r\n", b"x" * 40_000, b"GET /\r\n\r\n"):
            async with await connect(port) as connection:
                await connection.send(garbage)
                assert (await connection.until(b"\r\n")).startswith(b"HTTP/1.1 4")
        assert await get(server.addresses[0], "/healthz") == b"ok\n"
