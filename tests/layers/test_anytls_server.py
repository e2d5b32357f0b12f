"""The server's AnyTLS session over a fake connection: settings, streams, half-close."""

from __future__ import annotations

import pytest

from mtt.errors import PeerError
from mtt.layers.anytls_server import MAX_STREAMS
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
    frame,
)
from mtt.wire.padding import DEFAULT, Scheme
from tests.layers.anytls_server_side import GREETING, OWN, V1, V2, Server
from tests.support.transports import turns

# Settings.


@pytest.mark.parametrize(
    ("version", "answers"),
    [(b"2", 1), (b"3", 1), (b"256", 1), (b"1", 0), (b"0", 0), (b"-1", 0), (b"two", 0), (b"", 0)],
)
async def test_only_clients_from_version_2_on_get_version_2(version: bytes, answers: int) -> None:
    server = Server()
    text = b"v=" + version + b"\npadding-md5=" + DEFAULT.md5.encode()
    server.feed(frame(SETTINGS, 0, text))
    assert server.said() == [GREETING] * answers
    _, stream = server.open()
    stream.acknowledge()
    assert server.said() == [(SYNACK, 1, b"")] * answers
    await server.over()


async def test_scheme_is_sent_whenever_the_client_has_another() -> None:
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


async def test_fin_of_a_client_ends_both_directions_unanswered() -> None:
    server = Server(V2)
    upper, stream = server.open()
    assert not stream.can_write_eof()
    server.feed(frame(PSH, 1, b"all"), frame(FIN, 1), frame(PSH, 1, b"late"))
    assert upper.data == b"all"
    assert upper.eof
    stream.write(b"ignored")
    stream.acknowledge()
    stream.close()
    assert await upper.ended() is None
    assert server.said() == []
    server.feed(frame(SYN, 1), frame(PSH, 1, b"the id again"))
    assert server.uppers[1].data == b"the id again"
    await server.over()


async def test_write_eof_ends_both_directions_without_half_close() -> None:
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
async def test_failures_are_reported_in_fixed_words(outcome: Outcome) -> None:
    for settings, told in ((V2, [(SYNACK, 7, outcome.text.encode())]), (V1, [])):
        server = Server(settings)
        _, stream = server.open(7)
        stream.acknowledge(outcome)
        stream.close()
        assert server.said() == [*told, (FIN, 7, b"")]
        await server.over()


async def test_frames_for_unknown_streams_are_ignored() -> None:
    server = Server(V2)
    upper, _ = server.open(0)
    server.feed(
        frame(SYN, 0), frame(PSH, 9, b"unknown"), frame(FIN, 9), frame(PSH, 9), frame(PSH, 0),
        frame(SYNACK, 0, b"x"), frame(SERVER_SETTINGS, 0, b"v=2"), frame(UPDATE_PADDING, 0, b"x"),
        frame(77, 0), frame(ALERT, 0), frame(HEART_RESPONSE, 3), frame(PSH, 0, b"known"),
    )  # fmt: skip
    assert upper.data == b"known"
    assert len(server.uppers) == 1
    assert server.said() == []
    await server.over()


async def test_streams_beyond_the_limit_are_refused() -> None:
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


async def test_half_close_is_for_clients_that_ask_for_it() -> None:
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


async def test_reset_differs_from_an_ordinary_end() -> None:
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
