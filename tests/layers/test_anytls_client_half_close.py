"""Half-close of the client's AnyTLS streams, with servers that have it or not."""

from __future__ import annotations

import pytest

from mtt.layers import anytls_client, anytls_stream
from mtt.layers.anytls_client import CLIENT
from mtt.wire.anytls import FIN, PSH, SYNACK, client_settings, frame
from tests.layers.anytls_client_side import GREETING, OWN, PLAIN, Client
from tests.support.clock import Clock


async def test_guessed_version_leaves_half_close_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's settings may be late, on a line that loses packets."""
    clock = Clock(monkeypatch)
    client = Client(half_close=True)
    _, stream = client.stream()
    stream.expect_answer()
    await clock.passes(anytls_stream.HEARTBEAT_DELAY + 0.1)
    assert client.server.version == 1
    assert stream.half_closes() is None
    other = Client(client.server, half_close=True)
    assert other.stream()[1].half_closes() is not None
    client.feed(OWN)
    assert stream.can_write_eof()
    await client.over()
    await other.over()


async def test_without_half_close_write_eof_ends_both_directions() -> None:
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


async def test_abort_before_half_close_is_known_sends_a_reset() -> None:
    """An own server would take FIN alone for an ordinary end; others skip the empty PSH."""
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


async def test_half_close_is_known_from_the_server_settings_on() -> None:
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


async def test_half_close_is_unknown_until_the_server_settings(
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
    assert clients[4].stream()[1].half_closes() is not None  # no server was asked
    for client in clients:
        await client.over()


async def test_closed_stream_keeps_the_session_busy_until_its_fin() -> None:
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
