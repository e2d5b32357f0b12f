from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mtt.address import Endpoint
from mtt.errors import NetworkError
from mtt.layers.base import StreamProtocol
from mtt.net import dial
from mtt.net.dial import TCP_FASTOPEN_CONNECT, Dialer
from mtt.net.resolve import Address, Resolver
from mtt.net.sockets import KEEPALIVE_IDLE
from mtt.outcome import Outcome
from tests.support.programs import require_package
from tests.support.transports import Recorder

# Seconds; longer than any test, so whoever waits for that fails.
NEVER = 600.0

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="Linux sockets")


class FixedResolver(Resolver):
    """Knows addresses by heart; None is a name that does not resolve."""

    def __init__(self, names: dict[str, list[tuple[str, int]] | None]) -> None:
        super().__init__()
        self.names = names
        self.forgotten: list[str] = []

    async def resolve(self, host: str, port: int) -> list[Address]:
        found = self.names[host]
        if found is None:
            raise NetworkError(f"cannot resolve {host}: no", outcome=Outcome.HOST_UNREACHABLE)
        return [(socket.AF_INET, address) for address in found]

    def forget(self, host: str) -> None:
        self.forgotten.append(host)


@contextlib.contextmanager
def listening(host: str = "127.0.0.1", port: int = 0) -> Iterator[socket.socket]:
    with socket.create_server((host, port)) as sock:
        yield sock


def refused_port() -> int:
    with listening() as sock:
        port: int = sock.getsockname()[1]
    return port


@contextlib.contextmanager
def black_hole() -> Iterator[tuple[str, int]]:
    """An address that lets SYNs go unanswered: Linux drops them while the backlog is full."""
    if sys.platform != "linux":
        pytest.skip("other systems refuse when the backlog is full")
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        yield full.getsockname()


class Holder:
    """A `protect` hook that never lets sockets through to some addresses, in order of attempts."""

    def __init__(self, held: int) -> None:
        self.held = held
        self.sockets: list[socket.socket] = []
        self.reached = asyncio.Event()

    async def __call__(self, sock: socket.socket) -> None:
        self.sockets.append(sock)
        if len(self.sockets) <= self.held:
            self.reached.set()
            await asyncio.get_running_loop().create_future()

    def all_closed(self) -> bool:
        return all(sock.fileno() == -1 for sock in self.sockets)


async def connect(dialer: Dialer, endpoint: Endpoint) -> tuple[str, int]:
    """Connect, close, and tell where it went."""
    transport = await dialer.connect(endpoint, StreamProtocol)
    peer: tuple[str, int] = transport.get_extra_info("peername")
    transport.abort()
    return peer


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


async def test_refused_connection_is_reported_and_forgotten():
    port = refused_port()
    resolver = FixedResolver({"a.example": [("127.0.0.1", port)]})
    with pytest.raises(NetworkError) as caught:
        await connect(Dialer(resolver), Endpoint(("a.example",), port))
    assert str(caught.value) == f"cannot connect to a.example:{port}: connection refused"
    assert caught.value.outcome is Outcome.CONNECTION_REFUSED
    assert resolver.forgotten == ["a.example"]


async def test_every_distinct_reason_is_reported_once():
    port = refused_port()
    resolver = FixedResolver(
        {"a": [("127.0.0.1", port), ("127.0.0.2", port)], "b": None, "c": [("127.0.0.3", port)]}
    )
    reasons = iter([errno.ENETUNREACH, errno.ENETUNREACH, errno.EHOSTUNREACH])

    async def protect(sock: socket.socket) -> None:
        raise OSError(next(reasons), "whatever")

    with pytest.raises(NetworkError) as caught:
        await connect(Dialer(resolver, protect=protect), Endpoint(("a", "b", "c"), port))
    assert str(caught.value) == (
        f"cannot connect to a|b|c:{port}: "
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


async def test_no_host_resolves():
    words = r"cannot resolve a: no; cannot resolve b: no$"
    with pytest.raises(NetworkError, match=words) as caught:
        await connect(Dialer(FixedResolver({"a": None, "b": None})), Endpoint(("a", "b"), 1))
    assert caught.value.outcome is Outcome.HOST_UNREACHABLE


async def test_second_host_serves_when_the_first_does_not():
    with listening() as server:
        resolver = FixedResolver({"a": None, "b": [server.getsockname()]})
        assert await connect(Dialer(resolver), Endpoint(("a", "b"), 1)) == server.getsockname()


async def test_failure_starts_the_next_attempt_at_once(monkeypatch):
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 60.0)
    port = refused_port()
    with listening() as server:
        dead = [("127.0.0.1", port), ("127.0.0.2", port), ("127.0.0.3", port)]
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


async def test_favourite_expires_and_falls_with_a_failure(monkeypatch):
    ahead = 0.0
    monkeypatch.setattr(dial, "monotonic", lambda: time.monotonic() + ahead)
    port = refused_port()
    endpoint = Endpoint(("a",), 1)
    with listening() as server, listening("127.0.0.2") as second:
        order = FixedResolver({"a": [("127.0.0.3", port), server.getsockname()]})
        dialer = Dialer(order)
        assert await connect(dialer, endpoint) == server.getsockname()
        order.names["a"] = [second.getsockname(), server.getsockname()]
        assert await connect(dialer, endpoint) == server.getsockname()
        ahead = dial.FAVOURITE_TTL
        assert await connect(dialer, endpoint) == second.getsockname()
        order.names["a"] = [("127.0.0.3", port), server.getsockname()]
        await connect(dialer, endpoint)
        assert dialer._favourites
    with pytest.raises(NetworkError):
        await connect(dialer, endpoint)
    assert not dialer._favourites


async def test_favourites_are_bounded(monkeypatch):
    monkeypatch.setattr(dial, "MAX_FAVOURITES", 2)
    port = refused_port()
    with listening() as server:
        resolver = FixedResolver({"a": [("127.0.0.2", port), server.getsockname()]})
        dialer = Dialer(resolver)
        for number in range(4):
            await connect(dialer, Endpoint(("a",), number))
        assert [endpoint.port for endpoint in dialer._favourites] == [2, 3]


async def test_overall_deadline_closes_all_attempts(monkeypatch):
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 0.01)
    port = refused_port()
    holder = Holder(held=2)
    addresses = [("127.0.0.1", port), ("127.0.0.2", port), ("127.0.0.3", port)]
    resolver = FixedResolver({"a": addresses})
    with pytest.raises(NetworkError) as caught:
        await connect(Dialer(resolver, timeout=0.1, protect=holder), Endpoint(("a",), port))
    reason = "connection refused; no answer within 0.1 s"
    assert str(caught.value) == f"cannot connect to a:{port}: {reason}"
    assert caught.value.outcome is Outcome.TIMED_OUT
    assert len(holder.sockets) == 3
    assert holder.all_closed()


async def test_deadline_against_a_silent_address():
    with black_hole() as hole:
        endpoint = Endpoint(("127.0.0.1",), hole[1])
        with pytest.raises(NetworkError, match=r"no answer within 0\.05 s$") as caught:
            await connect(Dialer(Resolver(), timeout=0.05), endpoint)
        assert caught.value.outcome is Outcome.TIMED_OUT


async def test_losers_are_closed_also_if_they_connected(monkeypatch):
    """In the next turn of the loop."""
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 0.0)
    with listening() as first, listening("127.0.0.2") as second:
        attempts: list[int] = []  # descriptors
        both = asyncio.Event()

        async def protect(sock: socket.socket) -> None:
            attempts.append(sock.fileno())
            if len(attempts) == 2:
                both.set()
            await both.wait()

        resolver = FixedResolver({"a": [first.getsockname(), second.getsockname()]})
        transport = await Dialer(resolver, protect=protect).connect(
            Endpoint(("a",), 1), asyncio.Protocol
        )
        (loser,) = set(attempts) - {transport.get_extra_info("socket").fileno()}
        await asyncio.sleep(0)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(loser)
        transport.abort()


@pytest.mark.parametrize("count", [1, 3])
async def test_cancelled_connect_closes_its_sockets(monkeypatch, count):
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 0.0)
    holder = Holder(held=count)
    resolver = FixedResolver({"a": [(f"127.0.0.{i + 1}", 1) for i in range(count)]})
    dialer = Dialer(resolver, protect=holder)
    task = asyncio.create_task(dialer.connect(Endpoint(("a",), 1), StreamProtocol))
    await holder.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert holder.all_closed()
    assert len(asyncio.all_tasks()) == 1


async def test_cancelling_at_any_step_leaks_nothing(monkeypatch):
    """Cancel after 0, 1, 2... turns of the loop; the test's own check finds what stays open."""
    monkeypatch.setattr(dial, "ATTEMPT_DELAY", 0.0)
    with listening() as first, listening("127.0.0.2") as second:
        resolver = FixedResolver({"a": [first.getsockname(), second.getsockname()]})
        for turns in range(30):
            dialer = Dialer(resolver)
            task = asyncio.create_task(dialer.connect(Endpoint(("a",), 1), StreamProtocol))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                (await task).abort()
            except asyncio.CancelledError:
                continue
            break
        else:
            raise AssertionError("never connected")
        assert turns > 2


# Without waiting.


@linux_only
async def test_a_destination_on_this_machine_is_connected_at_once():
    with listening() as server:
        endpoint = Endpoint(("127.0.0.1",), server.getsockname()[1])
        recorder = Recorder()
        transport = Dialer(Resolver()).connect_at_once(endpoint, lambda: recorder)
        assert transport is recorder.transport
        with server.accept()[0] as destination:
            sock = transport.get_extra_info("socket")
            assert sock.getpeername() == server.getsockname()
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            transport.write(b"hello")
            assert destination.recv(100) == b"hello"
            transport.close()
            await recorder.ended()
            assert destination.recv(100) == b""  # an ordinary end, no reset


@linux_only
@pytest.mark.parametrize(
    ("hosts", "options"),
    [
        (("localhost",), {}),
        (("127.1.example",), {}),
        (("::1%nowhere",), {}),
        (("::1:2",), {}),
        (("192.0.2.1",), {}),
        (("127.0.0.1", "::1"), {}),
        (("127.0.0.1",), {"fast_open": True}),
        (("127.0.0.1",), {"protect": Holder(0)}),
    ],
)
async def test_remote_destinations_are_not_connected_at_once(hosts, options):
    with listening() as server:
        endpoint = Endpoint(hosts, server.getsockname()[1])
        assert Dialer(Resolver(), **options).connect_at_once(endpoint, StreamProtocol) is None
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@linux_only
async def test_a_destination_that_does_not_answer_at_once():
    with black_hole() as hole:
        endpoint = Endpoint(("127.0.0.1",), hole[1])
        assert Dialer(Resolver()).connect_at_once(endpoint, StreamProtocol) is None


@linux_only
async def test_immediate_failure_is_reported_by_connect(monkeypatch):
    endpoint = Endpoint(("127.0.0.1",), refused_port())
    dialer = Dialer(Resolver())
    assert dialer.connect_at_once(endpoint, StreamProtocol) is None
    with pytest.raises(NetworkError, match="connection refused"):
        await connect(dialer, endpoint)

    def exhausted(*_: Any) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(socket, "socket", exhausted)
        assert dialer.connect_at_once(endpoint, StreamProtocol) is None
        with pytest.raises(NetworkError, match="too many open files"):
            await connect(dialer, endpoint)


@linux_only
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_cancelled_connection_is_reset(monkeypatch, loop):
    """Whichever turn of the loop the end comes in; but an ordinary end is one."""
    factory = asyncio.new_event_loop
    if loop == "uvloop":
        factory = require_package("uvloop").new_event_loop
    resets = 0

    async def cancelled_after(turns: int, endpoint: Endpoint) -> bool:
        task = asyncio.create_task(Dialer(Resolver()).connect(endpoint, StreamProtocol))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            (await task).close()
        except asyncio.CancelledError:
            return True
        finally:
            await asyncio.sleep(0.01)  # a transport closes in a later turn
        return False

    monkeypatch.setattr(dial, "_connected_at_once", lambda *_: False)
    with listening() as server, asyncio.Runner(loop_factory=factory) as runner:
        server.settimeout(0.05)
        endpoint = Endpoint(("127.0.0.1",), server.getsockname()[1])
        for turns in range(20):
            cancelled = runner.run(cancelled_after(turns, endpoint))
            try:
                sock, _ = server.accept()
            except TimeoutError:
                continue  # it was not even begun
            with sock:
                if not cancelled:
                    assert sock.recv(1) == b""
                    break
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
                resets += 1
        else:
            raise AssertionError("never connected")
    assert resets or loop == "uvloop"  # its turns are not ours to count


async def test_protocol_factory_that_fails_closes_the_socket():
    def fail() -> asyncio.Protocol:
        raise RuntimeError("no protocol")

    seen: list[socket.socket] = []

    async def protect(sock: socket.socket) -> None:
        seen.append(sock)

    with listening() as server:
        endpoint = Endpoint(("127.0.0.1",), server.getsockname()[1])
        with pytest.raises(RuntimeError):
            await Dialer(Resolver(), protect=protect).connect(endpoint, fail)
    assert seen[0].fileno() == -1


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


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("name", ["asyncio", "uvloop"])
def test_a_connection_that_is_lost_at_once(name: str, asked: bool) -> None:
    loops: dict[str, Any] = {"asyncio": asyncio.SelectorEventLoop}
    if name == "uvloop":
        loops[name] = require_package("uvloop").new_event_loop

    class LostAtOnce(StreamProtocol):
        def connection_made(self, transport: Any) -> None:
            assert not asked or transport.get_extra_info("socket").fileno() >= 0
            transport.abort()

    async def scenario() -> None:
        with listening() as server:
            endpoint = Endpoint(("127.0.0.1",), server.getsockname()[1])
            transport = await Dialer(Resolver()).connect(endpoint, LostAtOnce)
            assert transport.is_closing()
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loops[name]) as runner:
        runner.run(scenario())
