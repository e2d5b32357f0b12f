"""The relay: each rule of how a tunnel ends, on fake transports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mtt.errors import NetworkError
from mtt.layers.parked import Parked
from mtt.layers.tcp import SocketTransport
from mtt.tunnels import relay as module
from mtt.tunnels.relay import Relay
from tests.support.clock import Clock
from tests.support.transports import FakeLayer, FakeTransport, raw_peer, turns

QUIET = module.QUIET_TIME


def half_closing() -> FakeTransport:
    return FakeTransport()


def one_end_only() -> FakeTransport:
    """A transport without half-close, like WebSocket and smux towards Go peers."""
    return FakeLayer(half_close=False)


def own_end() -> FakeTransport:
    """A layer with half-close, as when both peers are mtt."""
    return FakeLayer(half_close=True)


class Tunnel:
    """A relay between two transports that were parked."""

    def __init__(
        self,
        near: Callable[[], FakeTransport] = half_closing,
        far: Callable[[], FakeTransport] = half_closing,
        *,
        timeout: float = 30.0,
        prepare: Callable[[Tunnel], Any] = lambda tunnel: None,
    ) -> None:
        self.near, self.far = near(), far()
        self.parked_ends = []
        for transport in (self.near, self.far):
            parked = Parked()
            transport.set_protocol(parked)
            parked.connection_made(transport)
            self.parked_ends.append(parked)
        prepare(self)
        self.over: list[Relay] = []
        self.relay = Relay(self.near, self.far, timeout=timeout, done=self.over.append)

    @property
    def ending(self) -> bool:
        return bool(self.relay.reason)

    async def finish(self) -> Relay:
        """Lose both transports and check that the relay ends exactly once."""
        for transport in (self.near, self.far):
            transport.lose(None)
        await turns()
        assert self.over == [self.relay]
        assert self.relay._idle_timer is not None
        assert self.relay._idle_timer.cancelled()
        assert self.relay._quiet_timer is None or self.relay._quiet_timer.cancelled()
        return self.relay


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


# Ordinary ends.


async def test_half_close_ends_one_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel()
    tunnel.near.protocol.data_received(b"request")
    assert tunnel.near.protocol.eof_received()
    assert tunnel.far.eof_written
    assert tunnel.near.protocol.eof_received()  # asyncio repeats it
    await clock.passes(2 * QUIET)
    tunnel.far.protocol.data_received(b"reply")
    assert tunnel.near.take() == b"reply"
    assert not tunnel.near.eof_written
    assert tunnel.far.protocol.eof_received()
    assert tunnel.relay.reason == "done"
    assert (await tunnel.finish()).received == 5


async def test_end_without_half_close_ends_both_directions() -> None:
    for near, far in ((half_closing, one_end_only), (one_end_only, half_closing)):
        tunnel = Tunnel(near, far)
        ending, other = (
            (tunnel.far, tunnel.near) if far is one_end_only else (tunnel.near, tunnel.far)
        )
        ending.protocol.data_received(b"last")
        ending.protocol.eof_received()
        assert other.take() == b"last"
        assert other.eof_written  # and lingers
        assert ending.closing
        assert not ending.aborted
        assert not other.aborted
        assert (await tunnel.finish()).reason == "done"


async def test_go_server_gets_the_end_after_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(half_closing, one_end_only)
    tunnel.near.protocol.data_received(b"request")
    tunnel.near.protocol.eof_received()
    for number in range(8):
        await clock.passes(QUIET / 3)
        assert not tunnel.far.eof_written
        tunnel.far.protocol.data_received(b"%d" % number)
    last = clock.now
    await clock.until(lambda: tunnel.far.eof_written)
    assert QUIET <= clock.now - last <= QUIET + module.QUIET_INTERVALS[1]
    # After the end it still sends its pending data, and ends.
    tunnel.far.protocol.data_received(b", bye")
    tunnel.far.protocol.eof_received()
    assert tunnel.near.take() == b"01234567, bye"
    assert tunnel.near.closing
    assert not tunnel.far.aborted
    assert not tunnel.near.aborted
    assert (await tunnel.finish()).reason == "done"


@pytest.mark.parametrize(
    ("asked", "said", "wait"),
    [
        (0, 0, 0.0),  # neither side has sent data
        (10, 10, 0.0),  # the destination has answered
        (0, 10, 0.0),  # the destination sends first
        (10, 0, module.REQUEST_QUIET_TIME),  # a request that is refused without an answer
        (module.REQUEST_SIZE, 0, module.REQUEST_QUIET_TIME),
        (module.REQUEST_SIZE + 1, 0, QUIET),  # an upload that may go on
    ],
)
async def test_go_client_gets_the_end_when_nothing_is_in_flight(
    asked: int, said: int, wait: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(one_end_only, half_closing)
    tunnel.near.protocol.data_received(bytes(asked))
    tunnel.far.protocol.data_received(bytes(said)) if said else None
    tunnel.far.protocol.eof_received()
    start = clock.now
    await clock.until(lambda: tunnel.near.eof_written)
    assert wait - 1e-9 <= clock.now - start <= wait + 0.02
    tunnel.near.protocol.eof_received()
    assert (await tunnel.finish()).reason == "done"


async def test_silence_counts_from_the_last_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    for near, far in ((one_end_only, half_closing), (half_closing, one_end_only)):
        tunnel = Tunnel(near, far)
        ended = tunnel.near if near is half_closing else tunnel.far
        told = tunnel.far if near is half_closing else tunnel.near
        tunnel.near.protocol.data_received(bytes(100_000))
        await clock.passes(QUIET)
        ended.protocol.eof_received()
        assert told.eof_written
        tunnel.relay.abort("")
        await tunnel.finish()


async def test_upload_to_half_closed_destination_completes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(one_end_only, half_closing)
    tunnel.far.protocol.eof_received()
    assert tunnel.near.eof_written
    tunnel.relay.abort("")
    await tunnel.finish()
    tunnel = Tunnel(one_end_only, half_closing)
    tunnel.near.protocol.data_received(bytes(100_000))
    tunnel.far.protocol.eof_received()
    for _ in range(10):
        await clock.passes(QUIET / 2)
        assert not tunnel.near.eof_written
        tunnel.near.protocol.data_received(b"more")
    tunnel.far.buffered = 1000  # the destination is slow, so reading from the client is paused
    await clock.passes(3 * QUIET)
    assert not tunnel.near.eof_written
    tunnel.far.buffered = 0
    await clock.until(lambda: tunnel.near.eof_written)
    assert len(tunnel.far.take()) == 100_040
    tunnel.relay.abort("")
    await tunnel.finish()


async def test_download_for_a_lost_application_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(half_closing, one_end_only)
    tunnel.near.protocol.data_received(b"request")
    await clock.passes(QUIET)
    tunnel.near.protocol.eof_received()
    tunnel.near.lose(ConnectionResetError())
    await turns(2)
    start = clock.now
    while not tunnel.far.closing:
        tunnel.far.protocol.data_received(bytes(module.ORPHAN_BYTES // 4))
        await clock.passes(QUIET / 20)
    assert clock.now - start < QUIET
    assert (await tunnel.finish()).reason == "done"


async def test_go_server_closing_with_unsent_data_cuts() -> None:
    tunnel = Tunnel(half_closing, one_end_only)
    tunnel.near.protocol.data_received(b"upload")
    tunnel.far.protocol.data_received(b"answer")
    tunnel.far.buffered = 1
    tunnel.far.protocol.eof_received()
    await turns(2)
    assert tunnel.near.take() == b"answer"
    assert tunnel.near.aborted
    reason = "the server closed before it had received everything"
    assert (await tunnel.finish()).reason == reason


async def test_unanswered_end_resets_the_other_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(half_closing, one_end_only)
    tunnel.near.protocol.eof_received()
    await clock.until(lambda: tunnel.far.eof_written)
    assert not tunnel.ending
    await clock.until(lambda: tunnel.ending)
    assert tunnel.near.aborted  # without an end, the reply may be incomplete
    assert not tunnel.far.aborted
    assert (await tunnel.finish()).reason == "the peer did not end its side"


async def test_loss_after_the_end_was_sent_is_orderly(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(half_closing, one_end_only)
    tunnel.near.protocol.eof_received()
    await clock.until(lambda: tunnel.far.eof_written)
    tunnel.far.lose(NetworkError("cut off"))
    await turns()
    assert tunnel.near.closing
    assert not tunnel.near.aborted
    assert (await tunnel.finish()).reason == "done"


@pytest.mark.parametrize("stuck", ["near", "far"])
async def test_go_server_gets_the_end_after_all_data(
    stuck: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(one_end_only, one_end_only)
    tunnel.near.half_close = True
    getattr(tunnel, stuck).buffered = 5000
    tunnel.near.protocol.eof_received()
    await clock.passes(3 * QUIET)
    assert not tunnel.far.eof_written
    getattr(tunnel, stuck).buffered = 0
    await clock.until(lambda: tunnel.far.eof_written)
    tunnel.far.protocol.eof_received()
    assert (await tunnel.finish()).reason == "done"


async def test_peer_ends_during_the_wait_for_silence() -> None:
    tunnel = Tunnel(half_closing, one_end_only)
    tunnel.near.protocol.eof_received()
    tunnel.far.protocol.data_received(b"bye")
    tunnel.far.protocol.eof_received()
    assert tunnel.near.take() == b"bye"
    assert tunnel.far.closing
    assert (await tunnel.finish()).reason == "done"


async def test_half_close_support_learned_during_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(half_closing, one_end_only)
    tunnel.near.protocol.eof_received()
    assert not tunnel.far.eof_written
    tunnel.far.half_close = True
    await clock.until(lambda: tunnel.far.eof_written)
    assert not tunnel.far.closing
    tunnel.relay.abort("")
    await tunnel.finish()


async def test_end_waits_until_half_close_support_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(one_end_only, half_closing)
    tunnel.near.half_close = None
    tunnel.far.protocol.eof_received()
    await clock.passes(3 * QUIET)
    assert not tunnel.near.eof_written
    tunnel.near.half_close = False
    await clock.until(lambda: tunnel.near.eof_written)
    tunnel.relay.abort("")
    await tunnel.finish()


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


async def test_go_client_is_closed_if_destination_fails_after_its_end() -> None:
    tunnel = Tunnel(one_end_only, half_closing)
    tunnel.near.protocol.data_received(b"upload" * 100_000)
    tunnel.far.protocol.eof_received()
    assert not tunnel.near.eof_written
    tunnel.far.lose(BrokenPipeError())
    await turns(2)
    assert tunnel.near.closing
    assert not (tunnel.near.aborted or tunnel.near.was_cut)
    assert (await tunnel.finish()).reason == "done"


async def test_upload_of_a_lost_application_completes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(half_closing, one_end_only)
    tunnel.near.protocol.pause_writing()  # it does not read what comes from the far end
    tunnel.near.protocol.data_received(b"all of it")
    tunnel.near.protocol.eof_received()
    tunnel.near.lose(ConnectionResetError())
    await turns(2)
    assert tunnel.far.reading  # to notice when it falls silent
    tunnel.far.buffered = 100
    for _ in range(10):  # the upload is slow, and the far end never stops sending
        await clock.passes(QUIET / 2)
        tunnel.far.protocol.data_received(b"to nobody")
        assert not tunnel.far.closing
    tunnel.far.buffered = 0
    start = clock.now
    while not tunnel.far.closing:
        tunnel.far.protocol.data_received(b"to nobody")
        await clock.passes(QUIET / 10)
    assert 0 <= clock.now - start - module.ORPHAN_TIME <= 2 * module.QUIET_INTERVALS[1]
    assert not tunnel.far.aborted
    assert not tunnel.near.sent
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


# Time.


@pytest.mark.parametrize("way", ["up", "down"])
async def test_one_way_transfer_is_not_idle(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(timeout=80)
    side = tunnel.near if way == "up" else tunnel.far
    for _ in range(10):
        await clock.passes(32)
        side.protocol.data_received(b".")
    assert not tunnel.ending
    last = clock.now
    await clock.until(lambda: tunnel.ending)
    assert 80 <= clock.now - last <= 80 * (1 + 1 / module.IDLE_CHECKS)
    assert tunnel.relay.reason == "idle for 80 s"
    assert tunnel.relay.error is None  # which is routine
    assert tunnel.near.aborted  # an answer that stopped half-way must not look complete
    assert tunnel.far.aborted
    await tunnel.finish()


async def test_idle_timeout_after_half_close_resets_both(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(timeout=80)
    tunnel.near.protocol.eof_received()
    await clock.until(lambda: tunnel.ending)
    assert tunnel.relay.reason == "idle for 80 s"
    assert tunnel.near.aborted  # a reply that stopped half-way must not look complete
    assert tunnel.far.aborted
    await tunnel.finish()


@pytest.mark.parametrize("size", [1, 1000])
async def test_equal_traffic_both_ways_is_not_idle(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(timeout=80)
    for _ in range(10):
        await clock.passes(32)
        # Between two checks, as an echo does.
        tunnel.near.protocol.data_received(bytes(size))
        tunnel.far.protocol.data_received(bytes(size))
    assert not tunnel.ending
    await clock.until(lambda: tunnel.ending)
    assert tunnel.relay.reason == "idle for 80 s"
    await tunnel.finish()


@pytest.mark.parametrize("side", ["near", "far"])
async def test_draining_while_receiving_as_much_is_not_idle(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shrinking buffer on one side counts as progress, whatever the other side does."""
    clock = Clock(monkeypatch)
    tunnel = Tunnel(timeout=80)
    transport = getattr(tunnel, side)
    for left in range(10, 0, -1):
        transport.buffered = left * 1000
        await clock.passes(32)
    assert not tunnel.ending
    tunnel.relay.abort("enough")
    await tunnel.finish()


async def test_half_close_support_learned_after_the_application_is_lost(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(half_closing, one_end_only)
    tunnel.near.protocol.data_received(b"upload")
    tunnel.near.protocol.eof_received()
    assert not tunnel.far.eof_written  # a Go server would close
    tunnel.near.lose(None)
    await turns()
    assert not tunnel.ending
    tunnel.far.half_close = True
    await clock.until(lambda: tunnel.ending)
    # The answer has no reader, so the far end is cut.
    assert tunnel.relay.reason == "near end: takes no more data"
    assert not tunnel.far.eof_written
    assert tunnel.far.closing
    await tunnel.finish()


async def test_half_close_support_learned_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(half_closing, one_end_only)
    tunnel.near.protocol.data_received(b"upload")
    tunnel.near.protocol.eof_received()
    assert not tunnel.far.eof_written
    tunnel.far.half_close = True
    await clock.until(lambda: tunnel.far.eof_written)
    assert not tunnel.ending
    tunnel.far.protocol.data_received(b"answer")
    assert tunnel.near.take() == b"answer"
    tunnel.far.protocol.eof_received()
    assert tunnel.ending
    await tunnel.finish()


class Shared(FakeLayer):
    """A stream that shares its connection with others."""

    shares = True


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


async def test_reader_draining_buffers_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(timeout=80)
    for left in range(10, 0, -1):
        tunnel.near.buffered = left * 1000
        await clock.passes(32)
    assert not tunnel.ending
    await clock.until(lambda: tunnel.ending)
    assert tunnel.relay.reason == "idle for 80 s with undelivered data"
    assert tunnel.near.aborted
    assert tunnel.far.aborted
    await tunnel.finish()
