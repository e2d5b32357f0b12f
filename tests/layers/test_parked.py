"""The protocol that holds a connection still."""

from __future__ import annotations

import asyncio

import pytest

from mtt.errors import NetworkError, NothingSaidError, PeerError
from mtt.layers.base import NO_PROTOCOL
from mtt.layers.parked import Parked, hand_over
from mtt.layers.tls import TlsLayer
from tests.support.certs import Certs
from tests.support.stacks import client_context, server_context
from tests.support.transports import FakeTransport, Recorder, attach, raw_peer, tcp_sockets, turns


async def test_callback_gets_the_transport() -> None:
    told: list[asyncio.Transport] = []
    parked = Parked(told.append)
    transport = FakeTransport(parked)
    parked.connection_made(transport)
    assert told == [transport]
    assert parked.transport is transport
    parked.pause_writing()
    parked.resume_writing()


async def test_data_are_kept_and_pause_the_transport() -> None:
    parked = Parked()
    transport = FakeTransport(parked)
    parked.connection_made(transport)
    assert transport.reading
    parked.data_received(b"one")
    assert not transport.reading
    parked.data_received(b"two")  # a layer below may still have something in hand
    assert parked.early == b"onetwo"


@pytest.mark.parametrize("dead", [False, True])
async def test_hand_over_repeats_all_that_happened(dead: bool) -> None:
    """The next protocol sees all that has happened, in order."""
    parked = Parked()
    transport = FakeTransport(parked)
    parked.connection_made(transport)
    parked.data_received(b"first words")
    assert parked.eof_received()
    if dead:
        transport.lose(ConnectionResetError(104, "reset"))
        await turns()
    recorder = Recorder()
    hand_over(transport, recorder)
    # A transport that is over refers to nothing that is above it.
    assert transport.get_protocol() is (NO_PROTOCOL if dead else recorder)
    assert bytes(recorder.data) == b"first words"
    assert recorder.eof
    assert recorder.lost == dead
    assert isinstance(recorder.error, ConnectionResetError) == dead


async def test_hand_over_to_a_protocol_that_pauses_at_once() -> None:
    parked = Parked()
    transport = FakeTransport(parked)
    parked.connection_made(transport)
    recorder = Recorder()
    recorder.connection_made = FakeTransport.pause_reading  # type: ignore[assignment]
    hand_over(transport, recorder)
    assert not transport.reading


async def test_opened_waits_for_the_transport() -> None:
    parked = Parked()
    transport = FakeTransport(parked)
    waiting = asyncio.create_task(parked.opened())
    await turns()
    assert not waiting.done()
    parked.connection_made(transport)
    assert await waiting is transport
    assert await parked.opened() is transport


async def test_failure_is_raised_to_present_and_later_waiters() -> None:
    parked = Parked()
    waiting = asyncio.create_task(parked.opened())
    await turns()
    error = PeerError("not the right one")
    parked.connection_lost(error)
    for again in (waiting, parked.opened()):
        with pytest.raises(PeerError, match="not the right one"):
            await again


async def test_failure_without_a_reason() -> None:
    parked = Parked()
    parked.connection_lost(None)
    with pytest.raises(NetworkError):
        await parked.opened()


async def test_cancelled_waiter_leaves_no_trace() -> None:
    for fails in (False, True):
        parked = Parked()
        waiting = asyncio.create_task(parked.opened())
        await turns()
        waiting.cancel()
        await asyncio.wait([waiting])
        if fails:
            parked.connection_lost(None)
        else:
            parked.connection_made(FakeTransport())


async def test_callback_gets_the_failure() -> None:
    told: list[Exception] = []
    parked = Parked(lambda _transport: None, told.append)
    parked.connection_lost(NothingSaidError("left"))
    assert [type(error) for error in told] == [NothingSaidError]


async def test_failure_after_opening_is_kept() -> None:
    told: list[Exception] = []
    parked = Parked(lambda _transport: None, told.append)
    transport = FakeTransport(parked)
    parked.connection_made(transport)
    transport.lose(ConnectionResetError(104, "reset"))
    await turns()
    assert told == []
    assert isinstance(parked.error, ConnectionResetError)
    assert transport.is_closing()


async def test_nothing_more_is_read_until_a_protocol_takes_over() -> None:
    parked = Parked()
    async with raw_peer(parked) as sock:
        transport = await parked.opened()
        await asyncio.get_running_loop().sock_sendall(sock, b"patience")
        await turns()
        recorder = Recorder()
        recorder.connection_made(transport)
        transport.set_protocol(recorder)
        transport.resume_reading()
        data = await recorder.received(8 - len(parked.early))
        assert parked.early + data == b"patience"


async def test_parked_above_tls(certs: Certs) -> None:
    near, far = tcp_sockets()
    one, other = Parked(), Parked()
    transports = [
        attach(
            near,
            TlsLayer(one, client_context(certs), server_side=False, server_name=certs.name),
        ),
        attach(far, TlsLayer(other, server_context(certs), server_side=True)),
    ]
    opened = [await one.opened(), await other.opened()]
    opened[0].write(b"held back")
    await turns()
    recorder = Recorder()
    hand_over(opened[1], recorder)
    assert await recorder.received(9) == b"held back"
    for transport in transports:
        transport.abort()
    await turns()
