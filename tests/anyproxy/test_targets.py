"""The agent's side of streams: rules, targets, answers, datagrams."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest

from anyproxy import targets as targets_module
from anyproxy.options import PROTOCOLS, TCP, UDP
from anyproxy.targets import DENIALS_SHOWN, HEAD_TIME, Targets
from mtt.address import host_port
from mtt.errors import NetworkError
from mtt.layers import stream_head
from mtt.layers.parked import Parked
from mtt.net.resolve import Resolver
from mtt.observe.metrics import Counters
from mtt.outcome import Outcome
from mtt.proxy.host_rules import ALLOW_ALL, HostRules, parse_patterns
from mtt.tunnels.open_tunnels import OpenTunnels
from mtt.wire import agent, uot
from mtt.wire.agent import Answer, Head, parse_answer
from tests.support.clock import Clock
from tests.support.transports import FakeTransport, turns
from tests.support.tunnels import Tcp, echo, eventually, logged, serving

USER = ("198.51.100.7", 4000)


class Scene:
    """Targets, and a gateway that opens streams to them."""

    def __init__(
        self,
        *,
        forbidden: Iterable[str] = (),
        protocols: Iterable[str] = PROTOCOLS,
        max_conns: int = 0,
    ) -> None:
        patterns = parse_patterns("forbidden_hosts", list(forbidden), allow=False)
        self.tunnels = OpenTunnels(Counters(), timeout=300.0, max_conns=max_conns)
        self.targets = Targets(
            HostRules(forbidden=patterns) if forbidden else ALLOW_ALL,
            frozenset(protocols),
            Resolver(),
            self.tunnels,
            udp_timeout=300.0,
        )

    def stream(self, head: Head | None = None, data: bytes = b"") -> FakeTransport:
        """A stream that the gateway has opened, with its head and data."""
        protocol = self.targets.accept()
        stream = FakeTransport(protocol)
        protocol.connection_made(stream)
        if head is not None:
            protocol.data_received(head.encode() + data)
        return stream


@contextlib.asynccontextmanager
async def scene_of(**options: Any) -> AsyncIterator[Scene]:
    scene = Scene(**options)
    try:
        yield scene
    finally:
        await scene.tunnels.close()
        await eventually(lambda: not scene.tunnels)


async def answer_on(stream: FakeTransport) -> Answer:
    """The answer, once it is there."""
    await eventually(lambda: parse_answer(bytes(stream.sent)))
    found = parse_answer(bytes(stream.sent))
    assert found is not None
    answer, end = found
    del stream.sent[:end]
    return answer


def tcp(port: int, host: str = "127.0.0.1") -> Head:
    return Head(agent.TCP, host, port, USER)


# TCP.


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_target_is_reached_and_its_address_told(host: str) -> None:
    async with serving(echo) as target, scene_of() as scene:
        stream = scene.stream(tcp(target.port, host), b"early data")
        assert await answer_on(stream) == Answer(Outcome.SUCCEEDED, ("127.0.0.1", target.port))
        await eventually(lambda: stream.sent == b"early data")
        assert len(scene.tunnels) == 1
        stream.protocol.data_received(b", and more")
        await eventually(lambda: stream.sent == b"early data, and more")
        stream.protocol.eof_received()
        await eventually(lambda: stream.eof_written)
        assert scene.targets.outcomes == {Outcome.SUCCEEDED: 1}


async def test_target_that_speaks_first_speaks_after_the_answer() -> None:
    async def greet(connection: Tcp) -> None:
        await connection.send(b"SSH-2.0")
        await connection.rest()

    async with serving(greet) as target, scene_of() as scene:
        stream = scene.stream(tcp(target.port))
        assert (await answer_on(stream)).outcome is Outcome.SUCCEEDED
        await eventually(lambda: stream.sent == b"SSH-2.0")


async def test_target_that_refuses_is_told(refused_port: int) -> None:
    async with scene_of() as scene:
        stream = scene.stream(tcp(refused_port))
        assert await answer_on(stream) == Answer(Outcome.CONNECTION_REFUSED)
        assert stream.closing
        assert not stream.aborted
        assert scene.targets.outcomes == {Outcome.CONNECTION_REFUSED: 1}


async def test_name_that_does_not_exist_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(*_: object) -> None:
        raise NetworkError("no such host", outcome=Outcome.UNRESOLVABLE)

    monkeypatch.setattr(Resolver, "resolve", resolve)
    async with scene_of() as scene:
        stream = scene.stream(tcp(80, "nas.example"))
        assert await answer_on(stream) == Answer(Outcome.UNRESOLVABLE)
        assert stream.closing


async def test_stream_that_is_cut_while_connecting_ends_the_attempt() -> None:
    async with scene_of() as scene:
        connecting, cancelled = asyncio.Event(), asyncio.Event()

        async def connect(host: str, port: int) -> FakeTransport:
            connecting.set()
            try:
                await asyncio.get_running_loop().create_future()
                raise AssertionError
            finally:
                cancelled.set()

        scene.targets._dialer.connect = connect  # type: ignore[method-assign]
        stream = scene.stream(tcp(80))
        await connecting.wait()
        assert isinstance(stream.protocol, Parked)
        stream.lose(ConnectionResetError())
        await cancelled.wait()
        await turns()
        assert not scene.tunnels
        assert not stream.sent


# Rules.


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "LOCALHOST", "\uff4cocalhost", "::1", "::", "0.0.0.0", "0",
        "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "::ffff:127.0.0.1", "::ffff:0.0.0.0",
    ],
)  # fmt: skip
async def test_denied_target_is_not_connected_to(host: str) -> None:
    accepted: list[Tcp] = []

    async def accept(connection: Tcp) -> None:
        accepted.append(connection)

    with logged() as lines:
        async with serving(accept) as target, scene_of(forbidden=["127.0.0.0/8", "::1"]) as scene:
            stream = scene.stream(tcp(target.port, host))
            assert await answer_on(stream) == Answer(Outcome.NOT_ALLOWED)
            assert stream.closing
    assert not accepted
    shown = host_port(host, target.port)
    assert lines == [f"INFO target denied (allowed_hosts, forbidden_hosts): {shown}"]


async def test_rules_that_are_replaced_count_for_new_streams() -> None:
    async with serving(echo) as target, scene_of() as scene:
        old = scene.stream(tcp(target.port))
        assert (await answer_on(old)).outcome is Outcome.SUCCEEDED
        patterns = parse_patterns("forbidden_hosts", ["127.0.0.1"], allow=False)
        scene.targets.rules = HostRules(forbidden=patterns)
        assert (await answer_on(scene.stream(tcp(target.port)))).outcome is Outcome.NOT_ALLOWED
        old.protocol.data_received(b"goes on")
        await eventually(lambda: old.sent == b"goes on")


async def test_denials_of_a_scan_do_not_flood_the_log() -> None:
    with logged() as lines:
        async with scene_of(forbidden=["10.0.0.0/8"]) as scene:
            for number in range(100):
                stream = scene.stream(tcp(80, f"10.0.0.{number}"))
                assert (await answer_on(stream)).outcome is Outcome.NOT_ALLOWED
    assert len(lines) == DENIALS_SHOWN


@pytest.mark.parametrize("allowed, network", [(TCP, agent.UDP), (UDP, agent.TCP)])
async def test_protocol_that_is_not_served_is_denied(allowed: str, network: int) -> None:
    async with serving(echo) as target, scene_of(protocols=[allowed]) as scene:
        stream = scene.stream(Head(network, "127.0.0.1", target.port))
        assert await answer_on(stream) == Answer(Outcome.NOT_ALLOWED)
        assert stream.closing


# Limits.


async def test_agent_that_drains_says_so() -> None:
    async with serving(echo) as target, scene_of() as scene:
        scene.targets.is_draining = True
        for head in (tcp(target.port), Head(agent.UDP, "0.0.0.0", 0)):
            stream = scene.stream(head)
            assert await answer_on(stream) == Answer(Outcome.NO_AGENT)
            assert stream.closing
        assert not scene.tunnels


async def test_number_of_streams_is_limited() -> None:
    async with serving(echo) as target, scene_of(max_conns=1) as scene:
        assert (await answer_on(scene.stream(tcp(target.port)))).outcome is Outcome.SUCCEEDED
        for head in (tcp(target.port), Head(agent.UDP, "0.0.0.0", 0)):
            stream = scene.stream(head)
            assert await answer_on(stream) == Answer(Outcome.OVERLOADED)
            assert stream.closing
        assert len(scene.tunnels) == 1


# Heads.


async def test_stream_without_a_head_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, stream_head)
    scene = Scene()
    stream = scene.stream()
    stream.protocol.data_received(tcp(80).encode()[:5])
    await clock.passes(HEAD_TIME - 1)
    assert not stream.closing
    await clock.passes(1)
    assert stream.closing
    assert not clock.pending


@pytest.mark.parametrize("said", [b"\xff\xff", b"\0\0", b"\0\1\x07", b"\0\3\1\2\3"])
async def test_malformed_head_closes_the_stream(said: bytes) -> None:
    scene = Scene()
    stream = scene.stream()
    stream.protocol.data_received(said)
    await turns()
    assert stream.closing
    assert not stream.sent
    assert not scene.tunnels


async def test_stream_that_ends_without_a_head_is_closed() -> None:
    scene = Scene()
    stream = scene.stream()
    stream.protocol.eof_received()
    await turns()
    assert stream.closing


# Answers through another protocol.


async def test_answer_is_told_by_the_callers_means(refused_port: int) -> None:
    async with serving(echo) as target, scene_of() as scene:
        for port, outcome, reached in (
            (target.port, Outcome.SUCCEEDED, ("127.0.0.1", target.port)),
            (refused_port, Outcome.CONNECTION_REFUSED, None),
        ):
            told: list[object] = []
            stream = FakeTransport(Parked())
            stream.protocol.connection_made(stream)
            scene.targets.serve(stream, tcp(port), lambda *args: told.append(args))  # noqa: B023
            await eventually(lambda: told)  # noqa: B023
            assert told == [(outcome, reached)]
            assert stream.sent == b""


# UDP.


def datagram(port: int, payload: bytes) -> bytes:
    """To or from a target."""
    return uot.encode_datagram(payload, "127.0.0.1", port)


@contextlib.contextmanager
def bound() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        yield sock


async def test_datagrams_go_to_their_targets_and_back() -> None:
    loop = asyncio.get_running_loop()
    with bound() as one, bound() as two:
        async with scene_of() as scene:
            ports = [sock.getsockname()[1] for sock in (one, two)]
            first = datagram(ports[0], b"first")
            stream = scene.stream(Head(agent.UDP, "0.0.0.0", 0), first)
            assert await answer_on(stream) == Answer(Outcome.SUCCEEDED)
            data, source = await loop.sock_recvfrom(one, 100)
            assert data == b"first"
            stream.protocol.data_received(datagram(ports[1], b"second"))
            assert await loop.sock_recv(two, 100) == b"second"
            await loop.sock_sendto(one, b"answer", source)
            expected = datagram(ports[0], b"answer")
            await eventually(lambda: stream.sent == expected)
            stream.protocol.eof_received()
            await eventually(lambda: not scene.tunnels)
            assert stream.closing


async def test_datagrams_to_denied_targets_are_dropped() -> None:
    loop = asyncio.get_running_loop()
    with bound() as open_one, bound() as denied, logged() as lines:
        number = denied.getsockname()[1]
        async with scene_of(forbidden=[f"127.0.0.1:{number}"]) as scene:
            stream = scene.stream(Head(agent.UDP, "0.0.0.0", 0))
            assert (await answer_on(stream)).outcome is Outcome.SUCCEEDED
            for host in ("127.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "::ffff:0.0.0.0"):
                stream.protocol.data_received(uot.encode_datagram(b"x", host, number))
            stream.protocol.data_received(datagram(open_one.getsockname()[1], b"x"))
            assert await loop.sock_recv(open_one, 100) == b"x"
            with pytest.raises(BlockingIOError):
                denied.recv(100)
    assert [line for line in lines if "denied" in line] == [
        f"INFO target denied (allowed_hosts, forbidden_hosts): {host}:{number}"
        for host in ("127.0.0.1", "0.0.0.0", "127.0.0.1", "0.0.0.0")
    ]


async def test_udp_without_sockets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise NetworkError("too many open files")

    monkeypatch.setattr(targets_module, "UotRelay", fail)
    async with scene_of() as scene:
        stream = scene.stream(Head(agent.UDP, "0.0.0.0", 0))
        assert await answer_on(stream) == Answer(Outcome.GENERAL_FAILURE)
        assert stream.closing
        assert not scene.tunnels
