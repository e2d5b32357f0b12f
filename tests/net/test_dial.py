"""Dialling: names, several addresses, what is reported, deadlines, options of sockets."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from typing import Any

import pytest

from mtt.address import Endpoint
from mtt.errors import NetworkError
from mtt.layers.base import StreamProtocol
from mtt.net import dial
from mtt.net.dial import TCP_FASTOPEN_CONNECT, Dialer
from mtt.net.resolve import Resolver
from mtt.net.sockets import KEEPALIVE_IDLE
from mtt.outcome import Outcome
from tests.net.dialing import FixedResolver, Holder, connect
from tests.support.loopback import black_hole, linux_only, listening

# Seconds; longer than any test: one that waits for it fails.
NEVER = 600.0


class Counting(StreamProtocol):
    made = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        Counting.made += 1


async def test_literal_makes_no_task_and_tunes_the_socket(monkeypatch):
    with listening() as server:
        endpoint = Endpoint(("127.0.0.1",), server.getsockname()[1])
        monkeypatch.setattr(Counting, "made", 0)
        monkeypatch.setattr(asyncio, "create_task", lambda coro: pytest.fail("made a task"))
        transport = await Dialer(Resolver()).connect(endpoint, Counting)
        assert Counting.made == 1
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_IDLE
        transport.abort()


async def test_ipv6_literal():
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 on loopback: {error}")
    with server:
        endpoint = Endpoint(("::1",), server.getsockname()[1])
        assert (await connect(Dialer(Resolver()), endpoint))[0] == "::1"


async def test_name_through_the_real_resolver():
    with listening() as server:  # IPv4 only: ::1 is refused where localhost has it
        endpoint = Endpoint(("localhost",), server.getsockname()[1])
        assert await connect(Dialer(Resolver()), endpoint) == server.getsockname()
        empty = Endpoint(("",), endpoint.port)
        assert await connect(Dialer(Resolver()), empty) == server.getsockname()


async def test_refused_connection_is_reported_and_forgotten(refused_port):
    resolver = FixedResolver({"a.example": [("127.0.0.1", refused_port)]})
    with pytest.raises(NetworkError) as caught:
        await connect(Dialer(resolver), Endpoint(("a.example",), refused_port))
    assert str(caught.value) == f"cannot connect to a.example:{refused_port}: connection refused"
    assert caught.value.outcome is Outcome.CONNECTION_REFUSED
    assert resolver.forgotten == ["a.example"]


async def test_every_distinct_reason_is_reported_once(refused_port):
    first, second, third = ((f"127.0.0.{number}", refused_port) for number in (1, 2, 3))
    resolver = FixedResolver({"a": [first, second], "b": None, "c": [third]})
    reasons = iter([errno.ENETUNREACH, errno.ENETUNREACH, errno.EHOSTUNREACH])

    async def protect(sock: socket.socket) -> None:
        raise OSError(next(reasons), "whatever")

    with pytest.raises(NetworkError) as caught:
        await connect(Dialer(resolver, protect=protect), Endpoint(("a", "b", "c"), refused_port))
    assert str(caught.value) == (
        f"cannot connect to a|b|c:{refused_port}: "
        "cannot resolve b: no; network is unreachable; no route to host"
    )
    assert caught.value.outcome is Outcome.NETWORK_UNREACHABLE
    assert resolver.forgotten == ["a", "b", "c"]


async def test_kernel_timeout_differs_from_own_deadline():
    async def protect(sock: socket.socket) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "Connect call failed")

    with pytest.raises(NetworkError, match=r":1: connection timed out$") as caught:
        await connect(Dialer(Resolver(), protect=protect), Endpoint(("127.0.0.1",), 1))
    assert caught.value.outcome is Outcome.TIMED_OUT


async def test_all_unresolved_hosts_are_reported():
    words = r"cannot resolve a: no; cannot resolve b: no$"
    with pytest.raises(NetworkError, match=words) as caught:
        await connect(Dialer(FixedResolver({"a": None, "b": None})), Endpoint(("a", "b"), 1))
    assert caught.value.outcome is Outcome.HOST_UNREACHABLE


async def test_second_host_serves_when_the_first_does_not():
    with listening() as server:
        resolver = FixedResolver({"a": None, "b": [server.getsockname()]})
        assert await connect(Dialer(resolver), Endpoint(("a", "b"), 1)) == server.getsockname()


async def test_failure_starts_the_next_attempt_at_once(refused_port, monkeypatch):
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 60.0)
    with listening() as server:
        dead = [(f"127.0.0.{number}", refused_port) for number in (1, 2, 3)]
        resolver = FixedResolver({"a": [*dead, server.getsockname()]})
        assert await connect(Dialer(resolver), Endpoint(("a",), 1)) == server.getsockname()


async def test_black_hole_costs_one_delay_and_is_avoided_afterwards(monkeypatch):
    with black_hole() as hole, listening() as server:
        resolver = FixedResolver({"a": [hole, server.getsockname()]})
        dialer = Dialer(resolver, timeout=NEVER)
        started = time.monotonic()
        # What waits for the black hole itself waits as long as its timeout.
        assert await connect(dialer, Endpoint(("a",), 1)) == server.getsockname()
        assert time.monotonic() - started > dial.ATTEMPT_DELAY * 0.9
        # What tries it first waits as long as this.
        monkeypatch.setattr(dial, "ATTEMPT_DELAY", NEVER)
        assert await connect(dialer, Endpoint(("a",), 1)) == server.getsockname()


async def test_favourite_expires_and_falls_with_a_failure(refused_port, monkeypatch):
    ahead = 0.0
    monkeypatch.setattr(dial, "monotonic", lambda: time.monotonic() + ahead)
    endpoint = Endpoint(("a",), 1)
    with listening(port=refused_port) as server, listening("127.0.0.2") as second:
        order = FixedResolver({"a": [("127.0.0.3", refused_port), server.getsockname()]})
        dialer = Dialer(order)
        assert await connect(dialer, endpoint) == server.getsockname()
        order.names["a"] = [second.getsockname(), server.getsockname()]
        assert await connect(dialer, endpoint) == server.getsockname()
        ahead = dial.FAVOURITE_TTL
        assert await connect(dialer, endpoint) == second.getsockname()
        order.names["a"] = [("127.0.0.3", refused_port), server.getsockname()]
        assert await connect(dialer, endpoint) == server.getsockname()
    with pytest.raises(NetworkError):
        await connect(dialer, endpoint)
    with listening(port=refused_port) as server, listening("127.0.0.2") as second:
        order.names["a"] = [second.getsockname(), server.getsockname()]
        assert await connect(dialer, endpoint) == second.getsockname()


async def test_favourites_are_bounded(refused_port, monkeypatch):
    monkeypatch.setattr(dial, "MAX_FAVOURITES", 2)
    with listening() as server, listening("127.0.0.2") as second:
        resolver = FixedResolver({"a": [("127.0.0.2", refused_port), server.getsockname()]})
        dialer = Dialer(resolver)
        for number in range(4):
            await connect(dialer, Endpoint(("a",), number))
        resolver.names["a"] = [second.getsockname(), server.getsockname()]
        for number, first in ((3, server), (2, server), (1, second), (0, second)):
            assert await connect(dialer, Endpoint(("a",), number)) == first.getsockname()


async def test_overall_deadline_closes_all_attempts(refused_port, monkeypatch):
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 0.01)
    holder = Holder(held=2)
    addresses = [(f"127.0.0.{number}", refused_port) for number in (1, 2, 3)]
    resolver = FixedResolver({"a": addresses})
    with pytest.raises(NetworkError) as caught:
        await connect(Dialer(resolver, timeout=0.1, protect=holder), Endpoint(("a",), refused_port))
    reason = "connection refused; no answer within 0.1 s"
    assert str(caught.value) == f"cannot connect to a:{refused_port}: {reason}"
    assert caught.value.outcome is Outcome.TIMED_OUT
    assert len(holder.sockets) == 3
    assert holder.all_closed()


async def test_deadline_against_a_silent_address():
    with black_hole() as hole:
        endpoint = Endpoint(("127.0.0.1",), hole[1])
        with pytest.raises(NetworkError, match=r"no answer within 0\.05 s$") as caught:
            await connect(Dialer(Resolver(), timeout=0.05), endpoint)
        assert caught.value.outcome is Outcome.TIMED_OUT


async def test_protect_runs_before_connect_and_may_refuse():
    async def protect(sock: socket.socket) -> None:
        with pytest.raises(OSError):
            sock.getpeername()
        raise NetworkError("the VPN refuses the socket")

    with listening() as server:
        endpoint = Endpoint(("127.0.0.1",), server.getsockname()[1])
        with pytest.raises(NetworkError, match=r"the VPN refuses the socket$"):
            await connect(Dialer(Resolver(), protect=protect), endpoint)


@linux_only
async def test_fast_open_is_set_and_data_arrives():
    received = asyncio.get_running_loop().create_future()
    accepted: asyncio.Queue[Any] = asyncio.Queue()

    class Server(StreamProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            accepted.put_nowait(transport)

        def data_received(self, data: bytes) -> None:
            received.set_result(data)
            self.transport.close()

    with socket.socket() as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        except OSError as error:
            pytest.skip(f"no TCP fast open here: {error}")
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    endpoint = Endpoint(("127.0.0.1",), server.sockets[0].getsockname()[1])
    transport = await Dialer(Resolver(), fast_open=True).connect(endpoint, StreamProtocol)
    sock = transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT) == 1
    transport.write(b"hello")
    assert await received == b"hello"
    transport.close()
    plain = await Dialer(Resolver()).connect(endpoint, StreamProtocol)
    sock = plain.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT) == 0
    plain.abort()
    for _ in range(2):
        (await accepted.get()).close()
    server.close()
    await server.wait_closed()


async def test_fast_open_that_is_missing_warns_once(monkeypatch, caplog):
    monkeypatch.setattr(dial, "TCP_FASTOPEN_CONNECT", 9999)
    with listening() as server, caplog.at_level(logging.WARNING, "mtt"):
        endpoint = Endpoint(("127.0.0.1",), server.getsockname()[1])
        dialer = Dialer(Resolver(), fast_open=True)
        for _ in range(2):
            assert await connect(dialer, endpoint) == server.getsockname()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "without TCP fast open" in caplog.text
