"""The `websockets` package reaches a server behind an agent."""

# ruff: noqa: E402  (whether the package is there has to be known first)

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real.absolute_form import AbsoluteForm
from tests.real.destinations import MB, SOCKET_TIMEOUT, payload
from tests.real.gateways import LOGIN, Gateway, connect, start_agent, start_gateway
from tests.support.certs import Certs
from tests.support.contexts import trusting_context
from tests.support.processes import Processes
from tests.support.programs import require_package

require_package("websockets.sync.server")

from websockets.asyncio.client import connect as connect_async
from websockets.asyncio.server import serve as serve_async
from websockets.sync.client import connect as connect_websocket
from websockets.sync.server import ServerConnection, serve

AUTHORIZATION = f"Basic {base64.b64encode(LOGIN.encode()).decode()}"


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    """A WebSocket server that sends back every message; yields its port."""

    def echo(websocket: ServerConnection) -> None:
        assert "proxy-authorization" not in websocket.request.headers  # type: ignore[union-attr]
        for message in websocket:
            websocket.send(message)

    with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join()


def talk(sock: socket.socket, port: int, **options: Any) -> None:
    url = f"ws://127.0.0.1:{port}/"
    with connect_websocket(url, sock=sock, proxy=None, max_size=None, **options) as websocket:
        for message in ("hello", payload(MB), "", payload(125)):
            websocket.send(message)
            assert websocket.recv(SOCKET_TIMEOUT) == message
        assert websocket.ping().wait(SOCKET_TIMEOUT)
    assert websocket.close_code == 1000


@pytest.fixture
def gateway(processes: Processes, certs: Certs, tmp_path: Path) -> Gateway:
    gateway = start_gateway(processes, certs, tmp_path)
    start_agent(processes, certs, tmp_path, gateway)
    return gateway


def test_websocket_by_an_upgrade_of_a_plain_request(gateway: Gateway) -> None:
    with echo_server() as port:
        sock = socket.create_connection(("127.0.0.1", gateway.http), timeout=SOCKET_TIMEOUT)
        login = {"Proxy-Authorization": AUTHORIZATION}
        talk(AbsoluteForm(sock, port), port, additional_headers=login)


def test_websocket_through_connect(gateway: Gateway) -> None:
    with echo_server() as port:
        talk(connect(gateway, port), port)


async def test_websocket_with_tls_through_connect(gateway: Gateway, certs: Certs) -> None:
    """In one thread: `ssl` before Python 3.13 loses data if two threads use one connection."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certs.cert, certs.key)

    async def echo(websocket: Any) -> None:
        async for message in websocket:
            await websocket.send(message)

    async with serve_async(echo, "127.0.0.1", 0, max_size=None, ssl=context) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        sock = await asyncio.to_thread(connect, gateway, port)
        sock.setblocking(False)
        async with connect_async(
            f"wss://127.0.0.1:{port}/", sock=sock, proxy=None, max_size=None,
            ssl=trusting_context(certs.ca),
        ) as websocket:  # fmt: skip
            for message in ("hello", payload(MB), "", payload(125)):
                await websocket.send(message)
                assert await websocket.recv() == message
        assert websocket.close_code == 1000
