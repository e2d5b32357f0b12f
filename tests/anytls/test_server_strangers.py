"""Clients without a valid password reach the site of -fallback, and are not answered faster."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from functools import partial

import pytest

from mtt.http.fallback import SITE_TIME
from mtt.inbound import front
from mtt.layers import anytls_heads
from mtt.net.admission import Pending
from mtt.tunnels import relay
from tests.anytls.serving import empty, server_for
from tests.anytls.strangers import NEVER, SHORT_REQUEST, WRONG, has_heard, in_front_of_a_site, waits
from tests.support.anytlspeer import (
    FIN,
    PSH,
    SYN,
    SYNACK,
    AnyTlsPeer,
    address,
    frame,
    hashed,
    peer_connect,
    preamble,
    settings,
)
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.gopeer import Tls, tls_connect
from tests.support.metrics import failures, numbers
from tests.support.site import Site
from tests.support.tunnels import SOON, Tcp, echo, eventually, logged, maybe_reset, port_of, serving


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(WRONG, id="wrong password"),
        pytest.param(hashed("not it"), id="wrong hash and nothing else"),
        pytest.param(b"GET /page HTTP/1.1\r\nHost: test.local\r\n\r\n", id="request"),
        pytest.param(SHORT_REQUEST, id="request of 18 bytes"),
        pytest.param(b"QUIT\r\n", id="command"),
        pytest.param(b"GET / HT", id="half a line"),
        pytest.param(b"\x01", id="one byte"),
        pytest.param(hashed()[:31], id="31 bytes of a hash"),
        pytest.param(hashed("not it")[:31], id="31 bytes of a wrong hash"),
        pytest.param(b"POST / HTTP/1.1\r\n\r\n" + bytes(range(256)) * 300, id="upload"),
    ],
)
async def test_invalid_preamble_reaches_the_site_at_once(
    said: bytes, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch, preamble=NEVER)
    async with in_front_of_a_site(certs) as (server, site):
        async with await tls_connect(port_of(server), certs) as visitor:
            await visitor.send(said)
            assert await visitor.exactly(len(site.ANSWER)) == site.ANSWER
            await eventually(lambda: site.received == said)
            # And it goes on as a visit.
            await visitor.send(b"more")
            await eventually(lambda: site.received == said + b"more")
        assert site.visits == 1


@pytest.mark.parametrize("said", [hashed(), preamble()[:-1], preamble(padding=40_000)[:-9]])
async def test_incomplete_preamble_reaches_the_site_at_the_deadline(
    said: bytes, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch, preamble=0.3)
    async with (
        in_front_of_a_site(certs) as (server, site),
        await tls_connect(port_of(server), certs) as visitor,
    ):
        await visitor.send(said)
        await eventually(lambda: site.visits)
        await visitor.send(b"rest")
        await eventually(lambda: site.received == said + b"rest")
        assert await visitor.exactly(len(site.ANSWER)) == site.ANSWER


async def test_silent_visitor_is_given_to_the_site(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the site decides how long silence may last. The connection may still be a user's."""
    waits(monkeypatch, preamble=NEVER)
    clock = Clock(monkeypatch, anytls_heads)
    async with serving(echo) as there, in_front_of_a_site(certs) as (server, site):
        async with (
            await tls_connect(port_of(server), certs) as visitor,
            await tls_connect(port_of(server), certs) as late,
        ):
            await eventually(lambda: has_heard(server, b"") and numbers(server)["handshakes"] == 2)
            await clock.passes(SITE_TIME - 0.01)
            assert not site.visits
            await clock.passes(0.02)
            await eventually(lambda: site.visits == 2)
            assert numbers(server)["handshakes"] == 2  # and they are still limited in number
            await visitor.send(b"\x01")
            assert await visitor.exactly(len(site.ANSWER)) == site.ANSWER
            await eventually(lambda: numbers(server)["handshakes"] == 1)
            peer = AnyTlsPeer(late)
            await peer.send(preamble() + settings() + frame(SYN, 1))
            await peer.send(frame(PSH, 1, address("127.0.0.1", there.port) + b"hello"))
            frames = [await peer.frame() for _ in range(3)]
            assert frames[1:] == [(SYNACK, 1, b""), (PSH, 1, b"hello")]
        assert site.received == b"\x01"


async def test_silent_user_is_served_when_the_site_is_down(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, anytls_heads)
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_for(certs, fallback="127.0.0.1:1") as server,
    ):
        async with await tls_connect(port_of(server), certs) as late:
            await eventually(lambda: has_heard(server, b""))
            await clock.passes(SITE_TIME + 0.01)
            await eventually(lambda: server.counters.dial_failures == 1)
            await eventually(lambda: has_heard(server, b""))
            peer = AnyTlsPeer(late)
            await peer.send(preamble() + settings() + frame(SYN, 1))
            await peer.send(frame(PSH, 1, address("127.0.0.1", there.port) + b"hello"))
            frames = [await peer.frame() for _ in range(3)]
            assert frames[1:] == [(SYNACK, 1, b""), (PSH, 1, b"hello")]
        await eventually(lambda: empty(server))


async def test_an_end_sends_the_beginning_to_the_site_at_once(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch, preamble=NEVER)
    async with in_front_of_a_site(certs) as (server, site):
        async with await tls_connect(port_of(server), certs) as visitor:
            await visitor.send(b"\x01\x02\x03")
            await visitor.finish()
            await eventually(lambda: site.received == b"\x01\x02\x03")
        async with await tls_connect(port_of(server), certs) as visitor:
            await visitor.finish()  # the site is not asked
            with pytest.raises(ssl.SSLEOFError):  # no close_notify, as from nginx
                await visitor.read()
        assert site.visits == 1


async def test_visitor_sees_the_end_of_the_site_at_once(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """close_notify and FIN, as from a web server; the relay's clock stands still."""

    async def close_behind_the_answer(connection: Tcp) -> None:
        await connection.until(b"\r\n\r\n")
        await connection.send(Site.ANSWER)
        await connection.finish()
        ended.append(await connection.rest())

    ended: list[bytes] = []
    async with (
        asyncio.timeout(SOON),
        serving(close_behind_the_answer) as web,
        server_for(certs, fallback=f"127.0.0.1:{web.port}") as server,
    ):
        Clock(monkeypatch, relay)
        async with await tls_connect(port_of(server), certs) as visitor:
            await visitor.send(SHORT_REQUEST)
            assert await visitor.rest() == Site.ANSWER
            assert await asyncio.get_running_loop().sock_recv(visitor.sock, 1) == b""
        await eventually(lambda: empty(server))
    assert ended == [b""]


async def test_users_are_served_while_visitors_are(certs: Certs) -> None:
    async with serving(echo) as there, in_front_of_a_site(certs) as (server, site):
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, "127.0.0.1", there.port, b"hello")
            assert await peer.frame() == (SYNACK, 1, b"")
            assert await peer.data(1, 5) == b"hello"
        assert site.visits == 0


async def test_a_site_that_is_down_ends_the_visit_with_one_line(certs: Certs) -> None:
    async with asyncio.timeout(SOON), server_for(certs, fallback="127.0.0.1:1") as server:
        with logged() as lines:
            async with await tls_connect(port_of(server), certs) as visitor:
                await visitor.send(SHORT_REQUEST)
                with pytest.raises(ConnectionError):
                    await visitor.read()
        assert len(lines) == 1
        assert "127.0.0.1:1: connection refused" in lines[0]


@pytest.mark.parametrize("padding", [0, 30, 2000, 65535])
async def test_a_preamble_may_come_in_pieces_behind_the_hash(padding: int, certs: Certs) -> None:
    said = preamble(padding=padding) + settings() + frame(SYN, 7)
    async with asyncio.timeout(SOON), serving(echo) as there, server_for(certs) as server:
        async with AnyTlsPeer(await tls_connect(port_of(server), certs)) as peer:
            await peer.send(said[:32])
            for at in range(32, 100):
                await peer.send(said[at : at + 1])
                await asyncio.sleep(0)
            await peer.send(said[100:], frame(PSH, 7, address("127.0.0.1", there.port) + b"data"))
            frames = [await peer.frame() for _ in range(3)]
            assert frames[1:] == [(SYNACK, 7, b""), (PSH, 7, b"data")]
        await eventually(lambda: empty(server))


async def test_begun_preamble_has_longer_than_silence(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, anytls_heads)
    async with serving(echo) as there, in_front_of_a_site(certs) as (server, site):
        async with AnyTlsPeer(await tls_connect(port_of(server), certs)) as user:
            await user.send(hashed())
            await eventually(lambda: has_heard(server, hashed()))
            await clock.passes(anytls_heads.PREAMBLE_TIME - 0.1)
            assert not site.visits
            await user.send(preamble()[len(hashed()) :], settings(), frame(SYN, 1))
            await user.send(frame(PSH, 1, address("127.0.0.1", there.port) + b"hello"))
            frames = [await user.frame() for _ in range(3)]
            assert frames[1:] == [(SYNACK, 1, b""), (PSH, 1, b"hello")]
        async with await tls_connect(port_of(server), certs) as stranger:
            await stranger.send(hashed())
            await eventually(lambda: has_heard(server, hashed()))
            await clock.passes(anytls_heads.PREAMBLE_TIME + 0.1)
            await eventually(lambda: site.received == hashed())


async def test_slow_connections_are_limited_in_number_and_time(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slow-loris: the oldest ones have to go when there are too many, and all when it is time."""
    waits(monkeypatch, preamble=10)
    clock = Clock(monkeypatch, anytls_heads)
    monkeypatch.setattr(front, "Pending", partial(Pending, 4))
    async with asyncio.timeout(SOON), serving(echo) as there, server_for(certs) as server:
        slow = [await tls_connect(port_of(server), certs) for _ in range(8)]
        await eventually(lambda: numbers(server)["handshakes"] == 4)
        async with await peer_connect(port_of(server), certs) as peer:
            await peer.open(1, "127.0.0.1", there.port, b"hello")
            assert await peer.frame() == (SYNACK, 1, b"")
        for connection in slow[:4]:
            with pytest.raises(ConnectionError):
                await connection.read()
        # A byte now and then does not buy time.
        for number in range(11):
            for connection in slow[5:]:
                with contextlib.suppress(ConnectionError):
                    await connection.send(b"\xff" if number else hashed())
            await clock.passes(1)
        await eventually(lambda: empty(server))
        for connection in slow:
            connection.close()
        found = failures(numbers(server))
        assert sum(found.values()) == 8
        assert found["overload"] >= 4


async def test_user_leaving_at_any_point_leaves_nothing_behind(certs: Certs) -> None:
    said = preamble() + settings() + frame(SYN, 1) + frame(PSH, 1, address("127.0.0.1", 1))
    said += frame(FIN, 1)
    async with asyncio.timeout(20), server_for(certs) as server:
        with logged() as lines:
            for size in range(0, len(said), 5):
                tls: Tls = await tls_connect(port_of(server), certs)
                await tls.send(said[:size])
                if size % 2:
                    tls.reset()
                else:
                    with maybe_reset(), contextlib.suppress(ssl.SSLError):
                        await tls.finish()
                    tls.close()
            await eventually(lambda: empty(server))
        assert not [line for line in lines if "internal error" in line]
