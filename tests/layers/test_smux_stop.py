"""One slow reader of many streams: its sender is stopped, the neighbours go on."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from mtt.layers import mux_tunnel as layer
from mtt.layers.mux_tunnel import (
    MAX_STREAMS,
    OWN_BUDGET,
    RECEIVE_BUDGET,
    SHARED_BUDGET,
    STOP_AT,
)
from mtt.layers.smux import SmuxSession
from mtt.wire.smux import FIN, NOP, PSH, frame
from tests.layers.session_side import SessionSide
from tests.layers.smux_side import Server, client, finished, queued_until_full
from tests.support.clock import Clock
from tests.support.transports import Recorder


async def test_long_queue_stops_the_sender_until_it_is_empty() -> None:
    server = Server(half_close=True)
    slow, stream = server.open(3)
    quick, _ = server.open(5)
    stream.pause_reading()
    server.lower.take()
    for _ in range(STOP_AT // 1000):
        server.feed(frame(PSH, 3, bytes(1000)))
    assert server.said() == []
    server.feed(frame(PSH, 3, bytes(1000)), frame(PSH, 3, bytes(1000)))
    server.feed(frame(PSH, 3, bytes(1000)))
    assert server.said() == [(NOP, 3, b"")]
    server.feed(frame(PSH, 5, b"not held up"))
    assert quick.data == b"not held up"
    stream.resume_reading()
    await slow.received(STOP_AT)
    assert server.said() == [(NOP, 3, b"")]
    await server.over()


async def test_data_on_their_way_have_a_separate_budget() -> None:
    server = Server(half_close=True)
    _, stream = server.open(3)
    stream.pause_reading()
    chunk = frame(PSH, 3, bytes(65535))
    assert OWN_BUDGET > RECEIVE_BUDGET
    for _ in range(OWN_BUDGET // 65535):
        server.feed(chunk)
    assert server.lower.reading
    server.feed(chunk)
    assert not server.lower.reading
    await server.over()


async def test_a_go_peer_is_never_sent_the_sign() -> None:
    server = Server()
    _, stream = server.open(3)
    stream.pause_reading()
    server.lower.take()
    server.feed(*(frame(PSH, 3, bytes(65535)) for _ in range(2 * STOP_AT // 65535)))
    assert server.said() == []
    await server.over()


async def test_a_stopped_stream_pauses_its_writer_and_no_other() -> None:
    server = Server(half_close=True)
    first, _ = server.open(3)
    second, _ = server.open(5)
    server.feed(frame(NOP, 3))
    assert (first.writable, second.writable) == (False, True)
    server.session.pause_writing()
    assert (first.writable, second.writable) == (False, False)
    server.session.resume_writing()
    assert (first.writable, second.writable) == (False, True)
    server.session.pause_writing()
    server.feed(frame(NOP, 3))  # it may go on, but the connection is full
    assert (first.writable, second.writable) == (False, False)
    server.session.resume_writing()
    assert (first.writable, second.writable) == (True, True)
    await server.over()


async def test_stop_sign_of_a_foreign_peer_is_ignored() -> None:
    server = Server()
    upper, _ = server.open(3)
    server.feed(frame(NOP, 3))
    assert upper.writable
    await server.over()


async def test_a_stopped_stream_that_is_closed_leaves_nothing_behind() -> None:
    server = Server(half_close=True)
    _, stream = server.open(3)
    stream.pause_reading()
    server.feed(*(frame(PSH, 3, bytes(65535)) for _ in range(3)))
    server.lower.take()
    stream.close()
    assert server.said() == [(FIN, 3, b"")]
    _, other = server.open(5)
    other.pause_reading()
    assert queued_until_full(server, 5) == OWN_BUDGET
    await server.over()


async def test_stale_session_is_not_healthy_until_it_hears_something() -> None:
    session, _ = client()
    assert session.healthy
    session.heard_at -= layer.STALE_TIME
    assert not session.healthy
    session.data_received(frame(NOP, 0))
    assert session.healthy
    await finished(session)


async def test_two_sessions_back_to_back_obey_the_sign() -> None:
    """Nothing is lost between the stop and the last byte that was on its way."""
    server = Server(half_close=True)
    session, lower = client()
    lower.half_close = True  # the peer is this program too
    assert isinstance(session, SmuxSession)
    upper, stream = server.open(3)
    stream.pause_reading()
    writer = Recorder()
    mine = session.open_stream(writer)
    lower.take()
    total = 0
    while writer.writable:
        mine.write(bytes(10_000))
        total += 10_000
        server.feed(lower.take())
        if answer := server.lower.take():
            session.data_received(answer)
    assert total < STOP_AT + 20_000
    stream.resume_reading()
    await upper.received(total)
    session.data_received(server.lower.take())
    await asyncio.sleep(0)
    assert writer.writable
    await finished(session)
    await server.over()


async def test_stream_that_filled_the_connection_resumes_last() -> None:
    """Its next read fills it again: the others would never get their turn."""
    server = Server()
    uppers = [server.open(number)[0] for number in (3, 5, 7)]
    turns_taken: list[int] = []

    def fill(upper: Recorder) -> None:
        turns_taken.append(upper.transport.id)
        upper.transport.write(b"as much as there is room for")
        server.session.pause_writing()

    for upper in uppers:
        upper.resume_writing = partial(fill, upper)  # type: ignore[method-assign]
    server.session.pause_writing()
    for _ in range(6):
        server.session.resume_writing()
    assert turns_taken == [3, 5, 7, 3, 5, 7]
    await server.over()


class Shared(Server):
    """The end of a session that many users share."""

    def __init__(self) -> None:
        SessionSide.__init__(self)
        most = 2 * MAX_STREAMS
        self.session = SmuxSession(
            accept=self.on_accept, on_lost=self.on_lost, max_streams=most, first_id=2
        )
        self.connect(half_close=True)


async def test_stopped_streams_end_in_a_full_shared_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(layer, "SHARED_BUDGET", SHARED_BUDGET // 16)
    server = Shared()
    slow = [server.open(number) for number in (3, 5, 7, 11)]
    quick, _ = server.open(9)
    for _, stream in slow:
        stream.pause_reading()
    for number, count in ((11, 1), (3, 20), (5, 20)):  # of the first one little waits
        server.feed(*(frame(PSH, number, bytes(65535)) for _ in range(count)))
        await clock.passes(1)
    assert server.lower.reading
    queued_until_full(server, 7)
    server.lower.take()
    await clock.passes(1.9)
    assert not server.lower.reading
    await clock.passes(0.2)
    assert server.lower.reading
    assert server.said() == [(PSH, 3, b""), (FIN, 3, b"")]
    queued_until_full(server, 7)  # again: another one has stopped for long enough
    await clock.passes(1)
    assert server.lower.reading
    server.feed(frame(PSH, 9, b"not held up"))
    assert quick.data == b"not held up"
    assert [upper.error is not None for upper, _ in slow] == [True, True, False, False]
    await server.over()


async def test_readers_that_resume_in_time_keep_their_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(layer, "SHARED_BUDGET", SHARED_BUDGET // 16)
    server = Shared()
    upper, stream = server.open(3)
    stream.pause_reading()
    size = queued_until_full(server, 3)
    await clock.passes(layer.SHARED_PAUSE_TIME - 0.1)
    stream.resume_reading()
    await upper.received(size)
    await clock.passes(1)
    assert server.lower.reading
    assert not upper.lost
    await server.over()


async def test_streams_under_a_rate_limit_only_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(layer, "SHARED_BUDGET", SHARED_BUDGET // 16)
    monkeypatch.setattr(Recorder, "is_throttled", True)
    server = Shared()
    upper, stream = server.open(3)
    stream.pause_reading()
    size = queued_until_full(server, 3)
    await clock.passes(10 * layer.SHARED_PAUSE_TIME)
    assert not server.lower.reading
    assert not upper.lost
    stream.resume_reading()
    await upper.received(size)
    assert server.lower.reading
    await server.over()
