"""The server's AnyTLS session: its limits, its end, and what its streams keep."""

from __future__ import annotations

import random

import pytest

from mtt.errors import PeerError
from mtt.layers.anytls import RECEIVE_BUDGET
from mtt.layers.mux import ANSWERS_LIMIT
from mtt.wire.anytls import ALERT, FIN, HEART_REQUEST, HEART_RESPONSE, PSH, SETTINGS, frame
from mtt.wire.padding import Scheme
from tests.layers.anytls_server_side import OWN, V2, Server
from tests.layers.session_side import check_unread_answers_are_bounded
from tests.support.transports import turns


async def test_paused_reader_stops_the_session_at_its_budget() -> None:
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


async def test_unread_heartbeat_answers_are_bounded() -> None:
    server = Server(V2)
    server.feed(frame(HEART_REQUEST, 5), frame(HEART_REQUEST, 0))
    assert server.said() == [(HEART_RESPONSE, 5, b""), (HEART_RESPONSE, 0, b"")]
    await check_unread_answers_are_bounded(server, frame(HEART_REQUEST, 0))


async def test_unread_settings_answers_are_bounded_within_one_read() -> None:
    scheme = Scheme.parse(b"stop=8\n" + b"#" * 16_000)
    server = Server(scheme=scheme)
    server.session.pause_writing()
    server.feed(frame(SETTINGS, 0, b"v=2") * 6000)  # 64 KiB, and 96 MB of answers
    assert len(server.lower.sent) < ANSWERS_LIMIT + 2 * len(scheme.raw)
    await turns()
    assert isinstance(server.lost[0], PeerError)
    assert server.lower.aborted


async def test_alert_of_a_client_ends_the_session() -> None:
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
