"""Sessions with the Go programs of AnyProxy: slow readers, slow writers, limits, pauses."""

from __future__ import annotations

import pytest

from mtt.errors import NetworkError, StuckError
from mtt.layers import anyproxy, anyproxy_stream
from mtt.layers.anyproxy import PAUSE_TIME, SESSION_LIMIT, STALL_LIMIT, STREAM_LIMIT
from mtt.layers.anyproxy_stream import (
    AHEAD_TIME,
    HAND_UP,
    MAX_DATAGRAMS,
    MAX_PIECE,
    MESSAGE_INTERVAL,
    PILE,
    GoStream,
)
from mtt.wire.agent import UDP, Head
from mtt.wire.anyproxy import Close, ConnectResponse, StreamData
from tests.layers.anyproxy_side import GoSide, data_of
from tests.support.clock import Clock
from tests.support.transports import Recorder, turns

PIECE = 32 * 1024  # of the Go programs


def fill(side: GoSide, stream: GoStream, size: int = STREAM_LIMIT + PIECE) -> None:
    for _ in range(size // PIECE):
        side.feed(StreamData(stream.wire_id, bytes(PIECE)))


# Receiving.


async def test_slow_reader_does_not_stop_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    (slow, slow_stream), (other, other_stream) = gateway.opened(), gateway.opened()
    slow_stream.pause_reading()
    fill(gateway, slow_stream, STREAM_LIMIT)
    assert gateway.lower.reading
    gateway.feed(StreamData(other_stream.wire_id, b"quick"))
    assert other.data == b"quick"
    assert not slow.data
    await gateway.over()


async def test_reader_that_goes_on_in_time_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened()
    stream.pause_reading()
    fill(gateway, stream)
    assert not gateway.lower.reading
    await clock.passes(PAUSE_TIME - 0.1)
    stream.resume_reading()
    await turns()
    assert gateway.lower.reading
    assert len(upper.data) == STREAM_LIMIT + PIECE
    await clock.passes(PAUSE_TIME)
    assert not upper.lost
    await gateway.over()


async def test_reader_gets_its_queue_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened()
    stream.pause_reading()
    fill(gateway, stream)
    sizes: list[int] = []

    def pause(data: bytes) -> None:
        sizes.append(len(data))
        stream.pause_reading()

    upper.on_data = pause
    while len(upper.data) < STREAM_LIMIT + PIECE:
        stream.resume_reading()
        await turns(2)
    assert max(sizes) == HAND_UP
    assert gateway.lower.reading
    await gateway.over()


async def test_stream_that_is_not_read_is_ended_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    (slow, slow_stream), (other, other_stream) = gateway.opened(), gateway.opened()
    slow_stream.pause_reading()
    fill(gateway, slow_stream)
    await clock.passes(PAUSE_TIME + 0.1)
    assert isinstance(slow.error, StuckError)
    assert gateway.said() == [Close(slow_stream.wire_id)]
    assert gateway.lower.reading
    gateway.feed(StreamData(slow_stream.wire_id, b"late"), StreamData(other_stream.wire_id, b"x"))
    assert other.data == b"x"
    assert not gateway.lost
    await gateway.over()


async def test_pauses_for_several_streams_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer's writes fail after 10 s, so pauses with little reading in between add up."""
    clock = Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    streams = [gateway.opened() for _ in range(3)]
    for _, stream in streams:
        stream.pause_reading()
        fill(gateway, stream, STREAM_LIMIT)
    began = clock.now
    for upper, stream in streams:
        gateway.feed(StreamData(stream.wire_id, bytes(PIECE)))
        assert not gateway.lower.reading
        await clock.until(lambda upper=upper: upper.lost)
        assert gateway.lower.reading
    assert clock.now - began <= PAUSE_TIME + 0.1
    await gateway.over()


async def test_pauses_with_reading_between_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened()
    for _ in range(5):
        stream.pause_reading()
        fill(gateway, stream)
        await clock.passes(PAUSE_TIME / 2)
        stream.resume_reading()
        await turns()
    assert not upper.lost
    await gateway.over()


async def test_session_has_a_limit_for_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    streams = [gateway.opened() for _ in range(9)]
    sizes = [STREAM_LIMIT - PIECE * number for number in range(9)]
    for (_, stream), size in zip(streams, sizes, strict=True):
        stream.pause_reading()
        fill(gateway, stream, size)
    assert sum(sizes) > SESSION_LIMIT
    assert not gateway.lower.reading
    await clock.passes(PAUSE_TIME + 0.1)
    assert [upper.lost for upper, _ in streams].count(True) == 1
    assert streams[0][0].lost  # the largest
    assert gateway.lower.reading
    await gateway.over()


async def test_data_before_the_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    client = GoSide(is_gateway=False)
    stream = client.accepted()
    fill(client, stream, STREAM_LIMIT + 2 * PIECE)  # the first message is parked
    await clock.passes(PAUSE_TIME + 0.1)
    (answer,) = client.said()
    assert isinstance(answer, ConnectResponse)
    assert not answer.ok
    assert client.session.open_streams == 0
    await client.over()


async def test_datagrams_for_a_paused_reader_are_bounded() -> None:
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened(Head(UDP, "192.0.2.1", 53))
    stream.pause_reading()
    for _ in range(2 * MAX_DATAGRAMS):
        gateway.feed(StreamData(stream.wire_id, b"x"))
    stream.resume_reading()
    await turns()
    assert len(upper.data) == MAX_DATAGRAMS
    stream.pause_reading()
    gateway.feed(StreamData(stream.wire_id, b"x"))
    stream.abort()
    await gateway.over()


# Sending.


async def test_few_writes_are_sent_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    _, stream = gateway.opened()
    for _ in range(int(AHEAD_TIME / MESSAGE_INTERVAL)):
        stream.write(b"key")
        assert gateway.said() == [StreamData(stream.wire_id, b"key")]
        assert not stream.get_write_buffer_size()
    await gateway.over()


async def test_many_writes_are_joined_into_few_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 messages that a Go program has not passed on end the stream."""
    clock = Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened()
    written = bytearray()
    messages = 0
    for number in range(1000):
        data = b"%d," % number
        stream.write(data)
        written += data
        await clock.passes(0.001)
        messages += len(said := gateway.said())
        del written[: len(data_of(said))]
    assert messages < 100
    await clock.passes(2 * MESSAGE_INTERVAL)
    assert data_of(gateway.said()) == written
    assert upper.writable
    assert not upper.pauses
    await gateway.over()


async def test_bulk_data_are_sent_in_large_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened()
    sizes = []
    sent = 0
    while sent < 64 * MAX_PIECE:
        while upper.writable:
            stream.write(bytes(64 * 1024))
            sent += 64 * 1024
        await clock.passes(MESSAGE_INTERVAL)
        sizes += [len(data_of([message])) for message in gateway.said()]
    assert len(sizes) < 100
    assert max(sizes) <= MAX_PIECE
    assert stream.get_write_buffer_size() <= MAX_PIECE + 64 * 1024
    await gateway.over()


async def test_full_connection_lets_a_message_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened()
    gateway.session.pause_writing()
    assert upper.writable
    written = 0
    while upper.writable:
        stream.write(bytes(PIECE))
        written += PIECE
    assert written == PILE
    assert stream.unsent() >= PILE
    assert gateway.said() == []
    gateway.session.resume_writing()
    assert upper.writable
    assert data_of(gateway.said()) == bytes(PILE)
    await gateway.over()


async def test_new_protocol_is_told_of_a_full_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened()
    gateway.session.pause_writing()
    stream.write(bytes(PILE))
    assert not upper.writable
    successor = Recorder()
    stream.set_protocol(successor)
    assert not successor.writable
    gateway.session.resume_writing()
    assert successor.writable
    await gateway.over()
    assert not upper.lost


async def test_piles_of_many_streams_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    streams = [gateway.opened() for _ in range(4 * anyproxy_stream.PILES // PILE)]
    assert gateway.session.pile_limit == PILE // 4
    gateway.session.pause_writing()
    for upper, stream in streams:
        stream.write(bytes(PILE // 4))
        assert not upper.writable
    gateway.session.resume_writing()
    assert all(upper.writable for upper, _ in streams)
    await gateway.over()


async def test_what_piled_up_is_sent_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    for end in ("close", "cut", "write_eof"):
        _, stream = gateway.opened()
        gateway.session.pause_writing()
        stream.write(b"pile")
        getattr(stream, end)()
        expected = [StreamData(stream.wire_id, b"pile"), Close(stream.wire_id)]
        assert gateway.said() == expected
        gateway.session.resume_writing()
    _, stream = gateway.opened()
    gateway.session.pause_writing()
    stream.write(b"pile")
    stream.abort()
    assert gateway.said() == [Close(stream.wire_id)]
    await gateway.over()


async def test_datagrams_for_a_full_connection_are_dropped() -> None:
    gateway = GoSide(is_gateway=True)
    upper, stream = gateway.opened(Head(UDP, "192.0.2.1", 53))
    gateway.session.pause_writing()
    assert not upper.writable
    stream.write(b"dropped")
    gateway.session.resume_writing()
    for _ in range(200):  # each is a message of its own
        stream.write(b"x")
    assert gateway.said() == [StreamData(stream.wire_id, b"x")] * 200
    await gateway.over()


async def test_peer_that_takes_nothing_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    gateway.opened()
    gateway.lower.buffered = 100_000
    gateway.session.pause_writing()
    for _ in range(2):  # as long as it takes something, it may be slow
        await clock.passes(STALL_LIMIT - 1)
        gateway.lower.buffered -= 1
    assert not gateway.lost
    await clock.passes(STALL_LIMIT + 1.5)  # in all less than to the first ping
    assert isinstance(gateway.lost[0], NetworkError)
    assert "took nothing for 8 s" in str(gateway.lost[0])
    assert gateway.lower.aborted


async def test_peer_that_goes_on_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    gateway.lower.buffered = 100_000
    for _ in range(3):
        gateway.session.pause_writing()
        await clock.passes(STALL_LIMIT / 2)
        gateway.session.resume_writing()
        await clock.passes(STALL_LIMIT / 2)
    assert not gateway.lost
    await gateway.over()


async def test_no_timer_outlives_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = GoSide(is_gateway=True)
    (_, writer), (_, reader) = gateway.opened(), gateway.opened()
    for _ in range(100):
        writer.write(bytes(1000))
    reader.pause_reading()
    fill(gateway, reader)
    gateway.session.pause_writing()
    assert clock.pending > 3
    gateway.session.abort()
    await turns()
    assert not clock.pending


def test_pause_is_shorter_than_the_time_that_go_permits() -> None:
    assert PAUSE_TIME + anyproxy.READ_ENOUGH_TIME < 8
