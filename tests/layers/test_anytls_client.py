"""The client's AnyTLS session over a fake connection: packets, answers, signs of life."""

from __future__ import annotations

import asyncio
import errno

import pytest

from mtt.errors import DestinationError, MttError, NetworkError, PeerError
from mtt.layers import anytls_client, anytls_stream
from mtt.layers.anytls_client import CLIENT, MAX_UPDATES, ClientSession, Learned
from mtt.layers.anytls_stream import ClientStream
from mtt.layers.mux import ANSWERS_LIMIT
from mtt.outcome import Outcome
from mtt.wire.anytls import (
    ALERT,
    FIN,
    HEART_REQUEST,
    HEART_RESPONSE,
    MAX_PAYLOAD,
    PSH,
    SERVER_SETTINGS,
    SETTINGS,
    SYN,
    SYNACK,
    UPDATE_PADDING,
    Decoder,
    client_settings,
    frame,
    parse_settings,
    preamble,
)
from mtt.wire.padding import DEFAULT, Scheme
from tests.support.clock import Clock
from tests.support.transports import FakeLayer, Recorder, turns

HASHED = bytes(range(32))
PLAIN = Scheme.parse(b"stop=1")  # no padding at all
GREETING = frame(SERVER_SETTINGS, 0, b"v=2")
OWN = frame(SERVER_SETTINGS, 0, b"v=2\nhalf-close=1")


class Client:
    """A client's session and everything that happened to it."""

    def __init__(
        self, server: Learned | None = None, *, greeting: bytes = b"", half_close: bool = False
    ) -> None:
        self.server = server or Learned(PLAIN)
        self.lost: list[Exception | None] = []
        self.session = ClientSession(
            HASHED,
            self.server,
            half_close=half_close,
            on_lost=self._lost,
            randrange=lambda _low, high: high - 1,
        )
        self.lower = FakeLayer(self.session)
        self.session.connection_made(self.lower)
        self.first = self.lower.take()
        if greeting:  # a stream that is over
            self.stream()[1].close()
            self.session.data_received(greeting)
            self.session.data_received(frame(FIN, 1))
            self.lower.take()
            self.lower.writes.clear()

    def _lost(self, session: ClientSession, exc: Exception | None) -> None:
        assert session is self.session
        self.lost.append(exc)

    def stream(self) -> tuple[Recorder, ClientStream]:
        upper = Recorder()
        return upper, self.session.open_stream(upper, b"dest")

    def feed(self, *frames: bytes) -> None:
        self.session.data_received(b"".join(frames))

    def said(self) -> list[tuple[int, int, bytes]]:
        return [(*event[:2], bytes(event[2])) for event in Decoder().feed(self.lower.take())]

    async def over(self) -> None:
        self.session.abort()
        await turns()


async def answer_of(stream: ClientStream) -> MttError | None:
    try:
        await stream.acknowledged()
    except MttError as error:
        return error
    return None


# Packets.


async def test_settings_wait_for_the_first_stream_and_travel_with_its_destination() -> None:
    client = Client(Learned(Scheme.parse(b"stop=3\n0=9-9\n1=300-300\n2=50-50")))
    assert client.first == preamble(HASHED, 9)
    client.server.scheme = DEFAULT  # learned by another session meanwhile
    _, stream = client.stream()
    (packet,) = client.lower.writes[1:]
    assert client.said()[:3] == [
        (SETTINGS, 0, client_settings(CLIENT, DEFAULT.md5)), (SYN, 1, b""), (PSH, 1, b"dest"),
    ]  # fmt: skip
    assert len(packet) == 399
    stream.close()
    second = Client()
    second.stream()
    assert second.said()[1:] == [(SYN, 1, b""), (PSH, 1, b"dest")]
    second.stream()
    assert second.lower.writes[-2:] == [frame(SYN, 2), frame(PSH, 2, b"dest")]
    for each in (client, second):
        await each.over()


async def test_each_frame_is_a_packet_as_long_as_there_is_padding() -> None:
    client = Client(Learned(Scheme.parse(b"stop=4\n2=100-100\n3=60-60,200-200")))
    _, stream = client.stream()
    client.lower.writes.clear()
    data = bytes(3 * MAX_PAYLOAD + 5)
    stream.write(data)
    second, third = frame(PSH, 1, data[:MAX_PAYLOAD]), frame(PSH, 1, data[:MAX_PAYLOAD])
    assert client.lower.writes == [
        second[:100], second[100:],
        third[:60], third[60:260], third[260:],
        frame(PSH, 1, data[:MAX_PAYLOAD]), frame(PSH, 1, data[:5]),
    ]  # fmt: skip
    client.lower.writes.clear()
    stream.write(data[: 2 * MAX_PAYLOAD])
    assert client.lower.writes == [2 * frame(PSH, 1, data[:MAX_PAYLOAD])]
    await client.over()


async def test_a_new_scheme_counts_from_the_next_packet_on_and_for_new_sessions() -> None:
    client = Client(Learned(Scheme.parse(b"stop=9")))
    _, stream = client.stream()
    raw = b"stop=9\n0=5-5\n2=40-40\n4=41-41"
    client.feed(frame(UPDATE_PADDING, 0, raw))
    for size in (40, 11, 41):
        stream.write(b"data")
        assert len(client.lower.writes[-1]) == size
    other = Client(client.server)
    assert other.first == preamble(HASHED, 5)
    other.stream()
    assert parse_settings(other.said()[0][2])["padding-md5"] == Scheme.parse(raw).md5
    await client.over()
    await other.over()


async def test_an_unfit_scheme_changes_nothing_and_is_told_once() -> None:
    told: list[str] = []
    server = Learned(PLAIN, on_refused=told.append)
    for _ in range(3):
        client = Client(server)
        client.feed(frame(UPDATE_PADDING, 0, b"stop=8\n1=99999-99999"))
        assert not client.lost
        await client.over()
    assert server.scheme is PLAIN
    assert len(told) == 1
    assert "99999" in told[0]
    server.update(b"")
    assert len(told) == 2


async def test_schemes_that_come_again_and_again_end_the_session() -> None:
    client = Client()
    client.feed(*(frame(UPDATE_PADDING, 0, b"stop=%d" % n) for n in range(2 * MAX_UPDATES)))
    assert isinstance(client.lost[0], PeerError)
    assert "padding scheme" in str(client.lost[0])
    assert client.server.scheme.stop == MAX_UPDATES - 1
    await turns()


# The server's answer.


async def test_the_destination_is_reached() -> None:
    client = Client()
    upper, stream = client.stream()
    answer = asyncio.ensure_future(stream.acknowledged())
    await turns()
    client.feed(GREETING)
    await turns()
    assert not answer.done()
    client.feed(frame(SYNACK, 2, b"of another stream"), frame(SYNACK, 1), frame(SYNACK, 1))
    await answer
    await stream.acknowledged()
    assert not upper.lost
    await client.over()
    await stream.acknowledged()


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (b"dial tcp 1.2.3.4:5: connect: connection refused", Outcome.CONNECTION_REFUSED),
        (b"host unreachable", Outcome.HOST_UNREACHABLE),
        (b"dial tcp: i/o timeout", Outcome.TIMED_OUT),
        (b"something\nelse \xff", Outcome.GENERAL_FAILURE),
    ],
)
async def test_the_destination_is_not_reached(text: bytes, outcome: Outcome) -> None:
    client = Client()
    upper, stream = client.stream()
    client.said()
    client.feed(GREETING, frame(SYNACK, 1, text), frame(FIN, 1), frame(PSH, 1, b"late"))
    error = await answer_of(stream)
    assert isinstance(error, DestinationError)
    assert error.outcome is outcome
    assert "\n" not in str(error)
    assert repr(upper.error) == repr(error)
    assert stream.is_closing()
    stream.close()
    assert client.said() == [(FIN, 1, b"")]
    assert client.session.idle_since is not None
    await client.over()


async def test_the_end_of_the_stream_is_an_answer() -> None:
    client = Client()
    upper, stream = client.stream()
    client.feed(GREETING, frame(FIN, 1))
    error = await answer_of(stream)
    assert isinstance(error, DestinationError)
    assert error.outcome is Outcome.GENERAL_FAILURE
    assert upper.eof
    await client.over()


async def test_data_are_an_answer() -> None:
    for greeting, version in ((b"", 1), (GREETING, 2)):
        client = Client()
        upper, stream = client.stream()
        client.feed(greeting, frame(PSH, 1, b"data"), frame(FIN, 1))
        assert await answer_of(stream) is None
        assert upper.data == b"data"
        assert client.server.version == version
        await client.over()


@pytest.mark.parametrize("how", ["eof", "lost", "alert", "abort", "close the stream"])
async def test_the_end_of_the_session_is_an_answer(how: str) -> None:
    client = Client()
    _, stream = client.stream()
    answer = asyncio.ensure_future(answer_of(stream))
    await turns()
    if how == "eof":
        client.session.eof_received()
    elif how == "lost":
        client.session.connection_lost(ConnectionResetError())
    elif how == "alert":
        client.feed(frame(ALERT, 0, b"go away"))
    elif how == "abort":
        client.session.abort()
    else:
        stream.close()
    error = await answer
    assert error is not None
    assert not isinstance(error, DestinationError)
    assert isinstance(error, PeerError) is (how in ("eof", "alert"))
    assert ("password" in str(error)) is (how in ("eof", "lost"))
    await client.over()


@pytest.mark.parametrize("how", ["eof", "lost"])
@pytest.mark.parametrize(
    ("known", "asked", "words"),
    [
        pytest.param(0, False, True, id="a new server"),
        pytest.param(1, True, False, id="one that never says more"),
        pytest.param(2, False, False, id="one that was not asked"),
        pytest.param(2, True, True, id="one that has said more before"),
    ],
)
async def test_the_password_is_suspected_if_the_server_should_have_said_something(
    how: str, known: int, asked: bool, words: bool
) -> None:
    client = Client()
    client.server.version = known
    if asked:
        client.stream()
    if how == "eof":
        client.session.eof_received()
    else:
        client.session.connection_lost(ConnectionResetError())
    assert ("is the password right?" in str(client.session.error)) is words
    await client.over()


async def test_a_server_of_version_1_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anytls_stream, "QUESTION_TIME", 0.01)
    client = Client()
    _, stream = client.stream()
    client.said()
    assert await answer_of(stream) is None
    assert client.said() == []
    await client.over()
    assert client.server.version == 1  # which is learned once

    other = Client(client.server)
    monkeypatch.setattr(anytls_stream, "QUESTION_TIME", 60.0)
    assert await answer_of(other.stream()[1]) is None
    other.feed(GREETING)
    assert client.server.version == 2  # it has been replaced, or was slow
    await other.over()


async def test_a_server_that_has_not_heard_us_is_not_of_version_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    client = Client()
    waiting = asyncio.ensure_future(answer_of(client.stream()[1]))
    client.lower.buffered = 1000  # nothing is acknowledged
    await clock.passes(3 * anytls_stream.QUESTION_TIME)
    assert not waiting.done()
    assert client.server.version == 0
    client.lower.buffered = 0
    await clock.passes(anytls_stream.QUESTION_TIME)
    assert await waiting is None
    assert client.server.version == 1
    await client.over()


async def test_a_guess_at_the_version_ends_no_wait_for_half_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server's settings may be late, on a line that loses packets."""
    clock = Clock(monkeypatch)
    client = Client(half_close=True)
    _, stream = client.stream()
    stream.watch()
    await clock.passes(anytls_stream.QUESTION_TIME + 0.1)
    assert client.server.version == 1
    assert stream.half_closes() is None
    other = Client(client.server, half_close=True)
    assert other.stream()[1].half_closes() is not None
    client.feed(OWN)
    assert stream.can_write_eof()
    await client.over()
    await other.over()


async def test_an_answer_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(anytls_stream, "SYNACK_TIME", 0.3)  # the loop's own, not the clock's
    client = Client(greeting=GREETING)
    upper, stream = client.stream()
    assert client.said() == [(SYN, 2, b""), (PSH, 2, b"dest")]
    answer = asyncio.ensure_future(answer_of(stream))
    await clock.until(lambda: client.lower.sent)
    assert client.said() == [(HEART_REQUEST, 0, b"")]
    client.feed(frame(HEART_RESPONSE, 0))  # the server is alive, the destination is not
    error = await answer
    assert isinstance(error, DestinationError)
    assert error.outcome is Outcome.TIMED_OUT
    assert await upper.ended() is None
    assert client.said() == [(FIN, 2, b"")]
    assert not client.lost
    await client.over()


# Signs of life.


async def test_a_server_that_is_gone_is_found_out_while_it_is_asked_for_a_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anytls_stream, "QUESTION_TIME", 0.01)
    monkeypatch.setattr(anytls_client, "HEART_TIME", 0.05)
    monkeypatch.setattr(anytls_client, "LATE_TIME", 0.02)
    client = Client(greeting=GREETING)
    upper, stream = client.stream()
    error = await answer_of(stream)
    assert isinstance(error, NetworkError)
    assert not isinstance(error, DestinationError)
    assert repr(upper.error) == repr(error)
    assert client.lower.aborted
    assert list(map(repr, client.lost)) == [repr(error)]
    await turns()


async def test_a_stream_may_be_watched_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anytls_stream, "QUESTION_TIME", 0.01)
    monkeypatch.setattr(anytls_client, "HEART_TIME", 0.05)
    told, silent = Client(greeting=GREETING), Client(greeting=GREETING)
    told.stream()[1].watch()
    told.feed(frame(SYNACK, 2))
    told.said()
    upper, stream = silent.stream()
    stream.watch()
    assert isinstance(await upper.ended(), NetworkError)
    assert silent.lower.aborted
    assert told.said() == []
    await told.over()


async def test_idle_sessions_are_asked_for_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    first, unused, busy = Client(), Client(), Client(greeting=GREETING)
    first.stream()[1].close()
    first.said()
    busy.stream()
    busy.said()
    silent = Client(greeting=GREETING)
    await clock.until(lambda: silent.lower.sent)
    assert silent.session.healthy
    await clock.passes(anytls_client.LATE_TIME + 0.1)
    assert silent.said() == [(HEART_REQUEST, 0, b"")]
    assert not silent.session.healthy
    silent.feed(frame(HEART_RESPONSE, 0)[:3])
    assert silent.session.healthy
    await clock.until(lambda: silent.lost)
    assert isinstance(silent.lost[0], NetworkError)
    assert silent.lower.aborted
    assert not silent.session.healthy
    # Not for servers of version 1 or not known yet; not while there is a stream.
    for client in (first, unused, busy):
        assert not client.lower.sent
        assert not client.lost
        await client.over()


async def test_a_full_connection_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    client = Client(greeting=GREETING)
    client.session.pause_writing()
    client.session.question()
    assert not client.lower.sent
    client.session.resume_writing()
    client.session.question()
    client.session.question()
    assert client.said() == [(HEART_REQUEST, 0, b"")]
    client.feed(frame(HEART_RESPONSE, 0))
    await clock.passes(2 * anytls_client.HEART_TIME)
    assert not client.lost
    await client.over()


# What servers must not do, and ends.


async def test_a_server_opens_no_streams_and_cannot_make_us_answer_without_end() -> None:
    client = Client(Learned(DEFAULT))
    client.stream()
    client.said()
    client.feed(frame(SYN, 4))
    assert (FIN, 4, b"") in client.said()
    client.session.pause_writing()
    while not client.lost:
        client.feed(frame(SYN, 4) * 500 + frame(HEART_REQUEST, 0) * 500)
        await turns(1)
        assert len(client.lower.sent) < ANSWERS_LIMIT + 100_000
    assert isinstance(client.lost[0], PeerError)
    await turns()


async def test_without_half_close_the_end_is_that_of_both() -> None:
    client = Client(greeting=GREETING, half_close=True)
    upper, stream = client.stream()
    client.said()
    assert not stream.can_write_eof()
    stream.write(b"all")
    stream.write_eof()
    client.feed(frame(PSH, 2, b"late"))
    assert await upper.at_eof() == b""
    stream.close()
    assert client.said() == [(PSH, 2, b"all"), (FIN, 2, b"")]
    await client.over()


async def test_a_stream_that_is_cut_before_half_close_is_known_is_reset() -> None:
    """A server of ours would take FIN alone for an ordinary end; others skip the empty PSH."""
    for known in (0, 2):
        client = Client(half_close=True)
        client.server.version = known
        _, stream = client.stream()
        client.said()
        stream.abort()
        assert client.said() == [(PSH, 1, b""), (FIN, 1, b"")]
        await client.over()
    client = Client(half_close=True)
    client.server.version = 1
    _, stream = client.stream()
    client.said()
    stream.abort()
    assert client.said() == [(FIN, 1, b"")]
    await client.over()


async def test_half_close_is_known_from_the_servers_settings_on() -> None:
    client = Client(half_close=True)
    upper, stream = client.stream()
    settings = client.said()[0][2]
    assert settings == client_settings(CLIENT, PLAIN.md5) + b"\nhalf-close=1"
    assert not stream.can_write_eof()
    client.feed(OWN, frame(SYNACK, 1))
    assert stream.can_write_eof()
    stream.write_eof()
    client.feed(frame(PSH, 1, b"reply"), frame(FIN, 1))
    assert upper.data == b"reply"
    stream.close()
    assert client.said() == [(FIN, 1, b"")]
    assert client.session.idle_since is not None
    # One that was not asked does not count.
    plain = Client(greeting=OWN)
    assert not plain.stream()[1].can_write_eof()
    await client.over()
    await plain.over()


async def test_whether_there_is_half_close_is_open_until_the_server_may_have_said_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As long as it is, nothing is complete: the relay must not say an end that ends it all."""
    clients = [Client(half_close=True) for _ in range(4)]
    ours, foreign, known, _ = clients
    foreign.server.version = 2  # of another session
    known.server.version = 1  # of another session, too
    streams = [client.stream()[1] for client in clients]
    assert [stream.half_closes() is None for stream in streams] == [True, True, False, True]
    ours.feed(OWN)
    foreign.feed(GREETING)
    assert [stream.half_closes() is None for stream in streams] == [False, False, False, True]
    assert [stream.can_write_eof() for stream in streams] == [True, False, False, False]
    monkeypatch.setattr(anytls_client, "SETTINGS_TIME", 0.0)
    assert streams[3].half_closes() is not None
    clients.append(Client())
    assert clients[4].stream()[1].half_closes() is not None  # nobody was asked
    for client in clients:
        await client.over()


async def test_a_closed_stream_occupies_the_session_until_an_own_server_has_ended_it() -> None:
    client = Client(greeting=OWN, half_close=True)
    upper, stream = client.stream()
    client.feed(frame(SYNACK, 2))
    stream.close()
    assert client.session.open_streams == 0
    assert client.session.idle_since is None
    client.feed(frame(PSH, 2, b"late"), frame(FIN, 2))
    assert client.session.idle_since is not None
    assert await upper.ended() is None
    assert not upper.data
    await client.over()


async def test_nothing_can_be_opened_on_a_session_that_is_over() -> None:
    client = Client()
    client.session.connection_lost(OSError(errno.ECONNRESET, ""))
    with pytest.raises(NetworkError, match="reset"):
        client.stream()
    client.session.close()
    assert not client.session.healthy
    assert len(client.lost) == 1
