"""The server's AnyTLS session over a fake connection: every frame under control."""

from __future__ import annotations

import random

import pytest

from mtt.errors import NetworkError, PeerError
from mtt.layers.anytls import RECEIVE_BUDGET
from mtt.layers.anytls_server import MAX_STREAMS, WHOLE_SIZE, WHOLE_TIME, ServerSession
from mtt.layers.anytls_stream import ServerStream
from mtt.layers.mux import ANSWERS_LIMIT
from mtt.outcome import Outcome
from mtt.wire.anytls import (
    ALERT,
    FIN,
    HEART_REQUEST,
    HEART_RESPONSE,
    NO_SETTINGS,
    PSH,
    SERVER_SETTINGS,
    SETTINGS,
    SYN,
    SYNACK,
    UPDATE_PADDING,
    WASTE,
    Decoder,
    client_settings,
    frame,
)
from mtt.wire.padding import DEFAULT, Scheme
from tests.support.clock import Clock
from tests.support.transports import FakeLayer, Recorder, turns

V2 = frame(SETTINGS, 0, client_settings("test/1", DEFAULT.md5))
V1 = V2.replace(b"v=2", b"v=1")
OWN = frame(SETTINGS, 0, client_settings("test/1", DEFAULT.md5) + b"\nhalf-close=1")
GREETING = (SERVER_SETTINGS, 0, b"v=2")


class Server:
    """A server's session and everything that happened to it."""

    def __init__(self, settings: bytes = b"", *, scheme: Scheme = DEFAULT) -> None:
        self.uppers: list[Recorder] = []
        self.lost: list[Exception | None] = []
        self.changes = 0
        self.session = ServerSession(
            self._accept, scheme=scheme, on_change=self._changed, on_lost=self._lost
        )
        self.lower = FakeLayer(self.session)
        self.session.connection_made(self.lower)
        if settings:
            self.feed(settings)
            self.lower.take()

    def _accept(self) -> Recorder:
        self.uppers.append(Recorder())
        return self.uppers[-1]

    def _changed(self, session: ServerSession) -> None:
        assert session is self.session
        self.changes += 1

    def _lost(self, session: ServerSession, exc: Exception | None) -> None:
        assert session is self.session
        self.lost.append(exc)

    def feed(self, *frames: bytes) -> None:
        self.session.data_received(b"".join(frames))

    def open(self, stream_id: int = 1) -> tuple[Recorder, ServerStream]:
        self.feed(frame(SYN, stream_id))
        return self.uppers[-1], self.uppers[-1].transport

    def said(self) -> list[tuple[int, int, bytes]]:
        return [(*event[:2], bytes(event[2])) for event in Decoder().feed(self.lower.take())]

    async def over(self) -> None:
        self.session.abort()
        await turns()
        assert all(upper.lost for upper in self.uppers)


# What a write of the client was.


async def test_a_frame_in_pieces_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    server = Server(V2)
    upper, _ = server.open()
    hello = frame(PSH, 1, bytes(517))
    server.feed(hello[:9])
    server.feed(hello[9:300])
    assert not upper.calls
    server.feed(hello[300:] + frame(PSH, 1, b"more"))
    assert (upper.calls, len(upper.data)) == (1, 521)
    await clock.passes(1)
    assert upper.calls == 1
    await server.over()


async def test_a_slow_frame_is_passed_on_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    server = Server(V2)
    upper, _ = server.open()
    slow = frame(PSH, 1, b"abcdef")
    server.feed(slow[:9])
    await clock.passes(WHOLE_TIME / 2)
    server.feed(slow[9:10])  # this does not make it younger
    await clock.passes(WHOLE_TIME * 0.6)
    assert upper.data == b"abc"
    server.feed(slow[10:12])
    assert upper.data == b"abcde"
    server.feed(slow[12:])
    assert upper.data == b"abcdef"
    await server.over()


async def test_each_frame_has_a_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    server = Server(V2)
    upper, _ = server.open()
    each = frame(PSH, 1, b"abcdef")
    server.feed(each[:9])
    for _ in range(3):
        await clock.passes(WHOLE_TIME * 0.9)
        server.feed(each[9:] + each[:9])
    assert (upper.calls, len(upper.data)) == (3, 18)
    await clock.passes(WHOLE_TIME)
    assert len(upper.data) == 20
    await server.over()


async def test_large_frames_are_passed_on_as_they_come() -> None:
    server = Server(V2)
    upper, _ = server.open()
    large = frame(PSH, 1, bytes(WHOLE_SIZE + 1))
    server.feed(large[:1000])
    assert len(upper.data) == 1000 - 7
    server.feed(large[1000:])
    assert len(upper.data) == WHOLE_SIZE + 1
    await server.over()


async def test_what_came_of_a_frame_before_a_failure_is_passed_on() -> None:
    server = Server(V2)
    upper, _ = server.open()
    server.feed(frame(PSH, 1, b"abcdef")[:10])
    server.session.connection_lost(ConnectionResetError())
    assert upper.data == b"abc"
    assert isinstance(upper.error, NetworkError)


# Settings.


@pytest.mark.parametrize(
    ("version", "answers"),
    [(b"2", 1), (b"3", 1), (b"256", 1), (b"1", 0), (b"0", 0), (b"-1", 0), (b"two", 0), (b"", 0)],
)
async def test_only_clients_of_version_2_and_newer_get_version_2(
    version: bytes, answers: int
) -> None:
    server = Server()
    text = b"v=" + version + b"\npadding-md5=" + DEFAULT.md5.encode()
    server.feed(frame(SETTINGS, 0, text))
    assert server.said() == [GREETING] * answers
    _, stream = server.open()
    stream.acknowledge()
    assert server.said() == [(SYNACK, 1, b"")] * answers
    await server.over()


async def test_the_scheme_is_sent_to_who_has_another_one_and_each_time() -> None:
    scheme = Scheme.parse(b"stop=1")
    server = Server(scheme=scheme)
    server.feed(V2)
    update = (UPDATE_PADDING, 0, scheme.raw)
    assert server.said() == [update, GREETING]
    server.feed(frame(SETTINGS, 0, b"v=2"), V1)
    assert server.said() == [update, GREETING, update]
    assert server.session.version == 2  # once is enough
    assert server.session.client == "test/1"
    await server.over()


@pytest.mark.parametrize("before", [b"", frame(SETTINGS, 0)], ids=["nothing", "an empty frame"])
async def test_a_stream_before_settings_ends_the_session(before: bytes) -> None:
    server = Server()
    server.feed(before + frame(SYN, 1) + frame(SYN, 2) + frame(HEART_REQUEST, 1))
    assert server.said() == [(ALERT, 0, NO_SETTINGS)]
    assert server.lower.closing
    assert not server.lower.aborted
    assert not server.uppers
    assert [type(error) for error in server.lost] == [PeerError]
    await turns()


# Streams.


async def test_a_stream_from_opening_to_end() -> None:
    server = Server(V2)
    upper, stream = server.open()
    assert server.session.idle_since is None
    server.feed(frame(PSH, 1, b"one") + frame(WASTE, 0, bytes(9)) + frame(PSH, 1, b"two"))
    assert upper.data == b"onetwo"
    assert upper.calls == 1
    stream.acknowledge()
    stream.acknowledge(Outcome.TIMED_OUT)
    stream.write(b"three")
    stream.close()
    stream.write(b"late")
    stream.acknowledge()
    server.feed(frame(PSH, 1, b"late"), frame(FIN, 1))
    assert await upper.ended() is None
    assert upper.data == b"onetwo"
    assert server.said() == [(SYNACK, 1, b""), (PSH, 1, b"three"), (FIN, 1, b"")]
    assert server.session.idle_since is not None
    assert server.changes == 1
    await server.over()


async def test_the_end_of_a_client_is_the_end_of_both_directions_and_not_answered() -> None:
    server = Server(V2)
    upper, stream = server.open()
    assert not stream.can_write_eof()
    server.feed(frame(PSH, 1, b"all"), frame(FIN, 1), frame(PSH, 1, b"late"))
    assert upper.data == b"all"
    assert upper.eof
    stream.write(b"nobody listens")
    stream.acknowledge()
    stream.close()
    assert await upper.ended() is None
    assert server.said() == []
    server.feed(frame(SYN, 1), frame(PSH, 1, b"the id again"))
    assert server.uppers[1].data == b"the id again"
    await server.over()


async def test_our_own_end_comes_back_because_the_client_will_not_say_anything() -> None:
    server = Server(V2)
    upper, stream = server.open()
    stream.pause_reading()
    server.feed(frame(PSH, 1, b"before"))
    stream.write_eof()
    stream.write_eof()
    await turns()
    assert not upper.eof
    server.feed(frame(PSH, 1, b"after"), frame(FIN, 1))
    stream.resume_reading()
    assert await upper.at_eof() == b"before"
    stream.close()
    assert server.said() == [(FIN, 1, b"")]
    await server.over()


@pytest.mark.parametrize("outcome", list(Outcome)[1:])
async def test_failures_are_told_in_fixed_words(outcome: Outcome) -> None:
    for settings, told in ((V2, [(SYNACK, 7, outcome.text.encode())]), (V1, [])):
        server = Server(settings)
        _, stream = server.open(7)
        stream.acknowledge(outcome)
        stream.close()
        assert server.said() == [*told, (FIN, 7, b"")]
        await server.over()


async def test_what_a_client_says_about_streams_that_are_not_there() -> None:
    server = Server(V2)
    upper, _ = server.open(0)
    server.feed(
        frame(SYN, 0), frame(PSH, 9, b"nobody"), frame(FIN, 9), frame(PSH, 9), frame(PSH, 0),
        frame(SYNACK, 0, b"x"), frame(SERVER_SETTINGS, 0, b"v=2"), frame(UPDATE_PADDING, 0, b"x"),
        frame(77, 0), frame(ALERT, 0), frame(HEART_RESPONSE, 3), frame(PSH, 0, b"somebody"),
    )  # fmt: skip
    assert upper.data == b"somebody"
    assert len(server.uppers) == 1
    assert server.said() == []
    await server.over()


async def test_too_many_streams_are_refused_and_the_others_live() -> None:
    server = Server(V2)
    server.feed(*(frame(SYN, number) for number in range(1, MAX_STREAMS + 2)))
    assert len(server.uppers) == MAX_STREAMS
    assert [(command, number) for command, number, _ in server.said()] == [
        (SYNACK, MAX_STREAMS + 1), (FIN, MAX_STREAMS + 1),
    ]  # fmt: skip
    await turns()
    server.uppers[5].transport.close()
    server.feed(frame(SYN, 999), frame(PSH, 999, b"room again"))
    assert server.uppers[-1].data == b"room again"
    await server.over()


# Own clients.


async def test_half_close_is_for_who_asks_for_it() -> None:
    server = Server()
    server.feed(OWN)
    assert server.said() == [(SERVER_SETTINGS, 0, b"v=2\nhalf-close=1")]
    upper, stream = server.open()
    assert stream.can_write_eof()
    server.feed(frame(PSH, 1, b"question"), frame(FIN, 1))
    assert upper.eof
    stream.write(b"answer")
    stream.write_eof()
    await turns()
    assert not upper.lost
    stream.close()
    assert server.said() == [(PSH, 1, b"answer"), (FIN, 1, b"")]
    assert server.session.idle_since is not None
    await server.over()


async def test_a_reset_is_told_from_an_end() -> None:
    server = Server(OWN)
    upper, stream = server.open()
    server.feed(frame(PSH, 1, b"cut"), frame(PSH, 1), frame(FIN, 1))
    assert isinstance(upper.error, ConnectionResetError)
    assert not upper.eof
    assert server.said() == [(FIN, 1, b"")]
    other, stream = server.open(2)
    stream.abort()
    assert server.said() == [(PSH, 2, b""), (FIN, 2, b"")]
    assert server.session.used_slots == 1  # until the client has said it, too
    server.feed(frame(FIN, 2))
    assert server.session.used_slots == 0
    assert await other.ended() is None
    await server.over()


# Bounds and ends.


async def test_a_reader_that_has_stopped_stops_the_session_in_the_end() -> None:
    server = Server(V2)
    slow, stream = server.open(1)
    quick, _ = server.open(2)
    stream.pause_reading()
    chunk = bytes(random.Random(1).randbytes(40_000))
    sent = 0
    while server.lower.reading:
        server.feed(frame(PSH, 1, chunk), frame(PSH, 2, b"x"))
        sent += len(chunk)
    assert sent - len(chunk) < RECEIVE_BUDGET <= sent
    assert len(quick.data) == sent // len(chunk)
    stream.resume_reading()
    await slow.received(sent)
    assert slow.data == chunk * (sent // len(chunk))
    assert server.lower.reading
    await server.over()


async def test_questions_are_answered_and_only_so_many_to_who_does_not_read() -> None:
    server = Server(V2)
    server.feed(frame(HEART_REQUEST, 5), frame(HEART_REQUEST, 0))
    assert server.said() == [(HEART_RESPONSE, 5, b""), (HEART_RESPONSE, 0, b"")]
    flood = frame(HEART_REQUEST, 0) * 1000
    for _ in range(2 * ANSWERS_LIMIT // len(flood)):  # read, all of them
        server.session.pause_writing()
        server.feed(flood)
        server.session.resume_writing()
    await turns()
    assert not server.lost
    server.lower.take()
    server.session.pause_writing()
    while not server.lost:
        server.feed(flood)
        await turns(1)
        assert len(server.lower.sent) < ANSWERS_LIMIT + 2 * len(flood)
    assert isinstance(server.lost[0], PeerError)
    assert server.lower.aborted
    await turns()


async def test_one_read_full_of_questions_is_not_answered_to_who_does_not_read() -> None:
    scheme = Scheme.parse(b"stop=8\n" + b"#" * 16_000)
    server = Server(scheme=scheme)
    server.session.pause_writing()
    server.feed(frame(SETTINGS, 0, b"v=2") * 6000)  # 64 KiB, and 96 MB of answers
    assert len(server.lower.sent) < ANSWERS_LIMIT + 2 * len(scheme.raw)
    await turns()
    assert isinstance(server.lost[0], PeerError)
    assert server.lower.aborted


async def test_an_alert_ends_the_session_whoever_says_it() -> None:
    server = Server(V2)
    upper, _ = server.open()
    server.feed(frame(ALERT, 0, b"enough\x1b[2J"), frame(PSH, 1, b"late"))
    assert isinstance(upper.error, PeerError)
    assert "enough" in str(upper.error)
    assert "\x1b" not in str(upper.error)
    assert server.lost == [upper.error]
    assert not upper.data
    await turns()


async def test_a_whole_upload_survives_the_reset_of_its_stream() -> None:
    server = Server(OWN)
    upper, stream = server.open(1)
    stream.pause_reading()
    server.feed(frame(PSH, 1, b"all"), frame(FIN, 1), frame(PSH, 1))
    assert server.session.used_slots == 1
    stream.resume_reading()
    assert await upper.at_eof() == b"all"
    assert isinstance(await upper.ended(), ConnectionResetError)
    assert server.session.used_slots == 0
    await server.over()


@pytest.mark.parametrize("settings", [V2, OWN], ids=["reference", "own"])
async def test_a_whole_upload_survives_the_end_of_the_session(settings: bytes) -> None:
    server = Server(settings)
    whole, stream = server.open(1)
    half, other = server.open(2)
    stream.pause_reading()
    other.pause_reading()
    server.feed(frame(PSH, 1, b"all"), frame(PSH, 2, b"some"), frame(FIN, 1))
    server.session.eof_received()
    assert not half.lost
    other.resume_reading()
    assert await half.ended() is not None
    assert half.data == b"some"
    assert not half.eof
    stream.resume_reading()
    assert await whole.at_eof() == b"all"
    await whole.ended()
    await server.over()


@pytest.mark.parametrize(("settings", "most"), [(V2, 32768), (OWN, 65535)])
async def test_only_own_clients_get_frames_of_a_whole_read(settings: bytes, most: int) -> None:
    """The reference has never sent more than 32 KiB in one, and waits for the whole of it."""
    server = Server(settings)
    _, stream = server.open()
    data = random.Random(8).randbytes(2 * 65535)
    stream.write(data)
    said = server.said()
    assert b"".join(payload for _, _, payload in said) == data
    assert {len(payload) for _, _, payload in said[:-1]} == {most}
    await server.over()
