"""The controller's endpoint: slow clients, many clients, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

import pytest

from mtt.http import listener
from mtt.http.limits import OPERATORS
from mtt.http.server import HttpServer
from mtt.layers.reads import LARGE_READ
from mtt_mu_server import control, request_slots
from mtt_mu_server.api import BODY_LIMIT
from tests.mu.panel import multi_user_server
from tests.mu.posting import PING, closing, post, status
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.tunnels import connect, eventually, logged


@pytest.mark.parametrize(
    ("limit", "sent"),
    [
        ("head", b""),
        ("head", b"POST / HTTP/1.1\r\nHost: loc"),
        ("body", b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"),
        ("keepalive", post(PING)),
    ],
)
async def test_slow_clients_are_closed(
    limit: str, sent: bytes, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = OPERATORS._make([600.0] * 3)  # longer than any test, so none of the others does it
    monkeypatch.setattr(listener, "OPERATORS", patient._replace(**{limit: 0.1}))
    async with multi_user_server(certs) as (_, panel):
        reader, writer = await panel.connect()
        writer.write(sent)
        await reader.read()
        writer.close()
        await writer.wait_closed()
        monkeypatch.setattr(listener, "OPERATORS", patient)
        assert await panel.command(9) == {"res": 1}


async def test_unauthenticated_connections_do_not_exclude_the_panel(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "MAX_PENDING", 5)
    async with multi_user_server(certs) as (server, panel):
        known = await panel.connect()
        known[1].write(post(PING))
        await known[0].readuntil(b"}")
        strangers = [await panel.connect() for _ in range(10)]
        # A request that is refused leaves its client a stranger.
        for _, writer in strangers[5:]:
            writer.write(post(PING, "Origin: http://evil.example"))
        strangers += [await panel.connect() for _ in range(10)]
        assert await panel.command(9) == {"res": 1}
        controller = server._management.controller
        assert controller is not None
        await eventually(lambda: len(controller._transports) <= 6)
        known[1].write(post(PING))
        assert b'{"res":1}' in await known[0].readuntil(b"}")
        for _, writer in (known, *strangers):
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await eventually(lambda: not controller._transports and not controller._pending)
        assert not controller._idle


async def test_parallel_commands_are_all_answered(certs: Certs) -> None:
    """Every connection is made before the first one says anything."""
    async with multi_user_server(certs) as (server, panel):
        connections = [await panel.connect() for _ in range(150)]
        bunch = [{"path": f"/{number}", "dst": "h:1"} for number in range(300)]
        add = json.dumps({"opt": 1, "args_bunch": bunch}).encode()
        for number, (_, writer) in enumerate(connections):
            writer.write(closing(PING if number % 5 else add))
        for reader, writer in connections:
            assert status(await reader.read()) == 200
            writer.close()
            await writer.wait_closed()
        controller = server._management.controller
        assert controller is not None
        await eventually(lambda: not controller._transports)


async def test_stalled_bodies_have_a_bound_in_sum(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, request_slots)
    big = closing(PING + b" " * (BODY_LIMIT // 2))
    half = BODY_LIMIT // 4
    head = big.index(b"\r\n\r\n") + 4
    async with multi_user_server(certs) as (server, panel):
        stalled = [await panel.connect() for _ in range(80)]
        for _, writer in stalled:
            writer.write(big[:half])
        controller = server._management.controller
        assert controller is not None

        def received() -> list[int]:
            servers: list[Any] = [each.get_protocol() for each in controller._transports]
            assert all(isinstance(each, HttpServer) for each in servers)
            exchanges = [server._exchange for server in servers]
            return [head + each._received if each is not None else 0 for each in exchanges]

        most = request_slots.MAX_LARGE_SLOTS * half
        await eventually(lambda: sum(size == half for size in received()) == 16)
        await eventually(lambda: all(received()))
        assert sum(received()) < most + 64 * 2 * LARGE_READ
        # Small commands pass, the liveness check as well, and another large one has its turn.
        assert await panel.command(9) == {"res": 1}
        assert status(await panel.exchange(b"GET /healthz HTTP/1.0\r\n\r\n")) == 200
        late = asyncio.create_task(panel.exchange(big))
        while not late.done():
            await clock.passes(request_slots.LOOK_INTERVAL)
            await asyncio.sleep(0.01)  # for the kernel
            assert sum(received()) < most + 64 * 2 * LARGE_READ
        assert status(late.result()) == 200
        for _, writer in stalled:
            writer.transport.abort()
        await eventually(lambda: not controller._transports)


async def test_full_queue_is_answered_with_503(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_slots, "MAX_LARGE_SLOTS", 1)
    monkeypatch.setattr(request_slots, "MAX_WAITING", 0)
    async with multi_user_server(certs) as (server, panel):
        _, holder = await panel.connect()
        holder.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        controller = server._management.controller
        assert controller is not None
        await eventually(lambda: controller._slots._holders)
        answer = await panel.exchange(closing(PING + b" " * request_slots.SMALL))
        assert answer.startswith(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n")
        assert b"try again later" in answer
        assert await panel.command(9) == {"res": 1}
        holder.close()
        await holder.wait_closed()


async def test_refusals_do_not_flood_the_log(certs: Certs) -> None:
    with logged() as lines:
        async with multi_user_server(certs) as (_, panel):
            for _ in range(20):
                answer = await panel.exchange(closing(PING, host="evil.example"))
                assert status(answer) == 403
    assert sum("Host is not" in line for line in lines) == 1


async def test_concurrent_requests_yield_to_the_event_loop(certs: Certs) -> None:
    async with multi_user_server(certs) as (server, panel):
        controller = server._management.controller
        assert controller is not None
        turns_of_others, commands = 0, 0
        done = asyncio.Event()

        async def run(body: bytes) -> tuple[int, bytes]:
            nonlocal commands
            commands += 1
            return 200, b"{}"

        async def other() -> None:
            nonlocal turns_of_others
            while not done.is_set():
                turns_of_others += bool(commands)
                await asyncio.sleep(0)

        controller._run = run
        task = asyncio.create_task(other())
        answer = await panel.exchange(post(PING) * 100 + closing(PING))
        done.set()
        await task
        assert answer.count(b"HTTP/1.1 200 OK") == commands == 101
        assert turns_of_others >= commands - 1


async def test_a_panel_that_leaves_has_its_command_done(certs: Certs) -> None:
    body = b'{"opt":1,"args_bunch":[{"path":"/a","dst":"h:1"}]}'
    async with multi_user_server(certs) as (server, panel):
        _, writer = await panel.connect()
        writer.write(post(body))
        writer.close()
        await writer.wait_closed()
        await eventually(lambda: "/a" in server._users.rows)


async def test_begun_command_completes_without_its_client(certs: Certs) -> None:
    async with multi_user_server(certs) as (server, panel):
        controller = server._management.controller
        assert controller is not None
        begun, going_on, done = (asyncio.Event() for _ in range(3))

        async def run(body: bytes) -> tuple[int, bytes]:
            begun.set()
            await going_on.wait()
            done.set()
            return 200, b"{}"

        controller._run = run
        async with await connect(panel.port) as client:
            await client.send(post(PING))
            await begun.wait()
            client.reset()
        await eventually(lambda: not controller._transports)
        assert controller._slots._holders  # what it has in memory counts as long as it is there
        going_on.set()
        await done.wait()
        await eventually(lambda: not controller._slots._holders)


async def test_connections_that_end_are_not_idle(certs: Certs) -> None:
    async with multi_user_server(certs) as (server, panel):
        controller = server._management.controller
        assert controller is not None
        for request, idle in ((post(PING), 1), (closing(PING), 0)):
            async with await connect(panel.port) as client:
                await client.send(request)
                assert await client.until(b"}") != b""
                await eventually(lambda: not controller._tasks)
                assert (len(controller._transports), len(controller._idle)) == (1, idle)
            await eventually(lambda: not controller._transports)


async def test_a_client_that_does_not_read_its_answers(certs: Certs) -> None:
    """It stops being served; nothing piles up."""
    async with multi_user_server(certs) as (server, panel):
        users = [{"path": f"/{number}", "dst": "h:1"} for number in range(1000)]
        await panel.command(1, *users)
        _, writer = await panel.connect()
        writer.write(post(b'{"opt":4}') * 3000)
        await asyncio.sleep(0.3)
        controller = server._management.controller
        assert controller is not None
        (transport,) = controller._transports
        assert transport.get_write_buffer_size() < 1_000_000
        held = transport.get_protocol()
        assert isinstance(held, HttpServer)
        assert len(held._buffer) <= 2 * LARGE_READ  # uvloop reads twice at a time
        writer.transport.abort()
        await eventually(lambda: not controller._transports)
