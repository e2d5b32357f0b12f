"""Lookups at one DNS server: answers, lost and forged ones, TCP, time."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from mtt.errors import NetworkError
from mtt.net import resolve
from mtt.net.resolve import MAX_STRAYS, MAX_TTL, MIN_TTL, Resolver
from mtt.outcome import Outcome
from tests.net.fake_dns import (
    AAAA,
    V4,
    V6,
    A,
    Clock,
    address,
    alias,
    fake_dns,
    holding,
    qtype,
    reply,
    wire_name,
)


def test_server_is_a_literal():
    with pytest.raises(ValueError, match=r"dns\.example"):
        Resolver(("dns.example", 53))


async def test_a_and_aaaa_are_asked_and_interleaved():
    handler = holding("192.0.2.1", "192.0.2.2", "2001:db8::1")
    async with fake_dns(handler) as server:
        addresses = await Resolver(server.address).resolve("www.example.com", 443)
        assert addresses == [
            (V6, ("2001:db8::1", 443, 0, 0)),
            (V4, ("192.0.2.1", 443)),
            (V4, ("192.0.2.2", 443)),
        ]
        assert sorted(server.seen) == [
            ("www.example.com", A, False),
            ("www.example.com", AAAA, False),
        ]


async def test_international_name_and_alias():
    def handler(query: bytes, over_tcp: bool) -> list[bytes]:
        if qtype(query) == AAAA:
            return [reply(query, alias("b.example"))]
        return [
            reply(query, alias("b.example"), address("192.0.2.1", owner=wire_name("b.example")))
        ]

    async with fake_dns(handler) as server:
        addresses = await Resolver(server.address).resolve("bücher.example", 1)
        assert addresses == [(V4, ("192.0.2.1", 1))]
        assert server.seen[0][0] == "xn--bcher-kva.example"


@pytest.mark.parametrize("ttl", [0, 100, 1 << 30])
async def test_ttl_decides_how_long_answers_are_kept(monkeypatch, ttl):
    kept = min(max(ttl, MIN_TTL), MAX_TTL)
    clock = Clock(monkeypatch)
    async with fake_dns(holding("192.0.2.1", "2001:db8::1", ttl=ttl)) as server:
        resolver = Resolver(server.address)
        await resolver.resolve("a.example", 1)
        clock.ahead += kept - 1
        await resolver.resolve("a.example", 1)
        assert len(server.seen) == 2
        clock.ahead += 1
        await resolver.resolve("a.example", 1)
        assert len(server.seen) == 4


async def test_truncated_answers_are_fetched_over_tcp():
    ips = [f"192.0.2.{i}" for i in range(1, 60)]

    def handler(query: bytes, over_tcp: bool) -> list[bytes]:
        full = holding(*ips)(query, over_tcp)
        return full if over_tcp or qtype(query) == AAAA else [reply(query, truncated=True)]

    async with fake_dns(handler) as server:
        addresses = await Resolver(server.address).resolve("big.example", 1)
        assert [rest[0] for _, rest in addresses] == ips
        assert ("big.example", A, True) in server.seen


@pytest.mark.parametrize(
    ("over_tcp_messages", "words"),
    [
        (lambda query: [], "closed the connection"),
        (lambda query: [reply(query, truncated=True)], "truncated even over TCP"),
        (lambda query: [reply(query, rcode=2)], "failed to look up"),
        (lambda query: [b"junk"], "ends too early"),
    ],
)
async def test_failing_lookup_over_tcp_is_an_error(over_tcp_messages, words):
    def handler(query: bytes, over_tcp: bool) -> list[bytes]:
        return over_tcp_messages(query) if over_tcp else [reply(query, truncated=True)]

    async with fake_dns(handler) as server:
        with pytest.raises(NetworkError, match=words):
            await Resolver(server.address).resolve("big.example", 1)


async def test_strays_are_ignored():
    def handler(query: bytes, over_tcp: bool) -> list[bytes]:
        wrong_id = bytes([query[0] ^ 1]) + query[1:]
        other = query[:12] + wire_name("evil.example") + query[-4:]
        return [
            reply(wrong_id, address("6.6.6.6")),
            reply(other, address("6.6.6.6")),
            reply(query, address("6.6.6.6"))[:-2],
            b"",
            query,
            *holding("192.0.2.1")(query, over_tcp),
        ]

    async with fake_dns(handler) as server:
        addresses = await Resolver(server.address).resolve("a.example", 1)
        assert addresses == [(V4, ("192.0.2.1", 1))]


@pytest.mark.parametrize(("strays", "found"), [(MAX_STRAYS - 1, True), (MAX_STRAYS, False)])
async def test_flood_of_strays_ends_the_lookup(strays, found):
    def handler(query: bytes, over_tcp: bool) -> list[bytes]:
        return [b"junk"] * strays + holding("192.0.2.1")(query, over_tcp)

    async with fake_dns(handler) as server:
        lookup = Resolver(server.address).resolve("a.example", 1)
        if found:
            assert await lookup
        else:
            with pytest.raises(NetworkError, match="answers to other queries"):
                await lookup


async def test_lost_datagrams_are_sent_again(monkeypatch):
    monkeypatch.setattr(resolve, "UDP_WAITS", (0.02, 0.02, 2.0))
    queries: list[bytes] = []

    def handler(query: bytes, over_tcp: bool) -> list[bytes]:
        queries.append(query)
        return holding("192.0.2.1")(query, over_tcp) if queries.count(query) == 3 else []

    async with fake_dns(handler) as server:
        assert await Resolver(server.address).resolve("a.example", 1)
        assert len(queries) == 6
        assert len(set(queries)) == 2


async def test_silent_server_times_out(monkeypatch):
    monkeypatch.setattr(resolve, "UDP_WAITS", (0.01, 0.01, 0.01))
    async with fake_dns(lambda query, over_tcp: []) as server:
        with pytest.raises(NetworkError) as caught:
            await Resolver(server.address).resolve("a.example", 1)
        who = f"DNS server 127.0.0.1:{server.address[1]}"
        assert str(caught.value) == f"cannot resolve a.example: {who}: no answer within 5 s"
        assert caught.value.outcome is Outcome.UNRESOLVABLE
        assert len(server.seen) == 6


async def test_overall_deadline_covers_tcp(monkeypatch):
    monkeypatch.setattr(resolve, "LOOKUP_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        loop = asyncio.get_running_loop()

        class Truncating(asyncio.DatagramProtocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def datagram_received(self, data: bytes, addr: Any) -> None:
                self.transport.sendto(reply(data, truncated=True), addr)

        where = silent.getsockname()
        transport, _ = await loop.create_datagram_endpoint(Truncating, local_addr=where)
        with pytest.raises(NetworkError, match="no answer within"):
            await Resolver(where).resolve("a.example", 1)
        transport.close()


async def test_closed_dns_port_is_connection_refused():
    with socket.socket(V4, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        where = sock.getsockname()
    with pytest.raises(NetworkError, match=f"127.0.0.1:{where[1]}: connection refused$"):
        await Resolver(where).resolve("a.example", 1)


@pytest.mark.parametrize(
    ("rcode", "words"),
    [(3, "there is no such name"), (5, "it refuses to answer"), (0, "the name has no address")],
)
async def test_negative_answers_are_errors_and_not_kept(rcode, words):
    async with fake_dns(lambda query, over_tcp: [reply(query, rcode=rcode)]) as server:
        resolver = Resolver(server.address)
        for _ in range(2):
            with pytest.raises(NetworkError, match=f": {words}$"):
                await resolver.resolve("a.example", 1)
        assert len(server.seen) == 4  # not kept


async def test_bad_name_is_not_asked_for():
    async with fake_dns(holding("192.0.2.1")) as server:
        with pytest.raises(NetworkError, match=r"cannot resolve a\.\.b: .*: a label"):
            await Resolver(server.address).resolve("a..b", 1)
        assert not server.seen


@pytest.mark.parametrize("lost", [A, AAAA])
async def test_one_unanswered_half_does_not_wait_for_the_timeout(monkeypatch, lost):
    clock = Clock(monkeypatch)

    def handler(query: bytes, over_tcp: bool) -> list[bytes]:
        if qtype(query) == lost:
            return []
        return holding("192.0.2.1", "2001:db8::1", ttl=3000)(query, over_tcp)

    # Longer than any test, so a test that waits for one of them fails.
    monkeypatch.setattr(resolve, "UDP_WAITS", (600.0,) * 3)
    monkeypatch.setattr(resolve, "LOOKUP_TIMEOUT", 1800.0)
    async with fake_dns(handler) as server:
        resolver = Resolver(server.address)
        assert len(await resolver.resolve("a.example", 1)) == 1
        clock.ahead += resolve.SYSTEM_TTL  # half an answer is not kept for its TTL
        await resolver.resolve("a.example", 1)
        assert len(server.seen) == 4


async def test_one_failed_half_waits_for_the_other(monkeypatch):
    monkeypatch.setattr(resolve, "UDP_WAITS", (0.1, 2.0, 2.0))
    seen: list[bytes] = []

    def handler(query: bytes, over_tcp: bool) -> list[bytes]:
        if qtype(query) == AAAA:
            return [reply(query, rcode=2)]
        seen.append(query)
        return holding("192.0.2.1")(query, over_tcp) if len(seen) == 2 else []

    async with fake_dns(handler) as server:
        addresses = await Resolver(server.address).resolve("a.example", 1)  # at the second try
        assert addresses == [(V4, ("192.0.2.1", 1))]
