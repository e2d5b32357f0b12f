"""How the client's AnyTLS session finds out that its server is gone."""

from __future__ import annotations

import pytest

from mtt.errors import DestinationError, NetworkError
from mtt.layers import anytls_client, anytls_stream
from mtt.wire.anytls import HEART_REQUEST, HEART_RESPONSE, SYNACK, frame
from tests.layers.anytls_client_side import GREETING, Client, answer_of
from tests.support.clock import Clock
from tests.support.transports import turns


async def test_dead_server_is_found_while_a_stream_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(anytls_stream, "HEARTBEAT_DELAY", 0.01)
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


async def test_watched_stream_ends_if_the_server_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anytls_stream, "HEARTBEAT_DELAY", 0.01)
    monkeypatch.setattr(anytls_client, "HEART_TIME", 0.05)
    told, silent = Client(greeting=GREETING), Client(greeting=GREETING)
    told.stream()[1].expect_answer()
    told.feed(frame(SYNACK, 2))
    told.said()
    upper, stream = silent.stream()
    stream.expect_answer()
    assert isinstance(await upper.ended(), NetworkError)
    assert silent.lower.aborted
    assert told.said() == []
    await told.over()


async def test_idle_session_sends_a_heartbeat_and_ends_unanswered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


async def test_full_connection_gets_no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    client = Client(greeting=GREETING)
    client.session.pause_writing()
    client.session.request_heartbeat()
    assert not client.lower.sent
    client.session.resume_writing()
    client.session.request_heartbeat()
    client.session.request_heartbeat()
    assert client.said() == [(HEART_REQUEST, 0, b"")]
    client.feed(frame(HEART_RESPONSE, 0))
    await clock.passes(2 * anytls_client.HEART_TIME)
    assert not client.lost
    await client.over()
