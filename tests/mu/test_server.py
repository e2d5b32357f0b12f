"""Tunnels of several users: our clients against the multi-user server, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from mtt.tunnels import server as server_module
from tests.mu.panel import Panel, multi_user_server
from tests.mu.users import answering, client, empty, ended, in_both_modes, one_user, upgrade
from tests.support.certs import Certs
from tests.support.loopback import black_hole
from tests.support.tunnels import (
    Tcp,
    check_works,
    connect,
    echo,
    eventually,
    logged,
    port_of,
    serving,
)
from tests.support.vectors import WSS, handshake


@in_both_modes
async def test_each_user_reaches_its_destination(mode: str, certs: Certs) -> None:
    async with (
        answering(b"A") as first,
        answering(b"B") as second,
        multi_user_server(certs) as (server, panel),
        client(mode, server, certs, "/one") as one,
        client(mode, server, certs, "/two%2F%C3%A4?x=1") as two,
    ):
        await panel.add("/one", first.port)
        await panel.add("/two/\u00e4", second.port)

        async def talk(port: int, name: bytes) -> None:
            for _ in range(5):
                async with await connect(port) as application:
                    message = name * 100_000
                    await application.send(message)
                    assert await application.exactly(100_001) == name + message

        await asyncio.gather(talk(one, b"A"), talk(two, b"B"), talk(one, b"A"), talk(two, b"B"))
        await eventually(lambda: not server.open_tunnels.open)
        used = await panel.statistics("/one")
        assert (used["bytes_up"], used["bytes_down"]) == (1_000_000, 1_000_010)
        assert (used["total_conns"], used["open_conns"]) == (10, 0)
        assert abs(used["last_seen"] - time.time()) < 30
    await eventually(lambda: empty(server))


async def test_server_decides_without_a_subprotocol(certs: Certs) -> None:
    """A foreign client without a sub-protocol, with -mux on the server."""
    async with answering(b"A") as there, multi_user_server(certs, mux=True) as (server, panel):
        await panel.add("/a", there.port)
        head, frame = await upgrade(server, certs, "/a", send=b"\x82\x88\0\0\0\0\1\0\0\0\3\0\0\0")
        assert b"101 Switching" in head
        assert b"Sec-WebSocket-Protocol" not in head
        # A message with the smux frame of the destination's first byte.
        assert frame == b"\x82\x09\1\2\1\0\3\0\0\0A"


async def test_recorded_upgrades_are_accepted(certs: Certs) -> None:
    async with (
        contextlib.AsyncExitStack() as stack,
        serving(echo) as there,
        multi_user_server(certs, **{"disable-tls": True}) as (server, panel),
    ):
        for name in WSS:
            request, response = handshake(name)
            await panel.add(request.split()[1].decode(), there.port)
            application = await stack.enter_async_context(await connect(port_of(server)))
            await application.send(request)
            answer = await application.until(b"\r\n\r\n")
            assert answer == response


@in_both_modes
async def test_unknown_users_get_the_page_of_a_web_server(mode: str, certs: Certs) -> None:
    async with serving(echo) as there, multi_user_server(certs) as (server, panel):
        await panel.add("/a", there.port)
        await panel.add("/old", there.port, expires=int(time.time()) - 1)
        for path in ("/b", "/a/", "/A", "/old", "//a"):
            head, body = await upgrade(server, certs, path)
            assert head.startswith(b"HTTP/1.1 404 Not Found\r\n")
            assert body == b"404 page not found\n"
            async with client(mode, server, certs, path) as port, await connect(port) as lost:
                await ended(lost)
        assert server._events.unknown >= 10


async def test_probes_do_not_reveal_which_paths_exist(certs: Certs) -> None:
    """Whatever is no proper upgrade is answered as for a path that does not exist."""
    good = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==")  # fmt: skip
    probes = [
        ("GET", "1.1", ()),
        ("HEAD", "1.1", ()),
        ("POST", "1.1", (*good, "Content-Length: 1")),
        ("POST", "1.1", good),
        ("GET", "1.1", good[1:]),
        ("GET", "1.1", good[:2]),
        ("GET", "1.1", (good[0], "Upgrade: h2c", *good[2:])),
        ("GET", "1.1", (*good[:2], "Sec-WebSocket-Version: 12", good[3])),
        ("GET", "1.1", (*good, "Origin: http://evil.example")),
        ("GET", "1.1", (*good, "Content-Length: 1")),
        ("GET", "1.0", ()),
        ("GET", "1.0", good[1:]),
    ]
    async with multi_user_server(certs, **{"disable-tls": True}) as (server, panel):
        await panel.add("/a", 1)
        front = Panel(server.addresses[0])
        for method, version, headers in probes:
            answers = []
            for path in ("/a", "/b"):
                lines = [f"{method} {path} HTTP/{version}", "Host: a", *headers]
                last = "" if headers[:1] == good[:1] else "Connection: close\r\n"
                request = ("\r\n".join(lines) + f"\r\n{last}\r\nx").encode()
                async with asyncio.timeout(20):
                    reader, writer = await front.connect()
                    writer.write(request)
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.transport.abort()
                answers.append([line for line in head.splitlines() if b"Date" not in line])
            assert answers[0] == answers[1], (method, version, headers)
            assert answers[0][0].split()[1] == b"404", (method, version, headers)


async def test_visitors_reach_the_fallback_site(certs: Certs) -> None:
    async def site(connection: Tcp) -> None:
        request = await connection.until(b"\r\n\r\n")
        await connection.send(b"HTTP/1.0 200 OK\r\n\r\n" + request)

    async with (
        serving(site) as there,
        serving(echo) as destination,
        multi_user_server(
            certs, fallback=f"127.0.0.1:{there.port}", **{"disable-tls": True}
        ) as (server, panel),
    ):
        await panel.add("/a", destination.port)
        for path in (b"/a", b"/b"):
            request = b"GET " + path + b" HTTP/1.0\r\nHost: any\r\n\r\n"
            answer = await Panel(server.addresses[0]).exchange(request)
            assert answer == b"HTTP/1.0 200 OK\r\n\r\n" + request
        async with await connect(port_of(server)) as application:
            await application.send(handshake(WSS[0])[0].replace(b"GET / ", b"GET /a "))
            assert (await application.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


@in_both_modes
async def test_changes_leave_established_connections_alone(mode: str, certs: Certs) -> None:
    async with (
        answering(b"A") as first,
        answering(b"B") as second,
        multi_user_server(certs) as (server, panel),
        client(mode, server, certs, "/a") as port,
    ):
        await panel.add("/a", first.port)
        async with await connect(port) as before:
            assert await before.exactly(1) == b"A"
            await panel.add("/a", second.port)
            async with await connect(port) as after:
                assert await after.exactly(1) == b"B"
            for opt in (2, 3):
                await panel.add("/a", first.port)
                assert await panel.command(opt, {"path": "/a"}) == {"res": 1}
                await before.check_echo(b"still")
                async with await connect(port) as late:  # even on the same mux session
                    await ended(late)


@in_both_modes
@pytest.mark.parametrize("opt", [2, 3])
async def test_disconnect(mode: str, opt: int, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        multi_user_server(certs) as (server, panel),
        client(mode, server, certs, "/a") as port,
        client(mode, server, certs, "/b") as other,
    ):
        await panel.add("/a", there.port)
        await panel.add("/b", there.port)
        async with await connect(port) as application, await connect(other) as neighbour:
            for end in (application, neighbour):
                await end.check_echo()
            assert await panel.command(opt, {"path": "/a"}, disconnect=True) == {"res": 1}
            await ended(application)
            await eventually(lambda: "/a" not in server._users._live)
            if opt == 2:
                await neighbour.check_echo(b"y")
            else:
                await ended(neighbour)


async def test_disconnect_of_a_user_deleted_before(certs: Certs) -> None:
    async with one_user("wss", certs) as (_, panel, port), await connect(port) as application:
        await application.check_echo()
        await panel.command(2, {"path": "/a"})
        await panel.command(2, {"path": "/a"}, disconnect=True)
        await ended(application)


async def test_disconnect_while_the_destination_is_dialled(certs: Certs) -> None:
    with black_hole() as (_, port):
        async with multi_user_server(certs) as (server, panel):
            await panel.add("/a", port)
            async with (
                client("wss", server, certs, "/a") as local,
                await connect(local) as application,
            ):
                await eventually(lambda: server._users.tunnels_open == 1)
                await panel.command(3, disconnect=True)
                await ended(application)


@in_both_modes
async def test_dead_destination_does_not_affect_other_users(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than any test: one that waits for it fails.
    monkeypatch.setattr(server_module, "DESTINATION_TIME", 600.0)
    with black_hole() as (_, silent), contextlib.ExitStack() as stack:
        async with (
            serving(echo) as there,
            multi_user_server(certs) as (server, panel),
            client(mode, server, certs, "/dead") as dead,
            client(mode, server, certs, "/alive") as alive,
        ):
            await panel.add("/dead", silent)
            await panel.add("/alive", there.port)
            for _ in range(10):
                stack.callback((await connect(dead)).close)
            await eventually(lambda: server._users.tunnels_open == 10)
            await check_works(alive)
            assert len(server._users._live["/dead"].tunnels) == 10
            assert server._events.dial_failures == 0


@in_both_modes
async def test_dead_destination_times_out(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "DESTINATION_TIME", 0.2)
    with black_hole() as (_, silent), logged() as lines:
        async with (
            multi_user_server(certs) as (server, panel),
            client(mode, server, certs, "/dead") as dead,
            contextlib.AsyncExitStack() as stack,
        ):
            await panel.add("/dead", silent)
            for application in [
                await stack.enter_async_context(await connect(dead)) for _ in range(10)
            ]:
                await ended(application)
            assert server._events.dial_failures == 10
            await eventually(lambda: not server._users.tunnels_open)
    assert any("no answer within 0.2 s" in line for line in lines)
    assert not any("/dead" in line for line in lines)


async def test_a_refused_destination(certs: Certs) -> None:
    async with (
        multi_user_server(certs) as (server, panel),
        client("wss", server, certs, "/a") as port,
    ):
        await panel.add("/a", 1)
        async with await connect(port) as application:
            await ended(application)
        await eventually(lambda: not server._users._live)
