from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest

from mtt.errors import NetworkError
from mtt.net import resolve
from mtt.net.resolve import CACHE_SIZE, MAX_STRAYS, MAX_TTL, MIN_TTL, Resolver, interleave, literal
from mtt.outcome import Outcome
from tests.net.fake_dns import AAAA, A, address, alias, fake_dns, holding, qtype, reply, wire_name

V4, V6 = socket.AF_INET, socket.AF_INET6


class Clock:
    """The time as the cache sees it; timers go their own way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead = 0.0
        monkeypatch.setattr(resolve, "monotonic", lambda: time.monotonic() + self.ahead)


def system_answers(monkeypatch: pytest.MonkeyPatch, answer: Any) -> list[str]:
    """Put `answer(host)` in the place of getaddrinfo; the list grows with each question."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: object, *args: object, **kwargs: object) -> Any:
        asked.append(host)
        return answer(host)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    if type(asyncio.get_running_loop()).__module__.startswith("uvloop"):
        pytest.skip("uvloop has its own getaddrinfo")
    return asked


def infos(*addresses: tuple[int, tuple[Any, ...]]) -> Any:
    return lambda host: [
        (family, socket.SOCK_STREAM, 6, "", sockaddr) for family, sockaddr in addresses
    ]


def test_literals():
    assert literal("192.0.2.1", 5) == (V4, ("192.0.2.1", 5))
    assert literal("2001:DB8:0::1", 5) == (V6, ("2001:db8::1", 5, 0, 0))
    assert literal("fe80::1%7", 5) == (V6, ("fe80::1", 5, 0, 7))
    for name in ("", "localhost", "1.2.3", "1.2.3.4.5", "::1::", "a%lo", "1.2.3.4\0", "\0", "ü"):
        assert literal(name, 5) is None


def test_zone_by_name():
    index, name = socket.if_nameindex()[0]
    assert literal(f"fe80::1%{name}", 5) == (V6, ("fe80::1", 5, 0, index))
    with pytest.raises(NetworkError, match="no interface nowhere9"):
        literal("fe80::1%nowhere9", 5)


def test_families_take_turns():
    four = [(V4, (f"192.0.2.{i}", 1)) for i in range(3)]
    six = [(V6, (f"2001:db8::{i}", 1, 0, 0)) for i in range(2)]
    assert interleave([*six, *four]) == [six[0], four[0], six[1], four[1], four[2]]
    assert interleave([four[0], *six, *four]) == [four[0], six[0], four[1], six[1], four[2]]
    assert interleave([]) == []


async def test_literals_and_localhost_need_no_query(monkeypatch):
    async with fake_dns(holding("192.0.2.1")) as server:
        resolver = Resolver(server.address)
        assert await resolver.resolve("192.0.2.5", 7) == [(V4, ("192.0.2.5", 7))]
        loopback = [(V6, ("::1", 7, 0, 0)), (V4, ("127.0.0.1", 7))]
        for name in ("localhost", "LocalHost.", "a.localhost", ""):
            assert await resolver.resolve(name, 7) == loopback
        assert not server.seen
        assert await resolver.resolve("notlocalhost", 7)
        assert server.seen
    asked = system_answers(monkeypatch, infos((V4, ("192.0.2.9", 0))))
    assert await Resolver().resolve("::1", 7) == [(V6, ("::1", 7, 0, 0))]
    assert await Resolver().resolve("", 7) == loopback
    assert not asked


# --- through the system


async def test_system_knows_localhost():
    addresses = await Resolver().resolve("localhost", 80)
    assert {rest[0] for _, rest in addresses} <= {"127.0.0.1", "::1"}
    assert all(rest[1] == 80 for _, rest in addresses)


async def test_system_answers_are_kept_and_forgotten(monkeypatch):
    asked = system_answers(monkeypatch, infos((V6, ("fe80::1%x", 0, 0, 3)), (V4, ("1.2.3.4", 0))))
    clock = Clock(monkeypatch)
    resolver = Resolver()
    first = await resolver.resolve("Example.com", 80)
    assert first == [(V6, ("fe80::1", 80, 0, 3)), (V4, ("1.2.3.4", 80))]
    assert (await resolver.resolve("example.COM", 443))[1] == (V4, ("1.2.3.4", 443))
    assert asked == ["example.com"]
    resolver.forget("EXAMPLE.com")
    await resolver.resolve("example.com", 80)
    assert len(asked) == 2
    clock.ahead += resolve.SYSTEM_TTL - 1
    await resolver.resolve("example.com", 80)
    assert len(asked) == 2
    clock.ahead += 1
    await resolver.resolve("example.com", 80)
    assert len(asked) == 3


async def test_cache_is_bounded(monkeypatch):
    asked = system_answers(monkeypatch, infos((V4, ("1.2.3.4", 0))))
    resolver = Resolver()
    for i in range(CACHE_SIZE + 1):
        await resolver.resolve(f"n{i}", 1)
    assert len(resolver._cache) == CACHE_SIZE
    asked.clear()
    await resolver.resolve(f"n{CACHE_SIZE}", 1)
    await resolver.resolve("n1", 1)
    assert not asked
    await resolver.resolve("n0", 1)
    assert asked == ["n0"]


async def test_system_errors_name_the_host(monkeypatch):
    def fail(host: str) -> None:
        if host == "strange":
            raise OSError(24, "Too many open files")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    asked = system_answers(monkeypatch, fail)
    resolver = Resolver()
    for _ in range(2):
        with pytest.raises(NetworkError) as caught:
            await resolver.resolve("nope.example", 80)
        reason = "cannot resolve nope.example: the system's resolver: name or service not known"
        assert str(caught.value) == reason
        assert caught.value.outcome is Outcome.HOST_UNREACHABLE
    assert len(asked) == 2  # failures are not kept
    with pytest.raises(NetworkError, match="too many open files"):
        await resolver.resolve("strange", 80)


async def test_invalid_names_are_errors():
    for name in ("a..b", "x" * 64 + ".example", "a\0b"):
        with pytest.raises(NetworkError, match="cannot resolve"):
            await Resolver().resolve(name, 80)


async def test_system_that_hangs(monkeypatch):
    loop = asyncio.get_running_loop()

    async def hang(*args: object, **kwargs: object) -> None:
        await loop.create_future()

    try:
        monkeypatch.setattr(loop, "getaddrinfo", hang)
    except AttributeError:
        pytest.skip("uvloop has its own getaddrinfo")
    monkeypatch.setattr(resolve, "LOOKUP_TIMEOUT", 0.01)
    with pytest.raises(NetworkError, match="no answer within"):
        await Resolver().resolve("slow.example", 80)


# --- one DNS server


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
async def test_tcp_that_fails(over_tcp_messages, words):
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


async def test_silent_server(monkeypatch):
    monkeypatch.setattr(resolve, "UDP_WAITS", (0.01, 0.01, 0.01))
    async with fake_dns(lambda query, over_tcp: []) as server:
        with pytest.raises(NetworkError) as caught:
            await Resolver(server.address).resolve("a.example", 1)
        who = f"DNS server 127.0.0.1:{server.address[1]}"
        assert str(caught.value) == f"cannot resolve a.example: {who}: no answer within 5 s"
        assert caught.value.outcome is Outcome.HOST_UNREACHABLE
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


async def test_closed_dns_port():
    with socket.socket(V4, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        where = sock.getsockname()
    with pytest.raises(NetworkError, match=f"127.0.0.1:{where[1]}: connection refused$"):
        await Resolver(where).resolve("a.example", 1)


@pytest.mark.parametrize(
    ("rcode", "words"),
    [(3, "there is no such name"), (5, "it refuses to answer"), (0, "the name has no address")],
)
async def test_negative_answers(rcode, words):
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

    # Longer than any test, so whoever waits for one of them fails.
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


# --- sharing, cancellation, protection


async def test_concurrent_lookups_share_one_question():
    async with fake_dns(holding("192.0.2.1")) as server:
        resolver = Resolver(server.address)
        results = await asyncio.gather(*(resolver.resolve("A.example", port) for port in (1, 2, 3)))
        assert [addresses[0][1][1] for addresses in results] == [1, 2, 3]
        assert len(server.seen) == 2
        assert not resolver._lookups


async def test_concurrent_lookups_share_one_failure():
    async with fake_dns(lambda query, over_tcp: [reply(query, rcode=3)]) as server:
        resolver = Resolver(server.address)
        results = await asyncio.gather(
            *(resolver.resolve("a.example", 1) for _ in range(3)), return_exceptions=True
        )
        assert all(isinstance(result, NetworkError) for result in results)
        assert len(server.seen) == 2


async def test_cancelling_one_leaves_the_others(monkeypatch):
    monkeypatch.setattr(resolve, "UDP_WAITS", (0.1, 2.0, 2.0))
    gate: list[bytes] = []

    async with fake_dns(lambda query, over_tcp: gate.append(query) or []) as server:
        resolver = Resolver(server.address)
        first, second = (asyncio.create_task(resolver.resolve("a.example", 1)) for _ in range(2))
        await server.asked.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        server.handler = holding("192.0.2.1")  # for the next try
        assert await second == [(V4, ("192.0.2.1", 1))]


async def test_cancelling_the_last_stops_the_lookup():
    async with fake_dns(lambda query, over_tcp: []) as server:
        resolver = Resolver(server.address)
        tasks = [asyncio.create_task(resolver.resolve("a.example", 1)) for _ in range(2)]
        await server.asked.wait()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        assert not resolver._lookups
        assert len(asyncio.all_tasks()) == 1  # its sockets are gone with the test's own check
        server.handler = holding("192.0.2.1")
        assert await resolver.resolve("a.example", 1)


async def test_failure_in_the_moment_of_cancelling_is_quiet():
    """What nobody will look at any more must not be reported to the loop."""
    gate = asyncio.Event()
    waiting: list[socket.socket] = []

    async def protect(sock: socket.socket) -> None:
        waiting.append(sock)
        await gate.wait()
        raise NetworkError("cannot protect the socket")

    task = asyncio.create_task(Resolver(("127.0.0.1", 53), protect).resolve("a.example", 1))
    while len(waiting) < 2:
        await asyncio.sleep(0)
    gate.set()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_protect_sees_each_socket_before_it_connects():
    def handler(query: bytes, over_tcp: bool) -> list[bytes]:
        return holding("192.0.2.1")(query, True) if over_tcp else [reply(query, truncated=True)]

    kinds: list[int] = []

    async def protect(sock: socket.socket) -> None:
        with pytest.raises(OSError):
            sock.getpeername()
        kinds.append(sock.type)

    async with fake_dns(handler) as server:
        await Resolver(server.address, protect).resolve("a.example", 1)
    assert sorted(kinds) == sorted([socket.SOCK_STREAM, socket.SOCK_DGRAM] * 2)


async def test_protect_that_fails():
    async def protect(sock: socket.socket) -> None:
        raise NetworkError("cannot protect the socket")

    async with fake_dns(holding("192.0.2.1")) as server:
        with pytest.raises(NetworkError, match="cannot protect the socket"):
            await Resolver(server.address, protect).resolve("a.example", 1)
        assert not server.seen
