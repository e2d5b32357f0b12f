"""The client's AnyTLS session over a fake connection: packets, padding schemes, abuse."""

from __future__ import annotations

import errno

import pytest

from mtt.errors import NetworkError, PeerError
from mtt.layers.anytls_client import CLIENT, MAX_UPDATES, ServerState
from mtt.layers.mux import ANSWERS_LIMIT
from mtt.wire.anytls import (
    FIN,
    HEART_REQUEST,
    MAX_PAYLOAD,
    PSH,
    SETTINGS,
    SYN,
    UPDATE_PADDING,
    client_settings,
    frame,
    parse_settings,
    preamble,
)
from mtt.wire.padding import DEFAULT, Scheme
from tests.layers.anytls_client_side import HASHED, PLAIN, Client
from tests.support.transports import turns

# Packets.


async def test_settings_are_sent_with_the_first_destination() -> None:
    client = Client(ServerState(Scheme.parse(b"stop=3\n0=9-9\n1=300-300\n2=50-50")))
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


async def test_each_frame_is_a_packet_while_there_is_padding() -> None:
    client = Client(ServerState(Scheme.parse(b"stop=4\n2=100-100\n3=60-60,200-200")))
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


async def test_new_scheme_applies_from_the_next_packet_on() -> None:
    client = Client(ServerState(Scheme.parse(b"stop=9")))
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


async def test_invalid_scheme_is_ignored_and_reported_once() -> None:
    told: list[str] = []
    server = ServerState(PLAIN, on_refused=told.append)
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


async def test_endless_new_schemes_end_the_session() -> None:
    client = Client()
    client.feed(*(frame(UPDATE_PADDING, 0, b"stop=%d" % n) for n in range(2 * MAX_UPDATES)))
    assert isinstance(client.lost[0], PeerError)
    assert "padding scheme" in str(client.lost[0])
    assert client.server.scheme.stop == MAX_UPDATES - 1
    await turns()


# What servers must not do, and ends.


async def test_streams_of_a_server_are_refused_within_a_limit() -> None:
    client = Client(ServerState(DEFAULT))
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


async def test_ended_session_opens_no_streams() -> None:
    client = Client()
    client.session.connection_lost(OSError(errno.ECONNRESET, ""))
    with pytest.raises(NetworkError, match="reset"):
        client.stream()
    client.session.close()
    assert not client.session.healthy
    assert len(client.lost) == 1
