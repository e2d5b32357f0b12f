"""Where streams of the server lead: failures, what is denied, slow destinations."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from anytls.server import DENIALS_SHOWN, Server
from mtt.address import Endpoint
from mtt.errors import DestinationError
from mtt.inbound import anytls_answer
from mtt.layers import anytls_heads
from mtt.layers.anytls_server import MAX_STREAMS
from mtt.layers.parked import Parked
from mtt.net.dial import Dialer
from mtt.outcome import Outcome
from tests.anytls.serving import empty, know, server_for
from tests.anytls.streams import HERE, check_echo, check_session, refused
from tests.support.anytlspeer import (
    FIN,
    PSH,
    SETTINGS,
    SYN,
    SYNACK,
    AnyTlsPeer,
    frame,
    peer_connect,
    preamble,
)
from tests.support.certs import Certs
from tests.support.gopeer import tls_connect
from tests.support.metrics import numbers, parse
from tests.support.tunnels import SOON, echo, eventually, listening, logged, port_of, serving


async def test_failure_reports_reveal_only_the_outcome(
    certs: Certs,
) -> None:
    async with asyncio.timeout(SOON), serving(echo) as there, server_for(certs) as server:
        with logged() as lines:
            async with await peer_connect(port_of(server), certs) as peer:
                assert await refused(peer, 1, HERE, 1) == "connection refused"
                know(server, {})
                assert await refused(peer, 2, "no.such.test", 80) == "no such host"
                assert await refused(peer, 3, "10.0.0.1", 80) == "not allowed"
                await check_echo(peer, 4, there.port)
        # The others are of no interest to anybody but the user.
        (line,) = lines
        assert "destination denied (-allow, -deny): TCP 10.0.0.1:80" in line
        page = parse(server.metrics_page())
        assert page["mtt_dial_failures_total"] == 2
        assert page["mtt_anytls_denied_total"] == 1
        await eventually(lambda: empty(server))


async def test_a_destination_that_does_not_answer_has_timed_out(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dial(*_: object) -> socket.socket:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(Dialer, "_connect_socket", dial)
    async with asyncio.timeout(SOON), server_for(certs) as server:
        server._outbound._dialer._timeout = 0.1
        async with await peer_connect(port_of(server), certs) as peer:
            assert await refused(peer, 1, HERE, 80) == "timed out"


async def test_invalid_name_fails_like_an_unknown_one(certs: Certs) -> None:
    async with (
        asyncio.timeout(20),
        server_for(certs) as server,
        await peer_connect(port_of(server), certs) as peer,
    ):
        assert await refused(peer, 1, "a..b", 80) == "no such host"
        assert await refused(peer, 2, "-" * 255, 80) == "no such host"


@pytest.mark.parametrize(
    "host",
    [HERE, "::1", "localhost", "0.0.0.0", "::", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "::1%lo",
     # What the system's resolver, too, takes for addresses (inet_aton).
     "0", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.0.0.01"],
)  # fmt: skip
async def test_loopback_is_denied_unless_allowed(host: str, certs: Certs) -> None:
    async with listening() as there, asyncio.timeout(SOON), server_for(certs, allow=[]) as server:
        async with await peer_connect(port_of(server), certs) as peer:
            assert await refused(peer, 1, host, there.port) == "not allowed"
        assert there.count == 0


async def test_denied_destinations_are_logged_throttled(certs: Certs) -> None:
    async with asyncio.timeout(SOON), server_for(certs, allow=[]) as server:
        with logged() as lines:
            async with await peer_connect(port_of(server), certs) as peer:
                for stream in range(1, 20):
                    assert await refused(peer, stream, HERE, 22) == "not allowed"
        assert len(lines) == DENIALS_SHOWN
        assert re.fullmatch(
            r"INFO destination denied \(-allow, -deny\): TCP 127\.0\.0\.1:22, user default, "
            r"from 127\.0\.0\.1:\d+",
            lines[0],
        )


async def test_only_allowed_addresses_of_a_name_are_tried(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow = [HERE]
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs, allow=allow) as server,
    ):
        tried: list[Endpoint] = []
        dial = server._outbound._dialer.connect

        async def watched(endpoint: Endpoint, factory: Any) -> asyncio.Transport:
            tried.append(endpoint)
            return await dial(endpoint, factory)

        monkeypatch.setattr(server._outbound._dialer, "connect", watched)
        know(server, {
            "mixed.test": ["10.0.0.1", "::1", HERE, "169.254.169.254"],
            "inner.test": ["::1", "::ffff:10.0.0.1"],
        })  # fmt: skip
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, "mixed.test", there.port, b"hello")
            assert await peer.frame() == (SYNACK, 1, b"")
            assert await peer.data(1, 5) == b"hello"
            assert await refused(peer, 2, "inner.test", there.port) == "not allowed"
        assert tried == [Endpoint((HERE,), there.port)]


async def test_rules_match_the_port(certs: Certs) -> None:
    async with asyncio.timeout(SOON), serving(echo) as there:
        allow = [f"{HERE}:{there.port}"]
        async with (
            server_for(certs, allow=allow) as server,
            await peer_connect(port_of(server), certs) as peer,
        ):
            await check_echo(peer, 1, there.port)
            assert await refused(peer, 2, HERE, there.port + 1) == "not allowed"


@pytest.mark.parametrize(
    "data", [b"\x02\x00\x00", b"\x03\x00\x00\x50", b"\x03\x02\xff\xff\0\0", b"\x03\x03a b\0\0"]
)
async def test_invalid_address_ends_only_its_stream(data: bytes, certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs) as server,
        await peer_connect(port_of(server), certs) as peer,
    ):
        await peer.send(frame(SYN, 1), frame(PSH, 1, data))
        assert await peer.frame() == (FIN, 1, b"")
        await check_echo(peer, 2, there.port)


async def test_missing_destination_ends_only_its_stream(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anytls_heads, "DESTINATION_TIME", 0.2)
    async with (
        asyncio.timeout(SOON),
        server_for(certs) as server,
        await peer_connect(port_of(server), certs) as peer,
    ):
        await peer.send(frame(SYN, 1), frame(SYN, 2), frame(PSH, 2, b"\x03\xfe"))
        assert {(await peer.frame())[1] for _ in range(2)} == {1, 2}
        await check_session(peer)


def slow_dial(server: Server, then: Callable[[], Awaitable[asyncio.Transport]]) -> asyncio.Event:
    """Let connecting take until the event is set."""
    go_on = asyncio.Event()

    async def dial(host: str, port: int) -> asyncio.Transport:
        await go_on.wait()
        return await then()

    server._outbound.connect = dial  # type: ignore[method-assign]
    return go_on


async def test_slow_destination_is_acknowledged_before_client_gives_up(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anytls_answer, "ANSWER_TIME", 0.1)
    async with asyncio.timeout(SOON), serving(echo) as there, server_for(certs) as server:
        dial = server._outbound._dialer.connect
        go_on = slow_dial(server, lambda: dial(Endpoint((HERE,), there.port), Parked))
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, "slow.test", 80, b"hello")
            assert await peer.frame() == (SYNACK, 1, b"")
            assert there.count == 0
            go_on.set()
            assert await peer.data(1, 5) == b"hello"


async def test_failure_after_the_acknowledgement_is_an_empty_end(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anytls_answer, "ANSWER_TIME", 0.1)

    async def fail() -> asyncio.Transport:
        raise DestinationError(Outcome.TIMED_OUT)

    async with asyncio.timeout(SOON), server_for(certs) as server:
        go_on = slow_dial(server, fail)
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, "slow.test", 80, b"hello")
            assert await peer.frame() == (SYNACK, 1, b"")
            go_on.set()
            assert await peer.frame() == (FIN, 1, b"")
            await check_session(peer)


async def test_disconnect_during_the_dial_leaves_nothing_behind(certs: Certs) -> None:
    async with asyncio.timeout(SOON), listening() as there, server_for(certs) as server:
        dial = server._outbound._dialer.connect
        go_on = slow_dial(server, lambda: dial(Endpoint((HERE,), there.port), Parked))
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, "slow.test", 80, b"the end")
            await peer.send(frame(FIN, 1))
            await peer.open(2, "slow.test", 80)
            await eventually(lambda: server.tunnels == 2)
            peer.tls.reset()
            await eventually(lambda: not numbers(server)["sessions"])
            go_on.set()
            async with await there.accept() as destination:
                assert await destination.rest() == b"the end"
        await eventually(lambda: empty(server))


async def test_abandoned_streams_are_not_dialled(certs: Certs) -> None:
    """A stream that is reset takes no room in its session, so its dial must not go on either."""
    count = 2 * MAX_STREAMS
    async with asyncio.timeout(20), server_for(certs) as server:
        slow_dial(server, asyncio.Future)
        async with AnyTlsPeer(await tls_connect(port_of(server), certs)) as peer:
            await peer.send(preamble(), frame(SETTINGS, 0, b"v=2\nhalf-close=1"))
            for number in range(count):
                await peer.open(number, "slow.test", 80)
                await peer.send(frame(FIN, number) * (number % 2), frame(PSH, number))
            await peer.open(count, "slow.test", 80)
            await eventually(lambda: server.counters.streams == count + 1)
            await eventually(lambda: server.tunnels == 1)


async def test_stream_that_ends_while_it_is_dialled_is_given_up(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(SOON), server_for(certs) as server:
        monkeypatch.setattr(server._outbound, "connect", never)
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, HERE, 1)
            await eventually(lambda: server.tunnels == 1)
            await peer.send(frame(FIN, 1))
            await eventually(lambda: server.tunnels == 0)
            await peer.open(3, HERE, 1, b"this much is to be delivered")
            await peer.send(frame(FIN, 3))
            await check_session(peer)
            assert server.tunnels == 1
