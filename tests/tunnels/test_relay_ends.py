"""The relay: ordinary ends, with and without half-close."""

from __future__ import annotations

import pytest

from mtt.errors import NetworkError
from mtt.tunnels import relay as module
from tests.support.clock import Clock
from tests.support.transports import turns
from tests.tunnels.relays import Tunnel, half_closing, one_end_only

QUIET = module.QUIET_TIME


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


async def test_client_that_drops_data_gets_the_end_after_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    tunnel = Tunnel(one_end_only, half_closing)
    tunnel.near.drops_at_end = True
    tunnel.far.protocol.data_received(b"reply")
    tunnel.far.protocol.eof_received()
    tunnel.near.buffered = 5  # the client is slow
    await clock.passes(3 * QUIET)
    assert not tunnel.near.eof_written
    tunnel.near.buffered = 0
    start = clock.now
    await clock.until(lambda: tunnel.near.eof_written)
    assert QUIET - module.QUIET_INTERVALS[1] <= clock.now - start
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
        tunnel.far.protocol.data_received(b"for a lost application")
        assert not tunnel.far.closing
    tunnel.far.buffered = 0
    start = clock.now
    while not tunnel.far.closing:
        tunnel.far.protocol.data_received(b"for a lost application")
        await clock.passes(QUIET / 10)
    assert 0 <= clock.now - start - module.ORPHAN_TIME <= 2 * module.QUIET_INTERVALS[1]
    assert not tunnel.far.aborted
    assert not tunnel.near.sent
    assert (await tunnel.finish()).reason == "done"


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
