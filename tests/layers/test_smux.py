"""smux sessions over a fake connection: every frame under control, both kinds of peer."""

from __future__ import annotations

import asyncio
import random

import pytest

from mtt.errors import NetworkError, PeerError
from mtt.layers import linger
from mtt.layers import smux as layer
from mtt.layers.mux import ANSWERS_LIMIT
from mtt.layers.smux import MAX_STREAMS, RECEIVE_BUDGET, SmuxSession
from mtt.layers.smux_stream import SmuxStream
from mtt.wire.smux import FIN, MAX_LENGTH, MAX_PAYLOAD, NOP, PSH, SYN, Decoder, frame
from tests.support.transports import FakeLayer, Recorder, turns


class Server:
    """A server's session and everything that happened to it."""

    def __init__(self, *, half_close: bool = False) -> None:
        self.uppers: list[Recorder] = []
        self.lost: list[Exception | None] = []
        self.session = SmuxSession(accept=self._accept, on_lost=self._lost)
        self.lower = FakeLayer(self.session, half_close=half_close)
        self.session.connection_made(self.lower)

    def _accept(self) -> Recorder:
        self.uppers.append(Recorder())
        return self.uppers[-1]

    def _lost(self, session: SmuxSession, exc: Exception | None) -> None:
        assert session is self.session
        self.lost.append(exc)

    def feed(self, *frames: bytes) -> None:
        self.session.data_received(b"".join(frames))

    def open(self, stream_id: int = 3) -> tuple[Recorder, SmuxStream]:
        """A stream that the peer opened."""
        self.feed(frame(SYN, stream_id))
        return self.uppers[-1], self.uppers[-1].transport

    def said(self) -> list[tuple[int, int, bytes]]:
        return [(*event[:2], bytes(event[2])) for event in Decoder().feed(self.lower.take())]


def client() -> tuple[SmuxSession, FakeLayer]:
    session = SmuxSession()
    lower = FakeLayer(session)
    session.connection_made(lower)
    return session, lower


async def finished(*sessions: SmuxSession) -> None:
    for session in sessions:
        session.abort()
    await turns()


# The order of things.


async def test_a_stream_from_opening_to_end() -> None:
    server = Server()
    upper, stream = server.open(3)
    server.feed(frame(PSH, 3, b"one"), frame(PSH, 3, b"two"))
    assert upper.data == b"onetwo"
    stream.write(b"three")
    server.feed(frame(PSH, 3, b"four") + frame(FIN, 3))
    assert upper.data == b"onetwofour"
    assert upper.eof
    stream.write(b"five")
    stream.close()
    stream.write(b"late")
    assert await upper.ended() is None
    assert server.said() == [(PSH, 3, b"three"), (PSH, 3, b"five"), (FIN, 3, b"")]
    assert server.session.used_slots == 0
    await finished(server.session)


async def test_the_clients_ids_and_frames() -> None:
    session, lower = client()
    uppers = [Recorder() for _ in range(3)]
    streams = [session.open_stream(upper) for upper in uppers]
    assert [stream.id for stream in streams] == [3, 5, 7]
    streams[1].write(bytes(MAX_PAYLOAD + 1))
    assert lower.take() == (
        frame(SYN, 3) + frame(SYN, 5) + frame(SYN, 7)
        + frame(PSH, 5, bytes(MAX_PAYLOAD)) + frame(PSH, 5, b"\0")
    )  # fmt: skip
    await finished(session)
    assert [upper.lost for upper in uppers] == [True] * 3


@pytest.mark.parametrize(("half_close", "most"), [(False, MAX_PAYLOAD), (True, MAX_LENGTH)])
async def test_only_our_own_ends_get_frames_of_a_whole_read(half_close: bool, most: int) -> None:
    server = Server(half_close=half_close)
    _, stream = server.open()
    data = random.Random(8).randbytes(2 * MAX_LENGTH)
    stream.write(data)
    said = server.said()
    assert b"".join(payload for _, _, payload in said) == data
    assert {len(payload) for _, _, payload in said[:-1]} == {most}
    await finished(server.session)


async def test_a_stream_whose_application_is_silent_is_opened_all_the_same() -> None:
    session, lower = client()
    stream = session.open_stream(Recorder())
    session.open_stream(Recorder())
    assert lower.take() == b""  # it may have something to say at once, which goes with it
    await turns()
    assert lower.take() == frame(SYN, 3) + frame(SYN, 5)
    stream.write(b"later")
    await turns()
    assert lower.take() == frame(PSH, 3, b"later")
    await finished(session)


async def test_a_session_that_ends_before_a_stream_was_announced() -> None:
    session, lower = client()
    upper = Recorder()
    session.open_stream(upper)
    session.abort()
    await turns()
    assert upper.lost
    assert lower.take() == b""


@pytest.mark.parametrize("stream_id", [0, 1, 2, 3, 0xFFFFFFFF])
async def test_a_server_takes_any_id(stream_id: int) -> None:
    server = Server()
    upper, _ = server.open(stream_id)
    server.feed(frame(PSH, stream_id, b"x"))
    assert upper.data == b"x"
    await finished(server.session)


async def test_what_a_peer_says_about_streams_that_are_not_there() -> None:
    server = Server()
    upper, stream = server.open(3)
    server.feed(
        frame(SYN, 3),  # again
        frame(PSH, 9, b"nobody"), frame(PSH, 9, b"nobody"), frame(FIN, 9), frame(NOP, 0),
        frame(PSH, 3, b"somebody"),
    )  # fmt: skip
    assert len(server.uppers) == 1
    assert upper.data == b"somebody"
    stream.close()
    server.feed(frame(PSH, 3, b"too late"))
    assert upper.data == b"somebody"
    assert server.session.used_slots == 1  # until the peer has said FIN too
    server.feed(frame(FIN, 3), frame(FIN, 3))
    assert server.session.used_slots == 0
    server.feed(frame(SYN, 3), frame(PSH, 3, b"an id used again"))
    assert server.uppers[1].data == b"an id used again"
    assert server.said() == [(FIN, 3, b"")]
    await finished(server.session)


async def test_data_behind_fin_is_nobodys() -> None:
    server = Server()
    upper, stream = server.open()
    other, waiting = server.open(5)
    waiting.pause_reading()
    for stream_id in (3, 5):
        server.feed(frame(PSH, stream_id, b"a"), frame(FIN, stream_id), frame(PSH, stream_id, b"b"))
    assert upper.data == b"a"
    waiting.resume_reading()
    await other.at_eof()
    assert other.data == b"a"
    assert not stream.is_closing()
    await finished(server.session)


async def test_a_client_lets_nobody_open_streams() -> None:
    session, lower = client()
    session.data_received(frame(SYN, 2))
    assert lower.take() == frame(FIN, 2)
    await finished(session)


async def test_too_many_streams_are_refused_and_the_others_live() -> None:
    server = Server()
    server.feed(*(frame(SYN, number) for number in range(MAX_STREAMS + 2)))
    assert len(server.uppers) == MAX_STREAMS
    assert server.said() == [(FIN, MAX_STREAMS, b""), (FIN, MAX_STREAMS + 1, b"")]
    server.uppers[0].transport.close()
    server.feed(frame(SYN, 999))
    assert len(server.uppers) == MAX_STREAMS  # its place is free when the peer says FIN
    server.feed(frame(FIN, 0), frame(SYN, 1001), frame(PSH, 5, b"alive"))
    assert len(server.uppers) == MAX_STREAMS + 1
    assert server.uppers[5].data == b"alive"
    await finished(server.session)


async def test_ids_run_out() -> None:
    session, _ = client()
    session._next_id = 0xFFFFFFFF
    assert not session.exhausted
    session.open_stream(Recorder())
    assert session.exhausted
    with pytest.raises(NetworkError):
        session.open_stream(Recorder())
    await finished(session)


# Flow control.


async def test_a_paused_stream_queues_within_the_budget_of_the_session() -> None:
    server = Server()
    slow, stream = server.open(3)
    quick, _ = server.open(5)
    stream.pause_reading()
    chunk = bytes(16384)
    while server.lower.reading:
        server.feed(frame(PSH, 3, chunk), frame(PSH, 5, b"."))
    assert server.session._queued == RECEIVE_BUDGET
    assert len(quick.data) == RECEIVE_BUDGET // len(chunk)
    assert not slow.data
    stream.resume_reading()
    await slow.received(RECEIVE_BUDGET)
    assert server.lower.reading
    assert server.session._queued == 0
    server.feed(frame(PSH, 3, b"more"))
    assert slow.data[-4:] == b"more"
    await finished(server.session)


# Frames of 65535 bytes that use up the budget.
FILLING = RECEIVE_BUDGET // 65535 + 1


async def test_closing_a_stream_gives_its_share_of_the_budget_back() -> None:
    for end in (SmuxStream.close, SmuxStream.abort):
        server = Server()
        upper, stream = server.open(3)
        stream.pause_reading()
        server.feed(*(frame(PSH, 3, bytes(65535)) for _ in range(FILLING)), frame(FIN, 3))
        assert not server.lower.reading
        end(stream)
        assert server.lower.reading
        assert server.session._queued == 0
        assert await upper.ended() is None
        assert not upper.data
        await finished(server.session)


async def test_tiny_frames_cost_no_more_than_their_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    await finished(server.session)


async def test_a_run_of_frames_is_one_call_above() -> None:
    server = Server()
    upper, _ = server.open(3)
    server.feed(*(frame(PSH, 3, bytes((number,))) for number in range(100)))
    assert upper.data == bytes(range(100))
    assert upper.calls == 1
    await finished(server.session)


async def test_pausing_in_the_middle_of_a_burst_holds_the_rest_back() -> None:
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
    await finished(server.session)


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
    await finished(server.session)


async def test_unsent_counts_up_to_a_streams_own_last_byte() -> None:
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


async def test_a_peer_that_opens_streams_but_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    refused = frame(SYN, 5000) * 1000
    for _ in range(2 * ANSWERS_LIMIT // len(refused)):  # read, all of them
        server.session.pause_writing()
        server.feed(refused)
        server.session.resume_writing()
    await turns()
    assert not server.lost
    server.lower.take()
    server.session.pause_writing()
    while not server.lost:
        server.feed(refused)
        await turns(1)
        assert len(server.lower.sent) < ANSWERS_LIMIT + 2 * len(refused)
    assert isinstance(server.lost[0], PeerError)
    assert server.lower.aborted
    await turns()


# Half-close, between our own ends.


@pytest.mark.parametrize("half_close", [False, True])
async def test_streams_end_each_direction_as_the_connection_can(half_close: bool) -> None:
    server = Server(half_close=half_close)
    _, stream = server.open(3)
    assert stream.can_write_eof() is half_close
    assert stream.half_closes() is half_close
    server.lower.half_close = None
    assert stream.half_closes() is None
    await finished(server.session)


async def test_each_direction_ends_by_itself() -> None:
    server = Server(half_close=True)
    upper, stream = server.open(3)
    stream.write(b"all")
    stream.write_eof()
    stream.write_eof()
    stream.write(b"late")
    assert server.said() == [(PSH, 3, b"all"), (FIN, 3, b"")]
    server.feed(frame(PSH, 3, b"still"), frame(FIN, 3))
    assert upper.data == b"still"
    assert upper.eof
    stream.close()
    assert await upper.ended() is None
    assert server.said() == []
    assert server.session.used_slots == 0
    await finished(server.session)


@pytest.mark.parametrize("ended", [False, True], ids=["open", "ended"])
async def test_a_reset_is_no_ordinary_end(ended: bool) -> None:
    server, other = Server(half_close=True), Server(half_close=True)
    upper, stream = server.open(3)
    peer, _ = other.open(3)
    if ended:
        stream.write_eof()
        other.feed(server.lower.take())
        assert peer.eof
    server.lower.writes.clear()
    stream.abort()
    # Nothing that a torn connection could make an ordinary end of.
    assert server.lower.writes[0] == frame(PSH, 3)
    other.feed(server.lower.take())
    assert isinstance(peer.error, ConnectionResetError)
    assert peer.eof is ended
    assert await upper.ended() is None
    await finished(server.session, other.session)


async def test_an_empty_frame_of_a_foreign_peer_is_nothing() -> None:
    server = Server()
    upper, _ = server.open(3)
    server.feed(frame(PSH, 3), frame(PSH, 3, b"data"), frame(PSH, 3), frame(PSH, 9))
    assert upper.data == b"data"
    assert not upper.lost
    await finished(server.session)


async def test_a_peer_that_goes_on_sending_is_told_once_that_it_is_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for half_close in (True, False):
        server = Server(half_close=half_close)
        _, stream = server.open(3)
        stream.close()
        server.feed(frame(PSH, 3, b"on its way"))
        assert server.said() == [(FIN, 3, b"")]
        monkeypatch.setattr(linger, "LINGER_TIME", 0.0)
        await asyncio.sleep(0.01)
        server.feed(frame(PSH, 3, b"still"), frame(NOP, 0), frame(PSH, 3, b"still"))
        assert server.said() == ([(PSH, 3, b"")] if half_close else [])
        monkeypatch.undo()
        await finished(server.session)
