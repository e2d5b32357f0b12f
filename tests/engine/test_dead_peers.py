"""Peers that are gone without a word: noticed, told to the applications, and replaced.

The constants are shortened. That packets are dropped is real: a filter on the sockets of the proxy
between both ends does that, so that not even the kernel answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import AsyncIterator

import pytest

from mtt.client import Client
from mtt.layers import anytls_client, keepalive
from mtt.layers.kernel import silent_seconds
from mtt.net import sockets
from mtt.outbound import anytls_pool, connector, reuse
from mtt.server import Server
from mtt.tunnels import relay
from tests.support.certs import Certs
from tests.support.faults import ELSEWHERE, FaultProxy, drop_packets, take_packets
from tests.support.gopeer import PING, ws_connect
from tests.support.metrics import numbers
from tests.support.transports import Recorder, attach, tcp_sockets
from tests.support.tunnels import (
    SESSION_MODES,
    SOON,
    Tcp,
    check_works,
    client_of,
    clock_of_tunnels,
    connect,
    echo,
    empty,
    eventually,
    in_every_mode,
    in_mux_modes,
    listening,
    port_of,
    server_at,
    serving,
)

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux can drop packets for one socket"
)
# With which the peer is asked for a sign of life by the program itself.
asking_modes = pytest.mark.parametrize("mode", ["wss", "mux", "wss+mux"])

# What is said once a minute or so in earnest.
OFTEN = (0.1, 0.15)
DEAD = 0.8


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds instead of minutes."""
    monkeypatch.setattr(relay, "DEAD_TIME", DEAD)
    monkeypatch.setattr(relay, "MAX_CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(keepalive, "INTERVAL", OFTEN)
    monkeypatch.setattr(keepalive, "CHECK_INTERVAL", 0.1)
    monkeypatch.setattr(keepalive, "DEAD_TIME", DEAD)
    monkeypatch.setattr(anytls_client, "HEART_TIME", DEAD)
    monkeypatch.setattr(anytls_pool, "CHECK_INTERVAL", 2 * DEAD)
    monkeypatch.setattr(anytls_pool, "MIN_TIME", 60.0)  # what is shorter becomes the other
    monkeypatch.setattr(connector, "DIAL_TIME", 1.0)
    # The kernel counts in seconds.
    monkeypatch.setattr(sockets, "KEEPALIVE_IDLE", 1)
    monkeypatch.setattr(sockets, "KEEPALIVE_INTERVAL", 1)
    monkeypatch.setattr(sockets, "KEEPALIVE_PROBES", 1)


@contextlib.asynccontextmanager
async def far_apart(
    mode: str, destination: int, certs: Certs
) -> AsyncIterator[tuple[Server, FaultProxy, Client]]:
    """Our two ends with a network between them that can go away."""
    async with (
        server_at(mode, destination, certs) as server,
        FaultProxy(port_of(server), host=ELSEWHERE) as proxy,
        client_of(mode, proxy.port, certs, s=f"{ELSEWHERE}:{proxy.port}") as client,
    ):
        yield server, proxy, client


async def is_told(end: Tcp) -> None:
    """The program at this end is told that its connection failed."""
    async with asyncio.timeout(3 * SOON):
        with pytest.raises((ConnectionResetError, TimeoutError)):
            await end.rest()


# The whole way.


@in_every_mode
async def test_tunnels_end_with_the_network_and_work_when_it_returns(
    mode: str, certs: Certs, hurried: None
) -> None:
    async with listening() as there, far_apart(mode, there.port, certs) as (server, proxy, client):
        ends = []
        for _ in range(2):
            ends.append(await connect(port_of(client)))
            await ends[-1].send(b"x")
            ends.append(await there.accept())
            assert await ends[-1].exactly(1) == b"x"
        await proxy.vanish()
        await ends[0].send(b"are you there?")  # the other application is idle
        await asyncio.gather(*(is_told(end) for end in ends))
        async with await connect(port_of(client)) as too_early:
            await is_told(too_early)
        await eventually(lambda: empty(server) and empty(client))
        await eventually(lambda: not any(numbers(end)["sessions"] for end in (server, client)))
        proxy.come_back()
        async with await connect(port_of(client)) as application:
            await application.send(b"again")
            assert await (await there.accept()).exactly(5) == b"again"
        for end in ends:
            end.close()


@asking_modes
async def test_dead_peer_behind_a_live_proxy_is_noticed(
    mode: str, certs: Certs, hurried: None
) -> None:
    """The proxy's kernel acknowledges everything: only the peer itself could tell that it lives."""
    async with listening() as there, far_apart(mode, there.port, certs) as (server, proxy, client):
        async with await connect(port_of(client)) as application:
            await application.send(b"x")
            async with await there.accept() as destination:
                assert await destination.exactly(1) == b"x"
                proxy.up.clear()
                await asyncio.gather(is_told(application), is_told(destination))
        await eventually(lambda: empty(server) and empty(client))
        proxy.reset_all()
        proxy.up.set()
        async with await connect(port_of(client)) as application:
            await application.send(b"again")
            assert await (await there.accept()).exactly(5) == b"again"


def test_dead_peers_are_noticed_within_80_seconds() -> None:
    """What docs/differences.md promises: 80 seconds. In between, a live peer is asked twice."""
    assert keepalive.DEAD_TIME + keepalive.CHECK_INTERVAL == 80.0
    assert 2 * keepalive.INTERVAL[1] < keepalive.DEAD_TIME
    assert relay.DEAD_TIME + relay.MAX_CHECK_INTERVAL <= 80.0
    idle = sockets.KEEPALIVE_IDLE + sockets.KEEPALIVE_PROBES * sockets.KEEPALIVE_INTERVAL
    assert idle <= 80.0


@asking_modes
async def test_a_silent_peer_is_noticed_one_interval_late_at_most(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However rarely the peer is asked."""
    clock = clock_of_tunnels(monkeypatch)
    monkeypatch.setattr(keepalive, "INTERVAL", (3600.0, 3600.0))
    async with (
        serving(echo) as there,
        far_apart(mode, there.port, certs) as (_, _, client),
        await connect(port_of(client)) as application,
    ):
        await clock.passes(keepalive.CHECK_INTERVAL / 3)
        await application.check_echo()
        reading = asyncio.create_task(application.rest())
        await clock.passes(keepalive.DEAD_TIME - 0.1)
        assert not reading.done()
        await clock.passes(keepalive.CHECK_INTERVAL + 0.2)
        with pytest.raises(ConnectionResetError):
            await reading


@asking_modes
async def test_idle_and_unread_connections_live_on(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle tunnel, and one whose application does not read: its pings come nevertheless."""
    clock = clock_of_tunnels(monkeypatch)
    async with listening() as there, far_apart(mode, there.port, certs) as (_, _, client):
        idle, lazy = await connect(port_of(client)), await connect(port_of(client))
        async with idle, lazy:
            for number, application in enumerate((idle, lazy)):
                await application.send(b"%d" % number)
            ends = {
                await end.exactly(1): end for end in (await there.accept(), await there.accept())
            }
            size = 300_000
            await ends[b"1"].send(bytes(size))
            await clock.passes(3 * keepalive.DEAD_TIME)
            await ends[b"0"].send(b"still there")
            assert await idle.exactly(11) == b"still there"
            assert len(await lazy.exactly(size)) == size


@in_mux_modes
async def test_new_connections_avoid_a_session_that_owes_an_answer(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before it counts as dead: none has to wait for that after a change of networks."""
    monkeypatch.setattr(reuse, "UNANSWERED_TIME", 0.3)
    async with (
        serving(echo) as there,
        far_apart(mode, there.port, certs) as (_, proxy, client),
        await connect(port_of(client)) as application,
    ):
        await application.check_echo()
        (session,) = client._sessions()
        await proxy.vanish()
        await application.send(b"are you there?")
        await eventually(lambda: not client._upstream._guard.admits(session))
        # Only for new connections: the old one is lost for good.
        take_packets(proxy.listener)
        proxy.up.set()
        await check_works(port_of(client))
        assert proxy.count == 2


@pytest.mark.parametrize("mode", SESSION_MODES)
async def test_after_a_network_change_the_next_connection_dials_anew(
    mode: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle session owes nothing, so only the route tells that it leads nowhere."""
    async with (
        serving(echo) as there,
        far_apart(mode, there.port, certs) as (_, proxy, client),
    ):
        await check_works(port_of(client))
        await eventually(lambda: not client.open_tunnels.open)
        await proxy.vanish()
        take_packets(proxy.listener)  # only connections of the old network are dead
        proxy.up.set()
        monkeypatch.setattr(reuse, "ROUTE_TIME", 0.0)
        monkeypatch.setattr(reuse, "source_address", lambda peer: "198.51.100.1")
        await check_works(port_of(client))
        assert proxy.count == 2


# Pings.


async def test_the_server_pings_in_plain_websocket_mode(certs: Certs, hurried: None) -> None:
    async with (
        serving(echo) as there,
        server_at("wss", there.port, certs) as server,
        await ws_connect(port_of(server), certs, "smux_off") as peer,
    ):
        for _ in range(3):
            assert await peer.frame() == (PING, b"")


@asking_modes
async def test_both_ends_keep_an_idle_connection_alive(
    mode: str, certs: Certs, hurried: None
) -> None:
    """Something goes both ways now and then, or a proxy in between would cut the connection."""
    async with (
        serving(echo) as there,
        far_apart(mode, there.port, certs) as (_, proxy, client),
        await connect(port_of(client)) as application,
    ):
        await application.check_echo()
        down, up = proxy.passed
        await eventually(lambda: proxy.passed[0] > down + 100 and proxy.passed[1] > up + 100)


# What the kernel knows.


def last_ack(sock: socket.socket) -> float:
    """Seconds since the peer's kernel has acknowledged anything."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60)
    return float(struct.unpack_from("I", info, 56)[0]) / 1000


async def test_silence_is_counted_while_the_peer_owes_an_acknowledgement() -> None:
    near, far = tcp_sockets()
    with far:
        transport = attach(near, Recorder())
        await eventually(lambda: last_ack(near) > 0.2)
        assert silent_seconds(transport) == 0.0  # nothing was sent
        drop_packets(far)
        transport.write(b"are you there?")
        await eventually(lambda: silent_seconds(transport) > 0.5)
        take_packets(far)
        await eventually(lambda: silent_seconds(transport) == 0.0)
        assert far.recv(100) == b"are you there?"
        transport.abort()


async def test_a_peer_that_does_not_read_owes_nothing() -> None:
    """It answers window probes, which become rare: there may be two minutes between two of them."""
    near, far = tcp_sockets(small=True)
    with far:
        upper = Recorder()
        transport = attach(near, upper)
        while upper.writable:
            transport.write(bytes(65536))
        await eventually(lambda: last_ack(near) > 1.0)
        assert silent_seconds(transport) == 0.0
        transport.abort()


async def test_dead_peer_that_did_not_read_counts_as_silent() -> None:
    near, far = tcp_sockets(small=True)
    with far:
        upper = Recorder()
        transport = attach(near, upper)
        while upper.writable:
            transport.write(bytes(65536))
        drop_packets(far)
        await eventually(lambda: silent_seconds(transport) > 1.0)
        transport.abort()
