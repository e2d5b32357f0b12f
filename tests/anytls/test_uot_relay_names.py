"""UDP over TCP on the server: names, zones and which peers are allowed."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from mtt.net.resolve import Address
from mtt.outbound import udp
from mtt.proxy import uot_relay
from tests.anytls.associations import ANYWHERE, HERE, Udp, association, to
from tests.anytls.serving import empty, know, server_for
from tests.support.anytlspeer import FIN, PSH, SYNACK, UOT, datagram, frame, peer_connect, short
from tests.support.certs import Certs
from tests.support.tunnels import SOON, eventually, logged, port_of


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


async def test_only_datagrams_to_a_name_wait_for_it(certs: Certs) -> None:
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
async def test_malformed_zone_drops_only_its_datagrams(zone: str, certs: Certs) -> None:
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


async def test_failing_name_drops_only_its_datagrams(certs: Certs) -> None:
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
            dropped = "too many wait for lookups"
            await eventually(lambda: len([line for line in lines if dropped in line]) == 3)
            (relay,) = server.open_tunnels._carriers
            assert isinstance(relay, uot_relay.UotRelay)
            assert relay._udp._waiting <= udp.MAX_WAITING
            known.set()
            await eventually(lambda: not relay._udp._lookups)
            assert relay._udp._waiting == 0
            assert len(relay._udp._names) == 2
