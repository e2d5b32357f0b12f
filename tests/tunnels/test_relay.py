"""The relay: copying, back-pressure, taking over parked connections, failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mtt.layers.parked import Parked
from mtt.layers.tcp import SocketTransport
from mtt.tunnels.relay import Relay
from tests.support.transports import FakeLayer, FakeTransport, raw_peer, turns
from tests.tunnels.relays import Tunnel, half_closing, one_end_only, own_end

# Copying.


async def test_bytes_are_copied_both_ways_and_counted() -> None:
    tunnel = Tunnel()
    assert tunnel.near.reading
    assert tunnel.far.reading
    tunnel.near.protocol.data_received(b"request")
    tunnel.far.protocol.data_received(memoryview(b"the reply"))
    assert tunnel.far.take() == b"request"
    assert tunnel.near.take() == b"the reply"
    tunnel.relay.abort("enough")
    relay = await tunnel.finish()
    assert (relay.sent, relay.received, relay.reason) == (7, 9, "enough")


async def test_back_pressure_pauses_the_other_transport() -> None:
    tunnel = Tunnel()
    tunnel.far.protocol.pause_writing()
    assert not tunnel.near.reading
    assert tunnel.far.reading
    tunnel.far.protocol.resume_writing()
    assert tunnel.near.reading
    tunnel.near.protocol.pause_writing()
    assert not tunnel.far.reading
    tunnel.relay.abort("")
    await tunnel.finish()


# Taking over.


async def test_early_data_goes_first() -> None:
    def early(tunnel: Tunnel) -> None:
        tunnel.parked_ends[0].early = b"first "
        tunnel.parked_ends[1].early = b"banner"

    tunnel = Tunnel(prepare=early)
    tunnel.near.protocol.data_received(b"second")
    assert tunnel.far.take() == b"first second"
    assert tunnel.near.take() == b"banner"
    assert tunnel.relay.sent == 12
    tunnel.relay.abort("")
    await tunnel.finish()


class Full(FakeTransport):
    """A transport that pauses writing at the first write."""

    def write(self, data: Any) -> None:
        super().write(data)
        self.protocol.pause_writing()


class FullAlready(FakeTransport):
    """A transport that pauses writing in `set_protocol`."""

    def set_protocol(self, protocol: Any) -> None:
        super().set_protocol(protocol)
        protocol.pause_writing()


@pytest.mark.parametrize("full", [Full, FullAlready])
async def test_early_data_may_cause_back_pressure(full: type[FakeTransport]) -> None:
    def early(tunnel: Tunnel) -> None:
        for parked in tunnel.parked_ends:
            parked.early = b"much"

    for near, far in ((half_closing, full), (full, half_closing)):
        tunnel = Tunnel(near, far, prepare=early)
        assert tunnel.near.reading is (far is half_closing)
        assert tunnel.far.reading is (near is half_closing)
        tunnel.relay.abort("")
        await tunnel.finish()


@pytest.mark.parametrize("end", ["near", "far", "both"])
@pytest.mark.parametrize("told", [False, True], ids=["not told", "told"])
async def test_transport_lost_before_the_relay(end: str, told: bool) -> None:
    def die(tunnel: Tunnel) -> None:
        for name, transport in (("near", tunnel.near), ("far", tunnel.far)):
            if end in (name, "both"):
                if told:
                    transport.closing = True  # only the Parked is notified
                else:
                    transport.lose(ConnectionResetError())

    tunnel = Tunnel(prepare=die)
    await turns()
    assert end == "near" or tunnel.near.aborted or end == "both"
    assert end == "far" or tunnel.far.aborted or end == "both"
    assert (await tunnel.finish()).reason


# Failures.


@pytest.mark.parametrize("far", [half_closing, one_end_only])
@pytest.mark.parametrize("exc", [None, ConnectionResetError(104, "reset by peer")])
async def test_failed_leg_resets_the_other(
    exc: Exception | None, far: Callable[[], FakeTransport]
) -> None:
    for end in ("near", "far"):
        tunnel = Tunnel(half_closing, far)
        failing, other = (tunnel.near, tunnel.far) if end == "near" else (tunnel.far, tunnel.near)
        failing.protocol.data_received(b"part")
        failing.lose(exc)
        await turns(2)
        assert other.aborted or other.was_cut
        words = "reset by peer" if exc else "connection closed"
        assert (await tunnel.finish()).reason == f"{end} end: connection {words}".replace(
            "connection connection", "connection"
        )


@pytest.mark.parametrize("end", ["near", "far"])
async def test_leg_failing_after_its_end_resets_the_other(end: str) -> None:
    tunnel = Tunnel(own_end, own_end)
    ended, other = (tunnel.near, tunnel.far) if end == "near" else (tunnel.far, tunnel.near)
    ended.protocol.data_received(b"all of it")
    ended.protocol.eof_received()
    assert other.eof_written
    ended.lose(ConnectionResetError())
    await turns(2)
    assert other.take() == b"all of it"
    assert other.was_cut
    assert not ended.was_cut
    relay = await tunnel.finish()
    assert relay.reason == f"{end} end: takes no more data"
    assert relay.error is None


@pytest.mark.parametrize("end", ["near", "far"])
async def test_leg_that_ends_in_two_steps_closes_the_other(end: str) -> None:
    """A Go peer ends TCP a moment after TLS, and has everything by then."""
    tunnel = Tunnel(own_end, own_end)
    ended, other = (tunnel.near, tunnel.far) if end == "near" else (tunnel.far, tunnel.near)
    ended.protocol.data_received(b"all of it")
    ended.protocol.eof_received()
    assert other.eof_written
    ended.lose(None)
    await turns(2)
    assert other.take() == b"all of it"
    assert other.closing
    assert not (other.was_cut or other.aborted)
    assert (await tunnel.finish()).reason == "done"


async def test_abort_resets_both_at_any_time() -> None:
    for when in ("open", "half", "closing"):
        tunnel = Tunnel()
        if when != "open":
            tunnel.near.protocol.eof_received()
        if when == "closing":
            tunnel.far.protocol.eof_received()
        tunnel.relay.abort("shutting down")
        tunnel.relay.abort("again")
        assert tunnel.near.aborted or when == "closing"
        assert tunnel.far.aborted or when == "closing"
        relay = await tunnel.finish()
        assert relay.reason == ("done" if when == "closing" else "shutting down")


class Shared(FakeLayer):
    """A stream that shares its connection with others."""

    shares_connection = True


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("shares", [False, True])
async def test_bulk_stream_is_read_in_small_pieces(
    shares: bool, swap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited: list[SocketTransport] = []
    monkeypatch.setattr(SocketTransport, "limit_reads", lambda self: limited.append(self))
    parked = Parked()
    async with raw_peer(parked):
        bulk = parked.transport
        assert bulk is not None
        stream = (Shared if shares else FakeLayer)(Parked(), half_close=True)
        ends = (stream, bulk) if swap else (bulk, stream)
        over: list[Relay] = []
        relay = Relay(*ends, timeout=30, done=over.append)
        assert limited == ([bulk] if shares else [])
        relay.abort("enough")
        await turns()
        assert over == [relay]
