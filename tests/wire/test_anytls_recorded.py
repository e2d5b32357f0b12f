"""Recorded AnyTLS exchanges, replayed: every frame, setting, address, datagram and record."""

from __future__ import annotations

import re

import pytest

from mtt.wire import addresses, uot
from mtt.wire.anytls import (
    ALERT,
    FIN,
    NO_SETTINGS,
    PSH,
    SERVER_SETTINGS,
    SETTINGS,
    SYNACK,
    UPDATE_PADDING,
    WASTE,
    PreambleReader,
    encode_settings,
    frame,
    parse_settings,
    password_hash,
    preamble,
    server_settings,
    shown,
    version_of,
)
from mtt.wire.padding import DEFAULT, Padder, Scheme
from tests.support.vectors import Events, stream_of
from tests.wire.anytls_recordings import (
    CONNECTIONS,
    EDGE_CASES,
    NAMES,
    PADDED_CONNECTIONS,
    Observed,
    connections,
    decode,
    frames_of,
    noted,
    packets_of,
    update,
)
from tests.wire.pieces import joined


def test_there_are_recordings() -> None:
    assert [name[0] for name in NAMES] == list("efghxxxxx")
    assert len(CONNECTIONS) == 10


@pytest.mark.parametrize("direction", ["c2s", "s2c"])
@pytest.mark.parametrize("events", CONNECTIONS)
def test_recorded_frames_match_the_notes(events: Events, direction: str) -> None:
    data = frames_of(events, direction)
    expected = noted(events, direction)
    found = decode(data)
    assert [(command, stream_id, len(payload)) for command, stream_id, payload in found] == [
        line for line in expected if line[0] != WASTE
    ]
    # Encoded again, with the waste where the notes have it, it is what was recorded.
    again = iter(found)
    assert data == b"".join(
        frame(WASTE, 0, bytes(size)) if command == WASTE else frame(*next(again))
        for command, _, size in expected
    )


@pytest.mark.parametrize("direction", ["c2s", "s2c"])
@pytest.mark.parametrize("events", CONNECTIONS)
def test_frames_may_be_cut_anywhere(events: Events, direction: str) -> None:
    data = frames_of(events, direction)
    whole = joined(decode(data), PSH)
    for size in (1, 2, 5, 7, 8, 100):
        assert joined(decode(data, size=size), PSH) == whole


@pytest.mark.parametrize("events", CONNECTIONS)
def test_settings_and_versions(events: Events) -> None:
    sent = decode(frames_of(events, "c2s"))
    said = [payload for command, _, payload in sent if command == SETTINGS]
    for payload in said:
        settings = parse_settings(payload)
        assert set(settings) == {"v", "client", "padding-md5"}
        assert settings["padding-md5"] in (DEFAULT.md5, EDGE_CASES.md5, update().md5)
        assert encode_settings(settings) == payload
    version = version_of(parse_settings(said[0])) if said else 0
    answers = [
        payload
        for command, _, payload in decode(frames_of(events, "s2c"))
        if command == SERVER_SETTINGS
    ]
    known = "EOF" not in events[-1]["note"]  # the password was right, settings came first
    assert answers == ([server_settings()] if known and version >= 2 else [])


@pytest.mark.parametrize("events", CONNECTIONS)
def test_the_preamble(events: Events) -> None:
    (size,) = re.findall(r"auth: .* padding0 len=(\d+)", events[0]["note"])
    stream = stream_of(events, "c2s")
    hashed = password_hash("test-password")
    if stream[:32] == bytes(32):  # the wrong password
        hashed = bytes(32)
    assert stream.startswith(preamble(hashed, int(size)))
    reader = PreambleReader()
    for byte in stream[: 34 + int(size)]:
        assert reader.rest is None
        reader.feed(bytes((byte,)))
    assert (reader.hash, reader.rest) == (hashed, b"")


# Records: one write to TLS each.


@pytest.mark.parametrize("events", PADDED_CONNECTIONS)
def test_padded_records_match_the_recording(
    events: Events,
) -> None:
    data = frames_of(events, "c2s")
    md5 = parse_settings(decode(data)[0][2])["padding-md5"]
    (scheme,) = (s for s in (DEFAULT, EDGE_CASES, update()) if s.md5 == md5)
    observed = Observed()
    padder = Padder(scheme, observed.randrange)

    first, *rest = events
    assert bytes.fromhex(first["hex"]) == preamble(
        password_hash("test-password"), scheme.padding0(observed.randrange)
    )
    number = 0
    for packet in packets_of(data):
        number += 1
        while rest[0]["dir"] == "s2c":
            for command, _, payload in decode(bytes.fromhex(rest.pop(0)["hex"])):
                if command == UPDATE_PADDING:
                    padder.scheme = Scheme.parse(payload)
        records = [bytes.fromhex(event["hex"]) for event in rest if event["dir"] == "c2s"]
        observed.expect(padder.scheme.packets.get(number, ()), records)
        written = padder.write(packet)
        assert [bytes(record).hex() for record in written] == [
            record.hex() for record in records[: len(written)]
        ]
        for _ in written:
            while rest.pop(0)["dir"] == "s2c":
                pass
    assert all(event["dir"] == "s2c" for event in rest)
    assert padder.active == (number < padder.scheme.stop)


# What the streams said.


def said(name: str, direction: str, stream_id: int = 1) -> bytes:
    (events,) = connections(name)
    return b"".join(
        payload
        for command, number, payload in decode(frames_of(events, direction))
        if command == PSH and number == stream_id
    )


def test_two_streams_to_one_echo_server() -> None:
    name = "e-anytls-tcp-socks5"
    for stream_id, host, text in [
        (1, "127.0.0.1", b"".join(b"write %d" % n for n in range(1, 10))),
        (2, "localhost", b"second streamagain"),
    ]:
        sent = said(name, "c2s", stream_id)
        address = addresses.decode(sent)
        assert address is not None
        assert address[:2] == (host, 33255)
        assert sent == addresses.encode(host, 33255) + text
        assert said(name, "s2c", stream_id) == text


def test_datagrams_with_addresses() -> None:
    name = "f-anytls-udp-over-tcp-v2"
    sent = said(name, "c2s")
    host, port, start = addresses.decode(sent) or ("", 0, 0)
    assert (uot.version(host), port) == (2, 0)
    datagrams = [
        ("127.0.0.1", 36827, b"first datagram"),
        ("127.0.0.1", 36827, b"second datagram"),
        ("localhost", 36827, b"by name"),
    ]
    decoder = uot.Decoder(request=True)
    assert [(*rest, bytes(data)) for *rest, data in decoder.feed(sent[start:])] == datagrams
    assert decoder.request == (False, "0.0.0.0", 0)
    assert decoder.at_boundary
    assert sent == (
        addresses.encode(uot.MAGIC, 0)
        + uot.encode_request("0.0.0.0", 0, connect=False)
        + b"".join(uot.encode_datagram(data, host, port) for host, port, data in datagrams)
    )
    answers = [("127.0.0.1", 36827, b"echo:" + data) for _, _, data in datagrams]
    received = said(name, "s2c")
    assert [(*rest, bytes(data)) for *rest, data in uot.Decoder().feed(received)] == answers
    assert received == b"".join(uot.encode_datagram(data, *to) for *to, data in answers)


def test_datagrams_after_a_request_to_connect() -> None:
    name = "x-anytls-uot-connect"
    sent = said(name, "c2s")
    start = len(addresses.encode(uot.MAGIC, 0))
    payloads = [b"abc", b"", b"de"]
    decoder = uot.Decoder(request=True)
    peer = ("127.0.0.1", 51041)
    assert [(*rest, bytes(data)) for *rest, data in decoder.feed(sent[start:])] == [
        (*peer, payload) for payload in payloads
    ]
    assert decoder.request == (True, *peer)
    assert sent[start:] == uot.encode_request(*peer, connect=True) + b"".join(
        map(uot.encode_connected, payloads)
    )
    received = said(name, "s2c")
    assert [bytes(data) for *_, data in uot.Decoder(peer=peer).feed(received)] == [
        b"echo:" + payload for payload in payloads
    ]
    assert received == b"".join(uot.encode_connected(b"echo:" + payload) for payload in payloads)


def test_a_client_of_version_1() -> None:
    sent = said("x-anytls-v1-client", "c2s")
    assert sent == addresses.encode("127.0.0.1", 46253) + b"v1 client"


def test_recorded_synacks_of_failures() -> None:
    (events,) = connections("x-anytls-syn-before-settings")
    assert decode(frames_of(events, "s2c")) == [(ALERT, 0, NO_SETTINGS)]
    (events,) = connections("x-anytls-dial-failure")
    _, (command, stream_id, text), last = decode(frames_of(events, "s2c"))
    assert (command, stream_id, last) == (SYNACK, 1, (FIN, 1, b""))
    assert shown(text) == "dial tcp 127.0.0.1:42207: connect: connection refused"
    (events,) = connections("x-anytls-auth-failure")
    assert stream_of(events, "s2c") == b""
