"""Resolving names: literals, the system's resolver, shared and cancelled lookups."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from mtt.errors import NetworkError
from mtt.net import resolve
from mtt.net.resolve import CACHE_SIZE, Resolver, interleave, literal
from mtt.outcome import Outcome
from tests.net.fake_dns import V4, V6, Clock, fake_dns, holding, reply


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


def test_only_literals_are_addresses():
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


# Through the system.


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
    asked.clear()
    for i in range(1, CACHE_SIZE + 1):
        await resolver.resolve(f"n{i}", 1)
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
        assert caught.value.outcome is Outcome.UNRESOLVABLE
    assert len(asked) == 2  # failures are not kept
    with pytest.raises(NetworkError, match="too many open files"):
        await resolver.resolve("strange", 80)


async def test_invalid_names_are_errors():
    for name in ("a..b", "x" * 64 + ".example", "a\0b"):
        with pytest.raises(NetworkError, match="cannot resolve"):
            await Resolver().resolve(name, 80)


async def test_hanging_system_resolver_times_out(monkeypatch):
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


# Sharing, cancellation, protection.


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


async def test_failure_while_cancelling_is_not_reported():
    """A failure that no caller looks at any more must not be reported to the loop."""
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


async def test_failing_protect_ends_the_lookup():
    async def protect(sock: socket.socket) -> None:
        raise NetworkError("cannot protect the socket")

    async with fake_dns(holding("192.0.2.1")) as server:
        with pytest.raises(NetworkError, match="cannot protect the socket"):
            await Resolver(server.address, protect).resolve("a.example", 1)
        assert not server.seen
