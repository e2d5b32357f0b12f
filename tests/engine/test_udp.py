"""UDP through whole tunnels: what applications and destinations see, in every mode."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Sequence

import pytest

from mtt.client import Client
from mtt.errors import StartError
from mtt.layers.base import Data
from mtt.server import Server
from mtt.udp import port
from mtt.wire.datagrams import HEAD, MAX_DATAGRAM
from tests.support.certs import Certs
from tests.support.garbage import collector_off
from tests.support.gopeer import tls_connect
from tests.support.goserver import go_server
from tests.support.loopback import needs_ipv6
from tests.support.metrics import numbers
from tests.support.processes import free_port
from tests.support.tunnels import (
    GO_MODES,
    SOON,
    both_ends,
    check_works,
    client_of,
    connect,
    echo,
    eventually,
    in_every_mode,
    listening,
    logged,
    maybe_reset,
    port_of,
    server_at,
    serving,
    settled,
)
from tests.udp.peers import Udp, answering

SIZES = (0, 1, 2, 511, 512, 1200, 1472, 1473, 9000, 16384, 40_000, MAX_DATAGRAM)


@contextlib.asynccontextmanager
async def both_kinds(
    mode: str, certs: Certs, **options: object
) -> AsyncIterator[tuple[Server, Client]]:
    """Both ends with -udp, and a destination that echoes TCP and UDP on one port."""
    async with serving(echo) as there:
        with answering(port=there.port):
            async with both_ends(mode, there.port, certs, udp=True, **options) as ends:
                yield ends


@in_every_mode
async def test_datagrams_of_every_size_both_ways(mode: str, certs: Certs) -> None:
    async with asyncio.timeout(SOON), both_kinds(mode, certs) as (_, client):
        with Udp(port_of(client)) as application:
            for size in SIZES:
                await application.check_echo(random.Random(size).randbytes(size))


@in_every_mode
async def test_flows_do_not_mix_and_keep_their_order(mode: str, certs: Certs) -> None:
    async with asyncio.timeout(SOON), both_kinds(mode, certs) as (server, client):
        with contextlib.ExitStack() as stack:
            applications = [stack.enter_context(Udp(port_of(client))) for _ in range(5)]
            sent = {
                application: [b"%d of %d" % (number, application.port) for number in range(30)]
                for application in applications
            }
            await applications[0].check_echo()  # the link is open
            for number in range(30):
                for application in applications:
                    application.send(sent[application][number])
            for application in applications:
                assert await application.many(30) == sent[application]
        assert numbers(server)["udp_flows"] == numbers(client)["udp_flows"] == 5
        assert client.tunnels == server.tunnels == 1


@in_every_mode
async def test_tcp_and_udp_on_one_port(mode: str, certs: Certs) -> None:
    async with asyncio.timeout(SOON), both_kinds(mode, certs) as (_, client):
        with Udp(port_of(client)) as application:
            await application.check_echo(b"over UDP")
            await check_works(port_of(client), b"over TCP")
            await application.check_echo(b"over UDP again")


@in_every_mode
async def test_destination_may_still_speak_first(mode: str, certs: Certs) -> None:
    """A server with -udp does not wait for the first bytes of ordinary clients."""
    async with (
        listening() as there,
        server_at(mode, there.port, certs, udp=True) as server,
        client_of(mode, port_of(server), certs) as client,
        asyncio.timeout(SOON),
        await connect(port_of(client)) as application,
    ):
        destination = await there.accept()
        await destination.send(b"220 welcome\r\n")
        assert await application.exactly(13) == b"220 welcome\r\n"


@in_every_mode
async def test_server_without_udp_delivers_nothing(mode: str, certs: Certs) -> None:
    async with (
        listening() as there,
        server_at(mode, there.port, certs) as server,
        client_of(mode, port_of(server), certs, udp=True) as client,
    ):
        with Udp(own=there.port) as udp, Udp(port_of(client)) as application, logged() as lines:
            application.send(b"secret")
            await eventually(lambda: numbers(client)['udp_dropped_total{cause="no_connection"}'])
            said = [line for line in lines if "start it with -udp" in line or "not allowed" in line]
            assert len(said) == 1, lines
            if not mode.startswith(("wss", "v2ray")):  # with WebSocket the server cannot know
                assert any("a client with -udp" in line for line in lines)
            await eventually(lambda: not server.tunnels)
            with pytest.raises(BlockingIOError):
                udp.sock.recv(1)
            with contextlib.suppress(BlockingIOError):  # it may have dialled, for nothing
                sock, _ = there.sock.accept()
                with sock, maybe_reset():
                    assert sock.recv(1) == b""


@pytest.mark.parametrize("mode", [mode for mode in GO_MODES if mode != "mux"])
async def test_go_server_gets_no_datagram(mode: str, certs: Certs) -> None:
    async with (
        listening() as there,
        go_server(mode, there.port, certs) as go,
        client_of(mode, go.port, certs, udp=True) as client,
    ):
        with Udp(port_of(client)) as application, logged() as lines:
            application.send(b"secret")
            if mode == "tls":  # nothing but the answer can tell this client that it is a Go server
                destination = await there.accept()
                assert await destination.exactly(len(HEAD)) == HEAD
                destination.close()
            await eventually(lambda: numbers(client)['udp_dropped_total{cause="no_connection"}'])
            await eventually(lambda: any("start it with -udp" in line for line in lines))
            if mode != "tls":
                assert not there.count


@pytest.mark.parametrize("mode", ["wss", "anytls"])
async def test_udp_beside_a_fallback_site(mode: str, certs: Certs) -> None:
    async with serving(echo) as site, asyncio.timeout(SOON):
        with answering() as there:
            async with (
                server_at(
                    mode, there.port, certs, udp=True, fallback=f"127.0.0.1:{site.port}"
                ) as server,
                client_of(mode, port_of(server), certs, udp=True) as client,
            ):
                with Udp(port_of(client)) as application:
                    await application.check_echo(b"a datagram")
        assert not site.count


async def test_client_that_offers_http_alone_is_served(certs: Certs) -> None:
    """Its ALPN name is that of streams for datagrams, and its data are not."""
    async with (
        serving(echo) as there,
        server_at("tls", there.port, certs, udp=True) as server,
        await tls_connect(port_of(server), certs, alpn=["http/1.1"]) as client,
    ):
        await client.check_echo(b"GET / HTTP/1.1\r\n\r\n")


@in_every_mode
async def test_flows_go_on_after_a_server_restart(mode: str, certs: Certs) -> None:
    async with contextlib.AsyncExitStack() as stack:
        there = stack.enter_context(answering())
        async with server_at(mode, there.port, certs, udp=True) as server:
            address = server.addresses[0]
            client = await stack.enter_async_context(
                client_of(mode, port_of(server), certs, udp=True)
            )
            application = stack.enter_context(Udp(port_of(client)))
            await application.check_echo(b"1")
        await eventually(lambda: not client.tunnels)
        async with server_at(mode, there.port, certs, udp=True, b=address), asyncio.timeout(SOON):
            await application.check_echo(b"2")


@in_every_mode
async def test_draining_either_end_ends_its_link(mode: str, certs: Certs) -> None:
    async with both_kinds(mode, certs) as (server, client):
        with Udp(port_of(client)) as application:
            await application.check_echo()
            async with asyncio.timeout(SOON):
                await server.drain()
            await eventually(lambda: not client.tunnels)
    async with both_kinds(mode, certs) as (server, client):
        with Udp(port_of(client)) as application:
            await application.check_echo()
            async with asyncio.timeout(SOON):
                await client.drain()
            await eventually(lambda: not server.tunnels)


@in_every_mode
async def test_bytes_and_datagrams_are_counted(mode: str, certs: Certs) -> None:
    async with both_kinds(mode, certs) as (server, client):
        with Udp(port_of(client)) as application:
            await application.check_echo(bytes(1000))
            await application.check_echo(bytes(500))
        for service in (server, client):
            found = numbers(service)
            for direction in ("up", "down"):
                assert found[f'transferred_bytes_total{{direction="{direction}"}}'] == 1500
                assert found[f'udp_datagrams_total{{direction="{direction}"}}'] == 2


@in_every_mode
async def test_no_reference_cycles_remain(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(port, "MIN_LIFETIME", 0.0)  # no wait between links
    async with both_kinds(mode, certs) as (server, client):
        with collector_off() as left:
            for _ in range(3):
                with Udp(port_of(client)) as application:
                    await application.check_echo()
                assert server._udp is not None
                server._udp.close()
                await eventually(lambda: not client.tunnels and not server.tunnels)
                await settled()
        assert not left


async def test_services_without_udp_have_no_part_of_it(certs: Certs) -> None:
    async with listening() as there, both_ends("tls", there.port, certs) as (server, client):
        assert server._udp is None
        assert client._udp is None
        assert "udp" not in client.metrics_page() + server.metrics_page()
        with Udp(port_of(client)) as application, pytest.raises(ConnectionRefusedError):
            application.send(b"x")
            application.send(b"y")


@needs_ipv6
async def test_ipv6_application_and_destination(certs: Certs) -> None:
    with Udp(host="::1") as there:
        async with (
            server_at("tls", 1, certs, udp=True, d=f"[::1]:{there.port}") as server,
            client_of("tls", port_of(server), certs, udp=True, b="[::1]:0") as client,
            asyncio.timeout(SOON),
        ):
            with Udp(port_of(client), "::1") as application:
                application.send(b"question")
                payload, source = await there.receive_from()
                there.sock.sendto(payload.upper(), source)
                assert await application.receive() == b"QUESTION"


async def test_port_in_use_for_udp_is_named(certs: Certs) -> None:
    async with listening() as there, server_at("tls", there.port, certs, udp=True) as server:
        address = f"127.0.0.1:{free_port()}"
        with (
            Udp(own=int(address.rpartition(":")[2])),
            pytest.raises(StartError, match=rf"UDP {address}: address already in use"),
        ):
            async with client_of("tls", port_of(server), certs, udp=True, b=address):
                pass


@in_every_mode
async def test_tcp_after_udp_is_not_taken_for_it(mode: str, certs: Certs) -> None:
    async with listening() as there, both_ends(mode, there.port, certs, udp=True) as (_, client):
        with answering(port=there.port), Udp(port_of(client)) as datagrams:
            async with asyncio.timeout(SOON):
                await datagrams.check_echo()
                async with await connect(port_of(client)) as application:
                    await (await there.accept()).send(b"220 welcome\r\n")
                    assert await application.exactly(13) == b"220 welcome\r\n"


@in_every_mode
async def test_blocked_link_drops_old_datagrams_and_keeps_order(
    mode: str, certs: Certs, small_buffers: None
) -> None:
    async with both_kinds(mode, certs) as (server, client):
        with Udp(port_of(client)) as application:
            await application.check_echo(bytes(4))
            assert server._udp is not None
            (served,) = server._udp._clients
            found: list[int] = []

            def deliver(datagrams: Sequence[tuple[int, Data]]) -> int:
                found.extend(int.from_bytes(payload) for _, payload in datagrams)
                return len(datagrams)

            served.deliver = deliver  # type: ignore[method-assign]
            served.link.lower.pause_reading()
            assert client._udp is not None
            counters = client._udp.counters
            sent = before = counters.sent

            def all_read() -> bool:
                return counters.sent == sent

            while not counters.dropped_full:
                for _ in range(20):  # fewer than what the port's socket holds
                    sent += 1
                    application.send(sent.to_bytes(1200, "big"))
                await eventually(all_read)
            served.link.lower.resume_reading()
            await eventually(lambda: found[-1:] == [sent])
            assert found == sorted(set(found))
            assert len(found) == sent - before - counters.dropped_full
