"""Flow control of smux sessions: budgets, pauses, limits on answers."""

from __future__ import annotations

import pytest

from mtt.errors import PeerError
from mtt.layers import mux_tunnel as layer
from mtt.layers.mux_tunnel import MAX_STREAMS, RECEIVE_BUDGET
from mtt.layers.smux import SmuxStream
from mtt.wire.smux import FIN, NOP, PSH, SYN, frame
from tests.layers.session_side import check_unread_answers_are_bounded
from tests.layers.smux_side import Server, client, finished, queued_until_full
from tests.support.transports import Recorder, turns


async def test_paused_stream_queues_within_the_budget() -> None:
    server = Server()
    slow, stream = server.open(3)
    quick, _ = server.open(5)
    stream.pause_reading()
    chunk = bytes(16384)
    while server.lower.reading:
        server.feed(frame(PSH, 3, chunk), frame(PSH, 5, b"."))
    assert len(quick.data) == RECEIVE_BUDGET // len(chunk)
    assert not slow.data
    stream.resume_reading()
    await slow.received(RECEIVE_BUDGET)
    assert server.lower.reading
    server.feed(frame(PSH, 3, b"more"))
    assert slow.data[-4:] == b"more"
    stream.pause_reading()
    assert queued_until_full(server, 3) == RECEIVE_BUDGET
    await server.over()


# Frames of 65535 bytes that use up the budget.
FILLING = RECEIVE_BUDGET // 65535 + 1


async def test_closed_stream_returns_its_share_of_the_budget() -> None:
    for end in (SmuxStream.close, SmuxStream.abort):
        server = Server()
        upper, stream = server.open(3)
        stream.pause_reading()
        server.feed(*(frame(PSH, 3, bytes(65535)) for _ in range(FILLING)), frame(FIN, 3))
        assert not server.lower.reading
        end(stream)
        assert server.lower.reading
        assert await upper.ended() is None
        assert not upper.data
        _, other = server.open(5)
        other.pause_reading()
        assert queued_until_full(server, 5) == RECEIVE_BUDGET
        await server.over()


async def test_tiny_frames_cost_no_more_than_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = 100_000
    monkeypatch.setattr(layer, "RECEIVE_BUDGET", budget)
    server = Server()
    upper, stream = server.open(3)
    stream.pause_reading()
    tiny = frame(PSH, 3, b"x") * 1000
    while server.lower.reading:
        server.feed(tiny)
    assert isinstance(stream._queue, bytearray)  # not a list of a hundred thousand pieces
    assert budget <= len(stream._queue) <= budget + 1000
    stream.resume_reading()
    await upper.received(budget)
    assert upper.calls == 1
    await server.over()


async def test_a_run_of_frames_is_one_call_above() -> None:
    server = Server()
    upper, _ = server.open(3)
    server.feed(*(frame(PSH, 3, bytes((number,))) for number in range(100)))
    assert upper.data == bytes(range(100))
    assert upper.calls == 1
    await server.over()


async def test_pausing_amid_a_burst_holds_the_rest_back() -> None:
    server = Server()
    upper, stream = server.open(3)
    upper.on_data = lambda _data: stream.pause_reading()
    # NOPs in between, so that the frames are no run.
    server.feed(*(frame(PSH, 3, b"%d" % number) + frame(NOP, 0) for number in range(10)))
    assert upper.data == b"0"
    upper.on_data = None
    stream.resume_reading()
    stream.pause_reading()
    stream.resume_reading()
    server.feed(frame(PSH, 3, b"!"), frame(FIN, 3))
    await upper.at_eof()
    assert upper.data == b"0123456789!"
    await server.over()


async def test_all_streams_are_paused_when_the_connection_is_full() -> None:
    session, lower = client()
    first, second, third = Recorder(), Recorder(), Recorder()
    session.open_stream(first)
    session.pause_writing()
    assert not first.writable
    stream = session.open_stream(second)
    assert not second.writable, "a new stream on a full connection"
    stream.set_protocol(third)
    assert not third.writable, "a protocol that takes a stream over on a full connection"
    session.resume_writing()
    assert first.writable
    assert third.writable
    lower.buffered = 100
    assert stream.get_write_buffer_size() == 100
    await finished(session)


async def test_a_stream_accepted_on_a_full_connection_is_paused() -> None:
    server = Server()
    server.open(3)
    server.session.pause_writing()
    upper, stream = server.open(5)
    assert not upper.writable
    stream.close()
    server.session.resume_writing()
    assert server.uppers[0].writable
    assert not upper.writable  # it is gone
    await server.over()


async def test_unsent_counts_up_to_the_last_byte_of_the_stream() -> None:
    session, lower = client()
    one, other = session.open_stream(Recorder()), session.open_stream(Recorder())
    one.write(bytes(1000))
    lower.buffered = 1008
    assert one.unsent() == 1008
    other.write(bytes(5000))
    lower.buffered = 6016
    assert one.unsent() == 1008
    lower.buffered = 5008
    assert one.unsent() == 0
    assert other.unsent() == 5008
    await finished(session)


async def test_peer_that_reads_no_refusals_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "SEND_LIMIT", 1000)
    server = Server()
    server.feed(*(frame(SYN, number) for number in range(MAX_STREAMS + 1)))
    server.lower.buffered = 1001  # answers that it does not take
    server.feed(*(frame(SYN, number) for number in range(5000, 5010)))
    assert isinstance(server.lost[0], PeerError)
    assert server.lower.aborted
    assert server.said() == [(FIN, MAX_STREAMS, b"")]
    await turns()


async def test_answers_to_a_peer_that_reads_nothing_are_bounded() -> None:
    server = Server()
    server.feed(*(frame(SYN, number) for number in range(MAX_STREAMS)))
    await check_unread_answers_are_bounded(server, frame(SYN, 5000))
