"""UDP of several users: each to its own destination, under its limits."""

from __future__ import annotations

import asyncio
import time

from tests.mu.panel import multi_user_server
from tests.mu.users import client, empty, in_both_modes
from tests.support.certs import Certs
from tests.support.metrics import numbers
from tests.support.tunnels import SOON, check_works, echo, eventually, logged, serving
from tests.udp.peers import Udp, answering


@in_both_modes
async def test_each_user_reaches_its_destination(mode: str, certs: Certs) -> None:
    async with (
        asyncio.timeout(2 * SOON),
        multi_user_server(certs, udp=True) as (server, panel),
        client(mode, server, certs, "/one", udp=True) as one,
        client(mode, server, certs, "/two", udp=True) as two,
    ):
        with (
            answering(lambda payload: b"A" + payload) as first,
            answering(lambda payload: b"B" + payload) as second,
        ):
            await panel.add("/one", first.port)
            await panel.add("/two", second.port)
            for port, name in ((one, b"A"), (two, b"B")):
                with Udp(port) as application:
                    application.send(b"hello")
                    assert await application.receive() == name + b"hello"
            used = await panel.statistics("/one")
            assert (used["bytes_up"], used["bytes_down"]) == (5, 6)
            assert (used["total_conns"], used["open_conns"]) == (1, 1)
            assert numbers(server)["udp_flows"] == 2
    await eventually(lambda: empty(server))


async def test_users_without_udp_on_the_server(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        multi_user_server(certs) as (server, panel),
        client("wss", server, certs, "/a", udp=True) as port,
    ):
        await panel.add("/a", there.port)
        with Udp(port) as application, logged() as lines:
            application.send(b"x")
            await eventually(lambda: any("start it with -udp" in line for line in lines))
        await check_works(port)


async def test_link_counts_towards_the_users_limit(certs: Certs) -> None:
    async with (
        asyncio.timeout(2 * SOON),
        multi_user_server(certs, udp=True) as (server, panel),
        client("wss", server, certs, "/a", udp=True) as one,
        client("wss", server, certs, "/a", udp=True) as two,
    ):
        with answering() as there, Udp(one) as first, Udp(two) as second, logged() as lines:
            await panel.add("/a", there.port, max_conns=1)
            await first.check_echo()
            second.send(b"x")
            await eventually(lambda: any("404" in line for line in lines))
            assert (await panel.statistics("/a"))["open_conns"] == 1


async def test_link_may_be_the_last_connection_of_max_conns(certs: Certs) -> None:
    async with (
        asyncio.timeout(2 * SOON),
        multi_user_server(certs, udp=True, **{"max-conns": 1}) as (server, panel),
        client("wss", server, certs, "/a", udp=True) as one,
        client("wss", server, certs, "/a", udp=True) as two,
    ):
        with answering() as there, Udp(one) as first, Udp(two) as second:
            await panel.add("/a", there.port)
            await first.check_echo()
            second.send(b"x")
            await eventually(lambda: server.open_tunnels.admission.refused)
            await first.check_echo()


async def test_removed_user_is_cut(certs: Certs) -> None:
    async with (
        multi_user_server(certs, udp=True) as (server, panel),
        client("wss", server, certs, "/a", udp=True) as port,
    ):
        with answering() as there, Udp(port) as application:
            await panel.add("/a", there.port)
            async with asyncio.timeout(SOON):
                await application.check_echo()
            assert await panel.command(2, {"path": "/a"}, disconnect=True) == {"res": 1}
            await eventually(lambda: not server.tunnels)
            assert numbers(server)["udp_flows"] == 0


async def test_rate_of_a_user(certs: Certs) -> None:
    rate = 400_000
    async with (
        multi_user_server(certs, udp=True) as (server, panel),
        client("wss", server, certs, "/a", udp=True) as port,
    ):
        with answering(lambda payload: payload * 40) as there, Udp(port) as application:
            await panel.add("/a", there.port, rate=rate)
            async with asyncio.timeout(2 * SOON):
                await application.check_echo(b"")
                begin = time.monotonic()
                # 160,000 bytes back: a quarter of a second's at once, the others wait.
                application.send(*[bytes(100)] * 40)
                assert sum(map(len, await application.many(40))) == 160_000
                assert time.monotonic() - begin > 0.1
