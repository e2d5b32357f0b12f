"""UDP over TCP on the server: datagrams of users, there and back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any, Self

import pytest

from anytls import server as anytls_server
from anytls.server import Server
from mtt.net.resolve import Address
from mtt.outbound import udp
from mtt.proxy import uot_relay
from tests.anytls.serving import empty, know, server_for
from tests.support.anytlspeer import (
    FIN,
    HEART_REQUEST,
    HEART_RESPONSE,
    PSH,
    SYNACK,
    UOT,
    UOT_1,
    AnyTlsPeer,
    address,
    datagram,
    frame,
    peer_connect,
    short,
)
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.metrics import parse
from tests.support.tunnels import SOON, eventually, logged, port_of

HERE = "127.0.0.1"
ANYWHERE = b"\0" + address("0.0.0.0", 0)  # the request without a peer


def to(host: str, port: int) -> bytes:
    """The request for one peer."""
    return b"\1" + address(host, port)


class Udp:
    """A UDP socket of the test."""

    def __init__(self, family: int = socket.AF_INET, host: str = HERE) -> None:
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.bind((host, 0))
        self.sock.setblocking(False)
        self.host = host
        self.port: int = self.sock.getsockname()[1]

    async def receive(self) -> tuple[bytes, Any]:
        while True:  # loop.sock_recvfrom() is not there with uvloop
            with contextlib.suppress(BlockingIOError):
                return self.sock.recvfrom(65535)
            await asyncio.sleep(0.001)

    def send(self, data: bytes, to: Any) -> None:
        self.sock.sendto(data, to)

    async def answer(self) -> bytes:
        """Answer one datagram; what was in it."""
        data, source = await self.receive()
        self.send(b"echo:" + data, source)
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


@contextlib.asynccontextmanager
async def association(
    certs: Certs, said: bytes, *, host: str = UOT, options: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Server, AnyTlsPeer]]:
    """A stream that carries datagrams, and has been acknowledged."""
    async with asyncio.timeout(SOON), server_for(certs, **options or {}) as server:
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, host, 0, said)
            assert await peer.frame() == (SYNACK, 1, b"")
            yield server, peer
        await eventually(lambda: empty(server))


@pytest.mark.parametrize(("host", "said"), [(UOT, ANYWHERE), (UOT_1, b"")])
async def test_datagrams_go_anywhere_and_come_back_with_their_source(
    host: str, said: bytes, certs: Certs
) -> None:
    async with association(certs, said, host=host) as (server, peer):
        with Udp() as first, Udp() as second:
            for there in (first, second, first):
                await peer.send(frame(PSH, 1, datagram(HERE, there.port, b"hello")))
                assert await there.answer() == b"hello"
                expected = (PSH, 1, datagram(HERE, there.port, b"echo:hello"))
                assert await peer.frame() == expected
        page = parse(server.metrics_page())
        assert page["mtt_tunnels"] == 1
        for way, count in (("up", 15), ("down", 30)):
            name = f'mtt_anytls_user_transferred_bytes_total{{user="default",direction="{way}"}}'
            assert page[name] == count
            assert page[f'mtt_transferred_bytes_total{{direction="{way}"}}'] == count


async def test_any_pieces_of_the_stream_will_do(certs: Certs) -> None:
    async with asyncio.timeout(SOON), server_for(certs) as server:
        with Udp() as there:
            said = address(UOT, 0) + ANYWHERE + datagram(HERE, there.port, b"a")
            said += datagram(HERE, there.port, b"") + datagram(HERE, there.port, b"b" * 9000)
            async with await peer_connect(port_of(server), certs) as peer:
                await peer.send(frame(1, 1))
                for at in range(80):
                    await peer.send(frame(PSH, 1, said[at : at + 1]))
                await peer.send(frame(PSH, 1, said[80:]))
                assert await peer.frame() == (SYNACK, 1, b"")
                got = [(await there.receive())[0] for _ in range(3)]
                assert got == [b"a", b"", b"b" * 9000]


async def test_ipv6(certs: Certs) -> None:
    try:
        there = Udp(socket.AF_INET6, "::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with there:
        async with association(certs, ANYWHERE) as (_, peer):
            await peer.send(frame(PSH, 1, datagram("::1", there.port, b"six")))
            assert await there.answer() == b"six"
            assert await peer.frame() == (PSH, 1, datagram("::1", there.port, b"echo:six"))


async def test_without_ipv6_there_is_ipv4(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = udp._bound

    def no_ipv6(family: socket.AddressFamily, address: str) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError("no such thing")
        return bound(family, address)

    monkeypatch.setattr(udp, "_bound", no_ipv6)
    async with association(certs, ANYWHERE) as (_, peer):
        with Udp() as there:
            await peer.send(frame(PSH, 1, datagram("::1", there.port, b"six")))  # dropped
            await peer.send(frame(PSH, 1, datagram(HERE, there.port, b"four")))
            assert await there.answer() == b"four"
            assert await peer.frame() == (PSH, 1, datagram(HERE, there.port, b"echo:four"))


async def test_full_cone_everybody_may_answer(certs: Certs) -> None:
    async with association(certs, ANYWHERE) as (_, peer):
        with Udp() as there, Udp() as other:
            await peer.send(frame(PSH, 1, datagram(HERE, there.port, b"hello")))
            _, source = await there.receive()
            other.send(b"from elsewhere", source)
            assert await peer.frame() == (PSH, 1, datagram(HERE, other.port, b"from elsewhere"))


@pytest.mark.parametrize("host", [HERE, "peer.test"])
async def test_connected_there_is_one_peer(host: str, certs: Certs) -> None:
    with Udp() as there, Udp() as other:
        async with asyncio.timeout(SOON), server_for(certs) as server:
            know(server, {"peer.test": [HERE]})
            async with await peer_connect(port_of(server), certs) as peer:
                await peer.open(1, UOT, 0, to(host, there.port) + short(b"abc") + short(b""))
                assert await peer.frame() == (SYNACK, 1, b"")
                data, source = await there.receive()
                assert data == b"abc"
                assert (await there.receive())[0] == b""
                other.send(b"from elsewhere", source)
                there.send(b"", source)
                there.send(b"answer", source)
                assert await peer.frame() == (PSH, 1, short(b""))
                assert await peer.frame() == (PSH, 1, short(b"answer"))


@pytest.mark.parametrize(
    "host", [HERE, "127.0.0.1.", "localhost", "0.0.0.0", "::1", "2130706433", "255.255.255.255"]
)
async def test_the_policy_is_asked_about_every_datagram(host: str, certs: Certs) -> None:
    async with asyncio.timeout(SOON), server_for(certs, allow=["127.0.0.2"]) as server:
        know(server, {"localhost": [HERE, "::1"], "allowed.test": [HERE, "127.0.0.2"]})
        with Udp(host="127.0.0.2") as there, Udp() as denied, logged(logging.DEBUG) as lines:
            async with await peer_connect(port_of(server), certs) as peer:
                await peer.open(1, UOT, 0, ANYWHERE)
                assert await peer.frame() == (SYNACK, 1, b"")
                for target, port in (
                    (host, denied.port), ("127.0.0.2", there.port), ("allowed.test", there.port),
                ):  # fmt: skip
                    await peer.send(frame(PSH, 1, datagram(target, port, b"hello")))
                for _ in range(2):
                    assert await there.answer() == b"hello"
                    assert await peer.frame() == (
                        PSH, 1, datagram("127.0.0.2", there.port, b"echo:hello")
                    )  # fmt: skip
            with pytest.raises(BlockingIOError):
                denied.sock.recv(100)
        assert [line for line in lines if "a datagram to" in line and "dropped" in line]
        if not any("cannot resolve" in line for line in lines):
            (denial,) = [line for line in lines if line.startswith("INFO destination denied")]
            assert f"UDP {host}:{denied.port}" in denial.replace("[::1]", "::1")


async def test_a_denied_peer_is_refused(certs: Certs) -> None:
    async with asyncio.timeout(SOON), server_for(certs, allow=[]) as server:
        async with await peer_connect(port_of(server), certs) as peer:
            with logged() as lines:
                await peer.open(1, UOT, 0, to(HERE, 53) + short(b"abc"))
                assert await peer.frame() == (SYNACK, 1, b"not allowed")
                assert await peer.frame() == (FIN, 1, b"")
            (line,) = lines
            assert line.startswith("INFO destination denied (-allow, -deny): UDP 127.0.0.1:53, ")
        await eventually(lambda: empty(server))


async def test_datagrams_wait_for_their_names_and_nobody_else_does(certs: Certs) -> None:
    async with association(certs, ANYWHERE) as (server, peer):
        known = asyncio.Event()
        asked: list[str] = []

        async def resolve(host: str, port: int) -> list[Address]:
            asked.append(host)
            await known.wait()
            return [(socket.AF_INET, (HERE, port))]

        server._resolver.resolve = resolve  # type: ignore[method-assign]
        with Udp() as there:
            for data in (b"one", b"two"):
                await peer.send(frame(PSH, 1, datagram("late.test", there.port, data)))
            await peer.send(frame(PSH, 1, datagram(HERE, there.port, b"three")))
            got = [(await there.receive())[0]]
            known.set()
            got += [(await there.receive())[0] for _ in range(2)]
            assert got == [b"three", b"one", b"two"]
            await peer.send(frame(PSH, 1, datagram("late.test", there.port, b"four")))
            assert await there.answer() == b"four"
            assert await peer.frame() == (PSH, 1, datagram(HERE, there.port, b"echo:four"))
        assert asked == ["late.test"]


@pytest.mark.parametrize("zone", ["%a%b", "%", "%lo%1"])
async def test_a_malformed_zone_costs_its_datagrams_only(zone: str, certs: Certs) -> None:
    """Not even in the request."""
    async with association(certs, ANYWHERE) as (_, peer):
        with Udp() as there:
            await peer.send(frame(PSH, 1, datagram("::1" + zone, there.port, b"x")))
            await peer.open(2, UOT, 0, to("::1" + zone, there.port) + short(b"x"))
            command, stream, _ = await peer.frame()
            assert (command, stream) == (SYNACK, 2)
            await peer.send(frame(PSH, 1, datagram(HERE, there.port, b"hello")))
            assert await there.answer() == b"hello"
            assert await peer.frame() == (PSH, 1, datagram(HERE, there.port, b"echo:hello"))


async def test_a_name_that_fails_costs_its_datagrams_only(certs: Certs) -> None:
    async with association(certs, ANYWHERE) as (server, peer):
        know(server, {})
        with Udp() as there:
            for name in ("no.test", "no.test", "other.test"):
                await peer.send(frame(PSH, 1, datagram(name, there.port, b"x")))
            await peer.send(frame(PSH, 1, datagram(HERE, there.port, b"hello")))
            assert await there.answer() == b"hello"
            assert await peer.frame() == (PSH, 1, datagram(HERE, there.port, b"echo:hello"))


async def test_only_so_many_datagrams_wait_for_names(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "MAX_LOOKUPS", 3)
    monkeypatch.setattr(udp, "MAX_NAMES", 2)
    async with association(certs, ANYWHERE) as (server, peer):
        known = asyncio.Event()

        async def resolve(host: str, port: int) -> list[Address]:
            await known.wait()
            return [(socket.AF_INET, (HERE, port))]

        server._resolver.resolve = resolve  # type: ignore[method-assign]
        with Udp() as there, logged(logging.DEBUG) as lines:
            for n in range(5):
                await peer.send(frame(PSH, 1, datagram(f"{n}.test", there.port, b"x")))
            big = bytes(60_000)
            await peer.send(*(frame(PSH, 1, datagram("0.test", there.port, big)[at : at + 32000])
                              for at in range(0, 60_100, 32000)))  # fmt: skip
            await peer.send(frame(PSH, 1, datagram("0.test", there.port, bytes(5000))))
            dropped = "too many wait for names"
            await eventually(lambda: len([line for line in lines if dropped in line]) == 3)
            (relay,) = server.open_tunnels._carriers
            assert isinstance(relay, uot_relay.UotRelay)
            assert relay._udp._waiting <= udp.MAX_WAITING
            known.set()
            await eventually(lambda: not relay._udp._lookups)
            assert relay._udp._waiting == 0
            assert len(relay._udp._names) == 2


async def test_what_is_too_large_is_dropped_alone(certs: Certs) -> None:
    async with association(certs, ANYWHERE) as (_, peer):
        with Udp() as there, logged(logging.DEBUG) as lines:
            large = datagram(HERE, there.port, bytes(65_527))  # UDP over IPv4 carries 65507
            for at in range(0, len(large), 32768):
                await peer.send(frame(PSH, 1, large[at : at + 32768]))
            await peer.send(frame(PSH, 1, datagram(HERE, there.port, b"hello")))
            data, source = await there.receive()
            assert data == b"hello"
            # More than a client of the reference can take.
            there.send(bytes(16 * 1024 + 1), source)
            there.send(bytes(16 * 1024), source)
            assert await peer.data(1, 7 + 2 + 16 * 1024) == datagram(
                HERE, there.port, bytes(16 * 1024)
            )
        dropped = [line for line in lines if "was dropped" in line]
        assert len(dropped) == 2
        assert "of 65527 bytes was dropped: message too long" in dropped[0]


@pytest.mark.parametrize(
    "garbage", [b"\x07garbage", datagram(HERE, 53, b"")[:-2] + b"\xff\xff", b"\x02\0\0\0\0\0"]
)
async def test_what_is_no_datagram_ends_the_stream_alone(garbage: bytes, certs: Certs) -> None:
    async with association(certs, ANYWHERE) as (server, peer):
        await peer.send(frame(PSH, 1, garbage))
        assert await peer.frame() == (FIN, 1, b"")
        await eventually(lambda: not server.tunnels)
        await peer.send(frame(HEART_REQUEST, 5))
        assert await peer.frame() == (HEART_RESPONSE, 5, b"")


async def test_an_idle_association_ends(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, uot_relay, udp)
    async with association(certs, ANYWHERE, options={"udp-timeout": 60.0}) as (server, peer):
        with Udp() as there:
            for _ in range(3):
                await clock.passes(24)
                await peer.send(frame(PSH, 1, datagram(HERE, there.port, b"hello")))
                await there.receive()
            began = clock.now
            await clock.until(lambda: not server.tunnels)
            assert 59 < clock.now - began < 61
            assert await peer.frame() == (FIN, 1, b"")
        await eventually(lambda: not server.tunnels)


async def test_the_end_of_the_stream_is_the_end(certs: Certs) -> None:
    async with association(certs, ANYWHERE) as (server, peer):
        assert server.tunnels == 1
        await peer.send(frame(FIN, 1))
        await eventually(lambda: not server.tunnels)


async def test_a_request_that_is_late_costs_nobody_the_session(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients send it with the first datagram, and want to hear within 3 s of the beginning."""
    monkeypatch.setattr(anytls_server, "ANSWER_TIME", 0.1)
    async with association(certs, b"") as (_, peer):
        with Udp() as there:
            await peer.send(frame(PSH, 1, ANYWHERE + datagram(HERE, there.port, b"hello")))
            assert await there.answer() == b"hello"
            assert await peer.frame() == (PSH, 1, datagram(HERE, there.port, b"echo:hello"))


async def test_a_client_that_does_not_read_costs_datagrams_not_memory(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with association(certs, ANYWHERE) as (server, peer):
        with Udp() as there:
            await peer.send(frame(PSH, 1, datagram(HERE, there.port, b"hello")))
            _, source = await there.receive()
            (relay,) = server.open_tunnels._carriers
            assert isinstance(relay, uot_relay.UotRelay)
            for _ in range(3000):
                for _ in range(10):
                    with contextlib.suppress(BlockingIOError):
                        there.send(bytes(16_000), source)
                await asyncio.sleep(0)
                if not relay._udp._is_reading:
                    break
            assert not relay._udp._is_reading
            held = relay._stream.get_write_buffer_size()
            for _ in range(300):
                with contextlib.suppress(BlockingIOError):
                    there.send(bytes(16_000), source)
                await asyncio.sleep(0)
            assert relay._stream.get_write_buffer_size() <= held
            reader = asyncio.create_task(peer.tls.exactly(relay.received))
            await reader
            assert relay._udp._is_reading


async def test_closing_the_server_ends_associations(certs: Certs) -> None:
    async with asyncio.timeout(SOON), server_for(certs) as server:
        peer = await peer_connect(port_of(server), certs)
        await peer.open(1, UOT, 0, ANYWHERE + datagram("slow.test", 53, b"x"))
        assert await peer.frame() == (SYNACK, 1, b"")
    peer.tls.close()


async def test_no_socket_is_said_to_the_client(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(udp, "_open_socket", none_left)
    async with asyncio.timeout(SOON), server_for(certs) as server:
        with logged() as lines:
            async with await peer_connect(port_of(server), certs) as peer:
                await peer.open(1, UOT, 0, ANYWHERE)
                assert await peer.frame() == (SYNACK, 1, b"the connection failed")
                assert await peer.frame() == (FIN, 1, b"")
        assert "no UDP socket: too many open files" in lines[0]
        await eventually(lambda: empty(server))
