"""Recorded AnyTLS exchanges, replayed to our sessions in either role: byte for byte."""

from __future__ import annotations

from typing import Any

import pytest

from mtt.errors import DestinationError, PeerError
from mtt.layers.anytls_client import ClientSession, ServerState
from mtt.layers.anytls_stream import ClientStream
from mtt.outcome import Outcome
from mtt.wire.anytls import (
    FIN,
    PSH,
    SYN,
    SYNACK,
    PreambleReader,
    frame,
    parse_settings,
    password_hash,
)
from mtt.wire.padding import DEFAULT
from tests.layers.anytls_server_side import Server
from tests.support.transports import FakeLayer, Recorder, turns
from tests.wire.anytls_recordings import (
    CONNECTIONS,
    EDGE_CASES,
    PADDED_CONNECTIONS,
    Observed,
    connections,
    decode,
    frames_of,
    packets_of,
    update,
)

SCHEMES = (DEFAULT, EDGE_CASES, update())
HASHED = password_hash("test-password")
Events = list[dict[str, Any]]


def record(event: dict[str, Any]) -> bytes:
    return bytes.fromhex(event["hex"])


# As the client.


@pytest.mark.parametrize("events", PADDED_CONNECTIONS)
async def test_a_client_says_what_the_reference_said_in_the_same_records(
    events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    packets = list(packets_of(frames_of(events, "c2s")))
    settings = decode(packets[0])[0][2]
    # The order of the lines is random in the reference.
    monkeypatch.setattr("mtt.wire.anytls.client_settings", lambda _client, _md5: settings)
    md5 = parse_settings(settings)["padding-md5"]
    (scheme,) = (scheme for scheme in SCHEMES if scheme.md5 == md5)
    observed = Observed()
    server = ServerState(scheme)
    session = ClientSession(HASHED, server, randrange=observed.randrange)
    lower = FakeLayer(session)
    session.connection_made(lower)
    streams: dict[int, ClientStream] = {}
    rest = list(events)
    assert lower.writes == [record(rest.pop(0))]
    number = 0
    while packets:
        while rest[0]["dir"] == "s2c":
            session.data_received(record(rest.pop(0)))
        ours = [record(event) for event in rest if event["dir"] == "c2s"]
        number += 1
        observed.expect(server.scheme.packets.get(number, ()), ours)
        before = len(lower.writes)
        said = decode(packets.pop(0))
        command, stream_id, payload = said[-1]
        if command == SYN:  # not padded any more; the destination is the next packet
            ((_, _, payload),) = decode(packets.pop(0))
            number += 1
        if (SYN, stream_id, b"") in said:
            streams[stream_id] = session.open_stream(Recorder(), payload)
            assert streams[stream_id].id == stream_id
        elif command == PSH:
            streams[stream_id].write(payload)
        else:
            assert command == FIN
            streams[stream_id].close()
        written = lower.writes[before:]
        assert [piece.hex() for piece in written] == [piece.hex() for piece in ours[: len(written)]]
        for _ in written:
            while rest.pop(0)["dir"] == "s2c":
                pass
    assert all(event["dir"] == "s2c" for event in rest)
    assert session._padder.active == (number < server.scheme.stop)
    session.abort()
    await turns()


def replies(name: str) -> list[bytes]:
    (events,) = connections(name)
    return [record(event) for event in events if event["dir"] == "s2c" and event["hex"]]


async def test_a_client_is_told_why_its_destination_is_not_reached() -> None:
    session, lower, stream = opened()
    upper = stream.upper
    assert isinstance(upper, Recorder)
    for reply in replies("x-anytls-dial-failure"):
        session.data_received(reply)
    with pytest.raises(DestinationError, match="refused") as caught:
        await stream.acknowledged()
    assert caught.value.outcome is Outcome.CONNECTION_REFUSED
    assert lower.writes[-1][:7] == frame(FIN, 1)
    assert repr(upper.error) == repr(caught.value)
    assert not session.lost
    again = session.open_stream(Recorder(), b"dest")
    assert not again.is_closing()
    session.abort()
    await turns()


async def test_a_client_is_told_why_its_session_ends() -> None:
    session, _, stream = opened()
    for reply in replies("x-anytls-syn-before-settings"):
        session.data_received(reply)
    assert isinstance(session.error, PeerError)
    assert "client did not send its settings" in str(session.error)
    with pytest.raises(PeerError):
        await stream.acknowledged()
    await turns()


def opened() -> tuple[ClientSession, FakeLayer, ClientStream]:
    session = ClientSession(HASHED, ServerState())
    lower = FakeLayer(session)
    session.connection_made(lower)
    return session, lower, session.open_stream(Recorder(), b"dest")


# As the server.


@pytest.mark.parametrize("events", CONNECTIONS)
async def test_a_server_says_what_the_reference_said(events: Events) -> None:
    reader = PreambleReader()
    if record(events[0])[:32] != HASHED:  # never comes to a session
        assert [record(event) for event in events if event["dir"] == "s2c"] == [b""]
        return
    both = frames_of(events, "c2s") + frames_of(events, "s2c")
    scheme = DEFAULT
    for other in SCHEMES[1:]:  # the server has sent it, or the client has it already
        if other.raw in both or other.md5.encode() in both:
            scheme = other
    server = Server(scheme=scheme)
    expected = bytearray()
    for event in events:
        if event["dir"] == "c2s":
            if reader.rest is None:
                reader.feed(record(event))
                server.feed(reader.rest or b"")
            else:
                server.feed(record(event))
            continue
        for command, stream_id, payload in decode(record(event)):
            transport: Any = server.uppers[stream_id - 1].transport if stream_id else None
            if command == SYNACK:
                outcome = Outcome.CONNECTION_REFUSED if payload else Outcome.SUCCEEDED
                transport.acknowledge(outcome)
                payload = outcome.text.encode() if payload else b""
            elif command == PSH:
                transport.write(payload)
            elif command == FIN:
                transport.close()
            expected += frame(command, stream_id, payload)
        assert server.lower.sent[: len(expected)] == expected
    assert server.lower.sent == expected
    said = decode(frames_of(events, "c2s"))
    for number, upper in enumerate(server.uppers, 1):
        data = b"".join(text for command, sid, text in said if (command, sid) == (PSH, number))
        assert upper.data == data
        assert upper.eof is ((FIN, number, b"") in said)
    assert server.session.lost is (events[-1]["note"].startswith("EOF"))
    await server.over()
