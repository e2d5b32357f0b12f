"""UDP over TCP on the server: datagrams of users, there and back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

import pytest

from anytls import server as anytls_server
from mtt.outbound import udp
from mtt.proxy import uot_relay
from tests.anytls.associations import ANYWHERE, HERE, Udp, association, to
from tests.anytls.serving import empty, know, server_for
from tests.support.anytlspeer import (
    FIN,
    HEART_REQUEST,
    HEART_RESPONSE,
    PSH,
    SYNACK,
    UOT,
    UOT_1,
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


async def test_stream_may_be_cut_anywhere(certs: Certs) -> None:
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


async def test_full_cone_accepts_answers_from_any_peer(certs: Certs) -> None:
    async with association(certs, ANYWHERE) as (_, peer):
        with Udp() as there, Udp() as other:
            await peer.send(frame(PSH, 1, datagram(HERE, there.port, b"hello")))
            _, source = await there.receive()
            other.send(b"from elsewhere", source)
            assert await peer.frame() == (PSH, 1, datagram(HERE, other.port, b"from elsewhere"))


@pytest.mark.parametrize("host", [HERE, "peer.test"])
async def test_connected_association_has_one_peer(host: str, certs: Certs) -> None:
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


async def test_only_oversized_datagrams_are_dropped(certs: Certs) -> None:
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
async def test_invalid_datagram_ends_only_its_stream(garbage: bytes, certs: Certs) -> None:
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


async def test_late_request_does_not_end_the_session(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients send it with the first datagram, and want to hear within 3 s of the beginning."""
    monkeypatch.setattr(anytls_server, "ANSWER_TIME", 0.1)
    async with association(certs, b"") as (_, peer):
        with Udp() as there:
            await peer.send(frame(PSH, 1, ANYWHERE + datagram(HERE, there.port, b"hello")))
            assert await there.answer() == b"hello"
            assert await peer.frame() == (PSH, 1, datagram(HERE, there.port, b"echo:hello"))


async def test_client_that_does_not_read_loses_datagrams(
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


async def test_missing_socket_is_reported_to_the_client(
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
