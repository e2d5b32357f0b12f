"""Forwarded UDP ports: datagrams of users reach a target behind an agent, and answers return."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct

import pytest

from anyproxy import forwarded_udp
from anyproxy.options import GroupOptions
from mtt.outcome import Outcome
from mtt.udp import flows
from tests.anyproxy.forwarding import (
    Udp,
    dropped,
    forwarding,
    opened,
    ports_of,
    received,
    to_udp,
    udp_echo,
)
from tests.anyproxy.serving import agent_for, gateway_for
from tests.support.certs import Certs
from tests.support.loopback import needs_ipv6
from tests.support.tunnels import SOON, eventually, logged


async def test_answers_return_to_each_user(certs: Certs) -> None:
    async with udp_echo() as there, forwarding(certs, to_udp(there)) as gateway:
        port = await opened(gateway, "udp")
        with Udp(port) as first, Udp(port) as second:
            for word in (b"one", b"two", b"three"):
                answers = await asyncio.gather(first.ask(b"1" + word), second.ask(b"2" + word))
                assert answers == [b"re: 1" + word, b"re: 2" + word]
            assert ports_of(gateway, "udp")[0].users == 2


@pytest.mark.parametrize("size", [0, 1, 8192, 65000])
async def test_size_of_datagrams_stays(certs: Certs, size: int) -> None:
    async with udp_echo() as there, forwarding(certs, to_udp(there)) as gateway:
        with Udp(await opened(gateway, "udp")) as user:
            await user.ask(b"hello")
            assert await user.ask(b"x" * size) == b"re: " + b"x" * size


async def test_name_is_looked_up_as_with_dig(certs: Certs) -> None:
    """A query of dig, and a DNS server that answers from the address that was asked."""
    query = bytes.fromhex("1e61 0120 0001 0000 0000 0001 03 6e6173 04 686f6d65 00 0001 0001")
    query += bytes.fromhex("00 0029 04d0 0000 0000 000c 000a 0008 0102030405060708")
    with Udp() as server:
        async with forwarding(certs, to_udp(server.port)) as gateway:
            with Udp(await opened(gateway, "udp")) as dig:
                dig.send(query)
                asked, source = await server.receive()
                assert asked == query
                answer = asked[:2] + b"\x85\x80" + struct.pack(">4H", 1, 1, 0, 0) + asked[12:26]
                answer += bytes.fromhex("c00c 0001 0001 0000003c 0004 c0a80102")
                server.send(answer, source)
                assert (await dig.receive())[0] == answer


async def test_only_the_target_answers(certs: Certs) -> None:
    with Udp() as target, Udp() as stranger:
        async with forwarding(certs, to_udp(target.port)) as gateway:
            with Udp(await opened(gateway, "udp")) as user:
                user.send(b"hello")
                _, source = await target.receive()
                stranger.send(b"not for you", source)
                target.send(b"welcome", source)
                assert (await user.receive())[0] == b"welcome"


async def test_users_from_elsewhere_are_refused(certs: Certs) -> None:
    options = {"default_group": GroupOptions(allow_from=(ipaddress.ip_network("10.0.0.0/8"),))}
    with Udp() as target:
        async with forwarding(certs, to_udp(target.port), **options) as gateway:
            port = await opened(gateway, "udp")
            with Udp(port) as user, logged() as lines:
                user.send(b"hello")
                refused = f"INFO port 127.0.0.1:{port}: user refused (allow_from): 127.0.0.1"
                await eventually(lambda: refused in lines)
            assert ports_of(gateway, "udp")[0].users == 0


async def test_number_of_users_is_limited(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarded_udp, "MAX_USERS", 2)
    async with udp_echo() as there, forwarding(certs, to_udp(there)) as gateway:
        port = await opened(gateway, "udp")
        with Udp(port) as first, Udp(port) as second, Udp(port) as third, logged() as lines:
            assert await first.ask(b"a") == b"re: a"
            assert await second.ask(b"b") == b"re: b"
            third.send(b"c")
            await eventually(lambda: any("user refused: the limit is 2" in line for line in lines))
            assert await first.ask(b"d") == b"re: d"


async def test_idle_users_are_forgotten(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "UNANSWERED_TIME", 0.1)
    with Udp() as target:
        async with forwarding(certs, to_udp(target.port), udp_timeout=0.5) as gateway:
            (port,) = ports_of(gateway, "udp")
            with Udp(port.number) as answered, Udp(port.number) as unanswered:
                answered.send(b"hello")
                _, source = await target.receive()
                target.send(b"welcome", source)
                await answered.receive()
                unanswered.send(b"hello")
                await target.receive()
                assert port.users == 2
                await eventually(lambda: port.users == 1)
                await eventually(lambda: port.users == 0)
            await eventually(
                lambda: all(session.open_streams <= 1 for session in gateway._frontend.sessions)
            )


async def test_datagrams_before_the_stream_is_open_are_held(certs: Certs) -> None:
    with Udp() as target:
        async with forwarding(certs, to_udp(target.port)) as gateway:
            with Udp(await opened(gateway, "udp")) as user:
                for number in range(20):
                    user.send(bytes((number,)) * 1000)
                got = [await target.receive() for _ in range(8)]
                assert [data[0] for data, _ in got] == list(range(8))


async def test_user_gets_a_new_stream_after_the_agent_returns(certs: Certs) -> None:
    async with (
        udp_echo() as there,
        gateway_for(certs) as gateway,
        agent_for(certs, gateway, open_ports=(to_udp(there),)) as agent,
    ):
        port = await opened(gateway, "udp")
        with Udp(port) as user:
            assert await user.ask(b"a") == b"re: a"
            await dropped(agent)
            await eventually(lambda: not ports_of(gateway, "udp")[0].users)
            assert await user.ask(b"b") == b"re: b"
            assert await opened(gateway, "udp") == port


async def test_target_that_is_denied_ends_the_users_stream(certs: Certs) -> None:
    async with gateway_for(certs) as gateway:
        options = {"open_ports": (to_udp(53),), "protocols": frozenset({"tcp"})}
        async with agent_for(certs, gateway, **options) as agent:
            with Udp(await opened(gateway, "udp")) as user:
                user.send(b"hello")
                await eventually(lambda: agent.targets.outcomes[Outcome.NOT_ALLOWED])
                await eventually(lambda: not ports_of(gateway, "udp")[0].users)


@needs_ipv6
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
async def test_answers_come_from_the_address_that_was_asked(certs: Certs, host: str) -> None:
    """Also if the port is open on all addresses: a user that checks the source needs it."""
    options = {"default_group": GroupOptions(ports_bind="")}
    async with udp_echo() as there, forwarding(certs, to_udp(there), **options) as gateway:
        port = await opened(gateway, "udp")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as user:
            user.setblocking(False)
            user.connect((host, port))
            user.send(b"hello")
            async with asyncio.timeout(SOON):
                assert (await received(user))[0] == b"re: hello"
