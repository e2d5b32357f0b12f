"""What the client's AnyTLS session makes of the server's answers, and of none."""

from __future__ import annotations

import asyncio

import pytest

from mtt.errors import DestinationError, PeerError
from mtt.layers import anytls_stream
from mtt.outcome import Outcome
from mtt.wire.anytls import ALERT, FIN, HEART_REQUEST, HEART_RESPONSE, PSH, SYN, SYNACK, frame
from tests.layers.anytls_client_side import GREETING, Client, answer_of
from tests.support.clock import Clock
from tests.support.transports import turns


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
async def test_error_suspects_the_password_if_an_answer_is_missing(
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


async def test_silent_server_is_taken_for_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anytls_stream, "HEARTBEAT_DELAY", 0.01)
    client = Client()
    _, stream = client.stream()
    client.said()
    assert await answer_of(stream) is None
    assert client.said() == []
    await client.over()
    assert client.server.version == 1  # which is learned once

    other = Client(client.server)
    monkeypatch.setattr(anytls_stream, "HEARTBEAT_DELAY", 60.0)
    assert await answer_of(other.stream()[1]) is None
    other.feed(GREETING)
    assert client.server.version == 2  # it has been replaced, or was slow
    await other.over()


async def test_unacknowledged_request_does_not_mean_version_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    client = Client()
    waiting = asyncio.ensure_future(answer_of(client.stream()[1]))
    client.lower.buffered = 1000  # nothing is acknowledged
    await clock.passes(3 * anytls_stream.HEARTBEAT_DELAY)
    assert not waiting.done()
    assert client.server.version == 0
    client.lower.buffered = 0
    await clock.passes(anytls_stream.HEARTBEAT_DELAY)
    assert await waiting is None
    assert client.server.version == 1
    await client.over()


async def test_missing_answer_times_out_though_the_server_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
