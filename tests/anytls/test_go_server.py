"""Our AnyTLS client with servers that do not know half-close."""

from __future__ import annotations

import asyncio
import os

import pytest

from anytls.client import Client
from tests.anytls.proxying import client_for, through
from tests.proxy.test_association import Udp
from tests.proxy.test_association import ask as ask_packets
from tests.support.anytlspeer import PASSWORD, address, datagram
from tests.support.anytlsserver import Stream, anytls_go_server
from tests.support.certs import Certs
from tests.support.metrics import numbers
from tests.support.tunnels import (
    SOON,
    Tcp,
    client_of,
    connect,
    eventually,
    listening,
    port_of,
    serving,
)

REQUESTS = 20


async def answer(connection: Tcp) -> None:
    """A destination that answers requests and leaves it to the client to end."""
    while await connection.until(b"?"):
        await connection.send(b"yes.")


async def ask(client: Client, port: int) -> None:
    async with through(client, port) as application:
        await application.send(b"really?")
        assert await application.exactly(4) == b"yes."


async def test_sequential_requests_share_a_session(certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        serving(answer) as there,
        anytls_go_server(certs) as server,
        client_for(certs, server.port) as client,
    ):
        for _ in range(REQUESTS):
            await ask(client, there.port)
        assert sum(session.opened for session in server.sessions) == REQUESTS
        assert len(server.sessions) <= 3


async def test_sequential_requests_through_a_tunnel_share_a_session(certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        serving(answer) as there,
        anytls_go_server(certs, destination=there.port) as server,
        client_of("anytls", server.port, certs, p=PASSWORD) as client,
    ):
        for _ in range(REQUESTS):
            async with await connect(port_of(client)) as application:
                await application.send(b"really?")
                assert await application.exactly(4) == b"yes."
        await eventually(lambda: sum(each.opened for each in server.sessions) == REQUESTS)
        assert len(server.sessions) <= 3


async def test_stream_with_reply_due_keeps_its_session(certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        listening() as there,
        anytls_go_server(certs) as server,
        client_for(certs, server.port) as client,
        through(client, there.port) as first,
    ):
        destination = await there.accept()
        await first.send(b"all of it?")
        await first.finish()
        assert await destination.exactly(10) == b"all of it?"
        async with through(client, there.port):
            assert len(server.sessions) == 2
        await destination.send(b"reply")
        assert await first.exactly(5) == b"reply"


async def test_large_reply_to_a_half_closed_application_is_complete(certs: Certs) -> None:
    data = os.urandom(20_000_000)
    async with (
        asyncio.timeout(30),
        listening() as there,
        anytls_go_server(certs) as server,
        client_for(certs, server.port) as client,
        through(client, there.port) as application,
    ):
        destination = await there.accept()
        await application.send(b"all of it?")
        await application.finish()
        assert await destination.exactly(10) == b"all of it?"
        received = asyncio.ensure_future(application.rest())
        await destination.send(data)
        destination.close()
        assert await received == data


# Datagrams: one that a Go server cannot send ends the association, with all that is in it.

REQUEST = b"\0" + address("0.0.0.0", 0)
FIT = datagram("192.0.2.1", 53, b"y" * 16384)


@pytest.mark.parametrize(
    ("host", "port", "size"),
    [
        ("192.0.2.1", 53, 16385),
        ("192.0.2.1", 0, 1),
        ("name.test", 0, 1),
        ("0.0.0.0", 53, 1),
        ("255.255.255.255", 67, 1),
        ("240.0.0.1", 53, 1),
        ("239.255.255.250", 1900, 1),
        ("::", 53, 1),
        ("fe80::1", 53, 1),
        ("ff02::fb", 5353, 1),
        ("no_name-.test", 53, 1),
        ("x" * 64 + ".test", 53, 1),
        ("1.2.3", 53, 1),
        ("two..dots", 53, 1),
    ],
)
async def test_datagrams_that_go_servers_cannot_send_are_dropped(
    host: str, port: int, size: int, certs: Certs
) -> None:
    async with (
        asyncio.timeout(SOON),
        anytls_go_server(certs) as server,
        client_for(certs, server.port) as client,
        await connect(port_of(client)) as control,
    ):
        there = await ask_packets(control)
        with Udp() as application:
            application.send(b"\0\0\0" + address(host, port) + bytes(size), there)
            application.send(b"\0\0\0" + address("192.0.2.1", 53) + b"y" * 16384, there)
            await eventually(lambda: server.sessions[0].packets)
            stream = server.sessions[0].packets[0]
            assert await stream.exactly(len(REQUEST + FIT)) == REQUEST + FIT


async def test_server_without_ipv6_ends_only_what_is_for_ipv6(certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        anytls_go_server(certs) as server,
        client_for(certs, server.port) as client,
        await connect(port_of(client)) as control,
    ):
        there = await ask_packets(control)

        def streams() -> list[Stream]:
            return [stream for session in server.sessions for stream in session.packets]

        with Udp() as application:
            by_ipv6 = b"\0\0\0" + address("2001:db8::1", 53) + b"lost"
            application.send(by_ipv6, there)
            await eventually(lambda: len(streams()) == 2)
            first, second = streams()
            wire = REQUEST + datagram("2001:db8::1", 53, b"lost")
            assert await second.exactly(len(wire)) == wire
            second.close()
            for _ in range(3):
                application.send(by_ipv6, there)
            application.send(b"\0\0\0" + address("192.0.2.1", 53) + b"y" * 16384, there)
            assert await first.exactly(len(REQUEST + FIT)) == REQUEST + FIT
            assert len(streams()) == 2
            assert numbers(client)["anytls_udp_associations"] == 1
