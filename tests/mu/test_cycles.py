"""Connections of the multi-user server leave nothing to the garbage collector.

See tests/engine/test_cycles.py.
"""

from __future__ import annotations

import pytest

from tests.mu.panel import multi_user_server
from tests.mu.users import client, in_both_modes, one_user
from tests.support.certs import Certs
from tests.support.garbage import collector_off
from tests.support.tunnels import connect, eventually, maybe_reset, settled

TIMES = 3


@pytest.mark.parametrize("rate", [0, 1_000_000], ids=["free", "limited"])
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@in_both_modes
async def test_tunnels(mode: str, reset: bool, rate: int, certs: Certs) -> None:
    limits = {"rate": rate} if rate else None
    async with one_user(mode, certs, limits=limits) as (server, _, port):
        with collector_off() as left:
            for _ in range(TIMES):
                async with await connect(port) as application:
                    await application.send(bytes(200_000))
                    await application.exactly(200_000)
                    if reset:
                        application.reset()
            await eventually(lambda: not server.tunnels)
            await settled()
        assert not left


@in_both_modes
async def test_unknown_users(mode: str, certs: Certs) -> None:
    async with (
        multi_user_server(certs) as (server, _),
        client(mode, server, certs, "/a") as port,
    ):
        with collector_off() as left:
            for _ in range(TIMES):
                async with await connect(port) as application:
                    with maybe_reset():
                        assert await application.rest() == b""
            await eventually(lambda: not len(server._frontend.handshakes))
            await settled()
        assert not left


async def test_commands(certs: Certs) -> None:
    async with multi_user_server(certs) as (_, panel):
        with collector_off() as left:
            for command in (b"{}", b"nonsense", b'{"opt": 4}'):
                async with await connect(panel.port) as connection:
                    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                    await connection.send(head + b"Content-Length: %d\r\n\r\n" % len(command))
                    await connection.send(command)
                    await connection.rest()
            await settled()
        assert not left


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_requests_that_are_given_up(reset: bool, certs: Certs) -> None:
    async with multi_user_server(certs) as (server, panel):
        controller = server._management.controller  # type: ignore[union-attr]
        assert controller is not None
        with collector_off() as left:
            for _ in range(TIMES):
                async with await connect(panel.port) as connection:
                    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
                    await connection.send(head + b"{")
                    await eventually(lambda: controller._tasks)
                    if reset:
                        connection.reset()
            await eventually(lambda: not controller._transports)
            await settled()
        assert not left
