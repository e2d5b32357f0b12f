"""The server's end of UDP: a socket for each flow, ICMP errors, names, limits, and ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt.address import Endpoint
from mtt.errors import NetworkError
from mtt.layers.parked import Parked
from mtt.net.resolve import Address, Resolver
from mtt.observe.metrics import Counters
from mtt.tunnels.open_tunnels import OpenTunnels
from mtt.udp import flows, forwarder, sockets
from mtt.udp.forwarder import EMPTY_TIME, UdpForwarder
from mtt.udp.queues import MAX_QUEUES
from mtt.wire.datagrams import ANSWER, HEAD, MAX_DATAGRAM, PING, Decoder, encode
from tests.support.clock import Clock
from tests.support.loopback import linux_only, needs_ipv6
from tests.support.transports import FakeTransport, turns
from tests.support.tunnels import eventually, logged
from tests.udp.peers import Udp, answering

HERE = "127.0.0.1"


class Names(Resolver):
    """A resolver that knows what a test tells it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[Address] = []
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def resolve(self, host: str, port: int) -> list[Address]:
        self.asked += 1
        await self.may_answer.wait()
        if not self.addresses:
            raise NetworkError(f"{host}: no such host")
        return [(family, (rest[0], port, *rest[2:])) for family, rest in self.addresses]


class Client:
    """A client's link: what it sends, and what it gets."""

    def __init__(self) -> None:
        self.stream = FakeTransport(Parked())
        self.stream.get_protocol().transport = self.stream

    def send(self, *datagrams: tuple[int, bytes], opens: bool = False) -> None:
        data = b"".join(encode(*datagram) for datagram in datagrams)
        self.stream.upper.data_received(HEAD + data if opens else data)

    def datagrams(self) -> list[tuple[int, bytes]]:
        assert self.stream.sent[:16] == ANSWER
        return [(flow, bytes(each)) for flow, each in Decoder().feed(self.stream.sent[16:])]

    async def received(self, count: int) -> list[tuple[int, bytes]]:
        await eventually(lambda: len(self.datagrams()) >= count)
        return self.datagrams()


class Scene:
    def __init__(self, idle_time: float, max_conns: int) -> None:
        self.names = Names()
        self.tunnels = OpenTunnels(Counters(), timeout=300, max_conns=max_conns)
        self.forwarder = UdpForwarder(self.names, self.tunnels, idle_time=idle_time)

    def client(self, port: int, *hosts: str) -> Client:
        client = Client()
        self.forwarder.serve(client.stream, Endpoint(hosts or (HERE,), port))
        return client


@contextlib.asynccontextmanager
async def scene(*, idle_time: float = 300, max_conns: int = 0) -> AsyncIterator[Scene]:
    here = Scene(idle_time, max_conns)
    try:
        yield here
    finally:
        await here.tunnels.close()
        await turns()
        assert here.forwarder.flows == 0


async def test_each_flow_has_a_socket_of_its_own() -> None:
    async with scene() as here:
        with Udp() as there:
            client = here.client(there.port)
            client.send((1, b"a"), (2, b"b"), (1, b"c"), opens=True)
            found = [await there.receive_from() for _ in range(3)]
            assert sorted(payload for payload, _ in found) == [b"a", b"b", b"c"]
            sources = dict(found)
            assert sources[b"a"] == sources[b"c"] != sources[b"b"]
            there.sock.sendto(b"to b", sources[b"b"])
            there.sock.sendto(b"", sources[b"a"])
            assert sorted(await client.received(2)) == [(1, b""), (2, b"to b")]
            assert here.forwarder.flows == 2


async def test_ping_is_returned_to_the_client() -> None:
    async with scene() as here:
        with Udp() as there:
            client = here.client(there.port)
            client.send((PING, b""), (PING, b"mark"), (1, b"x"), opens=True)
            assert await there.receive() == b"x"
            assert await client.received(2) == [(PING, b""), (PING, b"mark")]
            assert here.forwarder.flows == 1


async def test_only_the_destination_can_answer() -> None:
    async with scene() as here:
        with Udp() as there, Udp() as stranger:
            client = here.client(there.port)
            client.send((1, b"x"), opens=True)
            _, source = await there.receive_from()
            with contextlib.suppress(ConnectionRefusedError):
                stranger.sock.sendto(b"spoofed", source)
            there.sock.sendto(b"answer", source)
            assert await client.received(1) == [(1, b"answer")]


@linux_only
async def test_refusal_does_not_end_the_flow(refused_udp_port: int) -> None:
    async with scene() as here:
        client = here.client(refused_udp_port)
        with logged() as lines:
            client.send((1, b"1"), opens=True)
            await eventually(lambda: lines)
            assert f"UDP: {HERE}:{refused_udp_port}: connection refused" in lines[0]
            client.send((1, b"2"), (1, b"3"))
            await turns()
        assert here.forwarder.flows == 1
        with Udp(own=refused_udp_port) as there:
            client.send((1, b"4"))
            assert await there.receive() == b"4"
        assert len(lines) == 1


@linux_only
async def test_datagram_after_a_refusal_is_not_lost(refused_udp_port: int) -> None:
    """The system reports the earlier error instead of sending it."""
    async with scene() as here:
        client = here.client(refused_udp_port)
        client.send((1, b"1"), opens=True)
        (flow,) = next(iter(here.forwarder._clients))._flows.values()
        asyncio.get_running_loop().remove_reader(flow.sock)  # only send() sees the error
        with Udp(own=refused_udp_port) as there:
            client.send((1, b"2"))
            assert await there.receive() == b"2"


@linux_only
@needs_ipv6
async def test_next_address_after_a_refusal() -> None:
    async with scene() as here:
        here.names.addresses = [(socket.AF_INET6, ("::1", 0, 0, 0)), (socket.AF_INET, (HERE, 0))]
        with answering() as there:
            client = here.client(there.port, "localhost.test")
            client.send((1, b"1"), opens=True)

            def answered() -> bool:
                client.send((1, b"again"))
                return bool(client.datagrams())

            await eventually(answered)
            client.send((2, b"at once"))
            await eventually(lambda: (2, b"at once") in client.datagrams())


@linux_only
async def test_unreachable_addresses_are_skipped(refused_udp_port: int, monkeypatch: Any) -> None:
    def open_socket(address: Address) -> socket.socket:
        if address[1][0].startswith("192.0.2."):
            raise OSError(errno.ENETUNREACH, "Network is unreachable")
        return sockets.open_socket(address)

    monkeypatch.setattr(forwarder, "open_socket", open_socket)
    async with scene() as here:
        hosts = "192.0.2.1", HERE, "192.0.2.2", "127.0.0.2"
        here.names.addresses = [(socket.AF_INET, (host, 0)) for host in hosts]
        with Udp(host=hosts[-1], own=refused_udp_port) as there, logged() as lines:
            client = here.client(refused_udp_port, "dns.test")
            client.send((1, b"to the second address"), opens=True)
            await eventually(lambda: lines)
            client.send((1, b"to the last one"))
            assert await there.receive() == b"to the last one"
        assert ["connection refused" in line for line in lines] == [True]


async def test_datagrams_wait_for_the_first_lookup() -> None:
    async with scene() as here:
        here.names.may_answer.clear()
        here.names.addresses = [(socket.AF_INET, (HERE, 0))]
        with answering() as there:
            client = here.client(there.port, "dns.test")
            client.send((1, b"1"), (1, b"2"), (2, b"3"), opens=True)
            await turns()
            assert here.forwarder.flows == 0
            here.names.may_answer.set()
            assert sorted(await client.received(3)) == [(1, b"1"), (1, b"2"), (2, b"3")]
            client.send((3, b"4"))
            await client.received(4)
            assert here.names.asked == 1


async def test_failed_lookup_is_logged_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, forwarder)
    async with scene() as here:
        with answering() as there, logged() as lines:
            client = here.client(there.port, "dns.test")
            client.send((1, b"lost"), opens=True)
            await eventually(lambda: lines)
            assert lines[0].endswith("UDP: dns.test: no such host")
            assert here.forwarder.counters.dropped_link == 1
            client.send((1, b"lost"))
            assert here.forwarder.counters.dropped_link == 2
            assert here.names.asked == 1
            await clock.passes(forwarder.LOOKUP_RETRY)
            here.names.addresses = [(socket.AF_INET, (HERE, 0))]
            client.send((1, b"sent"))
            assert await client.received(1) == [(1, b"sent")]


async def test_addresses_are_looked_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, forwarder)
    async with scene() as here:
        here.names.addresses = [(socket.AF_INET, (HERE, 0))]
        with answering() as there:
            client = here.client(there.port, "dns.test")
            client.send((1, b"1"), opens=True)
            await client.received(1)
            await clock.passes(forwarder.LOOKUP_INTERVAL)
            client.send((2, b"2"))
            await client.received(2)  # without a wait
            await eventually(lambda: here.names.asked == 2)


async def test_idle_flows_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, forwarder)
    async with scene(idle_time=120) as here:
        with answering(lambda payload: payload if payload == b"?" else None) as there:
            client = here.client(there.port)
            client.send((1, b"?"), (2, b"."), opens=True)
            await client.received(1)
            await clock.passes(flows.UNANSWERED_TIME + flows.SWEEP_TIME)
            assert here.forwarder.flows == 1
            await clock.passes(120)
            assert here.forwarder.flows == 0
            assert not client.stream.closing
            await clock.passes(EMPTY_TIME + flows.SWEEP_TIME)
            assert client.stream.closing
            assert not client.stream.aborted


async def test_longest_idle_flow_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder, "MAX_FLOWS", 2)
    clock = Clock(monkeypatch, forwarder)
    async with scene() as here:
        with answering() as there:
            client = here.client(there.port)
            for count, number in enumerate((1, 2, 1, 3), 1):
                client.send((number, b"x"), opens=count == 1)
                await client.received(count)
                await clock.passes(1)
            (served,) = here.forwarder._clients
            assert set(served._flows) == {1, 3}


async def test_flood_of_new_flows_begins_a_few_a_turn() -> None:
    count = 3 * flows.FLOWS_A_TURN
    async with scene() as here:
        with Udp() as there:
            client = here.client(there.port)
            client.send(*((number, b"%d" % number) for number in range(1, count + 1)), opens=True)
            assert here.forwarder.flows == flows.FLOWS_A_TURN
            await eventually(lambda: here.forwarder.flows == count)
            found = await there.many(count)
            assert sorted(map(int, found)) == list(range(1, count + 1))
            assert here.forwarder.counters.sent == count


async def test_flows_that_wait_for_the_lookup_are_limited() -> None:
    async with scene() as here:
        here.names.may_answer.clear()
        client = here.client(1, "dns.test")
        count = 2 * MAX_QUEUES
        client.send(*((number, b"x") for number in range(1, count + 1)), opens=True)
        counters = here.forwarder.counters
        await eventually(lambda: counters.sent == count)
        assert counters.dropped_full == count - MAX_QUEUES


async def test_descriptor_reserve_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "first_reserved", lambda: 0)
    async with scene() as here:
        with Udp() as there, logged() as lines:
            client = here.client(there.port)
            client.send((1, b"x"), (2, b"y"), opens=True)
            await turns()
        assert here.forwarder.counters.dropped_link == 2
        assert len(lines) == 1
        assert f"no socket to {HERE}:{there.port}: too many open files" in lines[0]


async def test_links_count_towards_the_limit() -> None:
    async with scene(max_conns=1) as here:
        first, second = here.client(1), here.client(1)
        assert not first.stream.closing
        assert second.stream.aborted


async def test_size_that_the_network_refuses_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(socket.socket):
        def send(self, data: Any, *rest: Any) -> int:
            if len(data) > 1000:
                raise OSError(errno.EMSGSIZE, "Message too long")
            return super().send(data, *rest)

    async with scene() as here:
        monkeypatch.setattr(socket, "socket", Small)
        with answering() as there, logged() as lines:
            client = here.client(there.port)
            client.send((1, bytes(MAX_DATAGRAM)), (1, bytes(1001)), (1, b"x"), opens=True)
            assert await client.received(1) == [(1, b"x")]
        assert here.forwarder.counters.dropped_size == 2
        assert len(lines) == 1
        assert f"a datagram of {MAX_DATAGRAM} bytes was dropped" in lines[0]


async def test_congested_client_loses_datagrams_not_order() -> None:
    async with scene() as here:
        with Udp() as there:
            client = here.client(there.port)
            client.send((1, b"x"), opens=True)
            _, source = await there.receive_from()
            client.stream.upper.pause_writing()
            count = 100
            for number in range(count):
                there.sock.sendto(number.to_bytes(1000, "big"), source)
            counters = here.forwarder.counters
            await eventually(lambda: counters.received == count)
            client.stream.upper.resume_writing()
            found = [int.from_bytes(payload) for _, payload in client.datagrams()]
            assert found == list(range(counters.dropped_full, count))
            assert counters.dropped_full > 0


async def test_end_of_the_link_closes_all_sockets() -> None:
    async with scene() as here:
        with Udp() as there:
            client = here.client(there.port)
            client.send((1, b"x"), (2, b"y"), opens=True)
            await there.many(2)
            client.stream.lose(None)
            await turns()
            assert here.forwarder.flows == 0
            assert not len(here.tunnels)


async def test_close_ends_links_in_order() -> None:
    async with scene() as here:
        with Udp() as there:
            client = here.client(there.port)
            client.send((1, b"x"), opens=True)
            await there.receive()
            here.forwarder.close()
            await turns()
            assert client.stream.closing
            assert not client.stream.aborted


async def test_client_that_is_dead_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, forwarder)
    async with scene() as here:
        client = here.client(1)
        client.send((1, b"x"), opens=True)
        monkeypatch.setattr(forwarder, "silent_seconds", lambda _: forwarder.DEAD_TIME + 1)
        await clock.passes(flows.SWEEP_TIME)
        assert client.stream.aborted


async def test_metrics() -> None:
    async with scene() as here:
        with answering() as there:
            client = here.client(there.port)
            client.send((1, b"1"), (1, b"2"), opens=True)
            await client.received(2)
            page = here.forwarder.metrics()
    assert "mtt_udp_flows 1\n" in page
    assert 'mtt_udp_datagrams_total{direction="up"} 2\n' in page
    assert 'mtt_udp_datagrams_total{direction="down"} 2\n' in page
