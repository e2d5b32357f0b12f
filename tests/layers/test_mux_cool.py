"""Mux.Cool sessions over a fake connection: what differs from smux, and both kinds of peer."""

from __future__ import annotations

import random

import pytest

from mtt.errors import NetworkError, PeerError
from mtt.layers.keepalive import DEAD_TIME
from mtt.layers.mux_tunnel import MAX_STREAMS, RECEIVE_BUDGET, STALE_TIME, STOP_AT
from mtt.wire.mux_cool import (
    END,
    KEEP,
    KEEP_ALIVE,
    LAST_ID,
    MAX_LENGTH,
    MAX_PAYLOAD,
    RESET,
    data_frames,
    end,
    header,
    keep_alive,
    new,
)
from tests.layers.mux_cool_side import Server, client
from tests.layers.session_side import check_unread_answers_are_bounded
from tests.support.clock import Clock
from tests.support.transports import Recorder, turns

UDP = bytes.fromhex("000c00010101020035017f0000010003") + b"dns"


def data(stream_id: int, payload: bytes) -> bytes:
    return header(stream_id, len(payload)) + payload


async def test_a_stream_from_opening_to_end() -> None:
    server = Server()
    upper, stream = server.open(1)
    server.feed(data(1, b"one"), data(1, b"two"))
    stream.write(b"three")
    server.feed(data(1, b"four") + end(1))
    assert upper.data == b"onetwofour"
    assert upper.eof
    stream.write(b"five")
    stream.close()
    assert await upper.ended() is None
    assert server.said() == [(KEEP, 1, b"three"), (KEEP, 1, b"five"), (END, 1, b"")]
    assert server.session.used_slots == 0
    await server.over()


async def test_client_numbers_streams_from_one() -> None:
    session, lower = client()
    streams = [session.open_stream(Recorder()) for _ in range(2)]
    assert [stream.id for stream in streams] == [1, 2]
    streams[1].write(b"x")
    assert lower.take() == new(1) + new(2) + data(2, b"x")
    session.abort()
    await turns()


async def test_session_is_exhausted_when_ids_run_out() -> None:
    session, _ = client()
    session._next_id = LAST_ID
    session.open_stream(Recorder())
    assert session.exhausted
    with pytest.raises(NetworkError):
        session.open_stream(Recorder())
    session.abort()
    await turns()


@pytest.mark.parametrize(("half_close", "most"), [(False, MAX_PAYLOAD), (True, MAX_LENGTH)])
async def test_only_own_peers_get_large_frames(half_close: bool, most: int) -> None:
    server = Server(half_close=half_close)
    _, stream = server.open()
    payload = random.Random(8).randbytes(2 * MAX_LENGTH)
    stream.write(payload)
    assert server.lower.take() == data_frames(1, payload, most)
    await server.over()


async def test_streams_beyond_the_limit_and_of_other_networks_are_refused() -> None:
    server = Server()
    server.feed(*(new(number) for number in range(1, MAX_STREAMS + 2)))
    assert len(server.uppers) == MAX_STREAMS
    assert server.said() == [(RESET, MAX_STREAMS + 1, b"")]
    other = Server()
    other.feed(UDP, new(2), data(2, b"served"))
    assert other.said() == [(RESET, 1, b"")]
    assert [upper.data for upper in other.uppers] == [b"served"]
    await server.over()
    await other.over()


async def test_peer_that_opens_a_stream_twice_is_cut() -> None:
    """Its data would go to the wrong stream."""
    server = Server()
    upper, _ = server.open(1)
    server.feed(new(1) + data(1, b"of which?"))
    await turns()
    assert str(server.lost[0]) == "Mux.Cool: the peer opens stream 1 twice"
    assert upper.data == b""
    assert upper.lost


async def test_data_for_unknown_streams_is_not_answered() -> None:
    """v2ray-plugin answers it with END; if both did, they would go on for ever."""
    server = Server()
    _, stream = server.open(1)
    server.feed(data(9, b"unknown"), end(9), end(9, error=True), keep_alive(9))
    assert server.said() == []
    stream.close()
    assert server.session.used_slots == 0  # v2ray-plugin counts no ended streams
    server.feed(data(1, b"late"), data(1, b"late"), end(1, error=True))  # how it answers END
    assert server.said() == [(END, 1, b"")]
    await server.over()


async def test_stream_counts_until_an_own_peer_has_ended_it() -> None:
    server = Server(half_close=True)
    _, stream = server.open(1)
    stream.close()
    assert server.session.used_slots == 1
    server.feed(end(1))
    assert server.session.used_slots == 0
    await server.over()


@pytest.mark.parametrize("half_close", [False, True])
async def test_reset_differs_from_an_ordinary_end(half_close: bool) -> None:
    server, other = Server(half_close=half_close), Server(half_close=half_close)
    upper, stream = server.open(1)
    peer, _ = other.open(1)
    stream.write(b"all")
    stream.abort()
    other.feed(server.lower.take())
    assert peer.data == b"all"
    assert isinstance(peer.error, ConnectionResetError)
    assert not peer.eof
    assert await upper.ended() is None
    server.feed(other.lower.take())
    assert server.said() == []
    assert server.session.used_slots == 0
    await server.over()
    await other.over()


async def test_reset_ends_a_stream_once_its_data_is_read() -> None:
    server = Server()
    upper, stream = server.open(1)
    stream.pause_reading()
    server.feed(data(1, b"before"), end(1, error=True), end(1))
    assert not upper.lost
    stream.resume_reading()
    await upper.ended()
    assert upper.data == b"before"
    assert isinstance(upper.error, ConnectionResetError)
    assert not upper.eof
    await server.over()


async def test_own_ends_close_each_direction_separately() -> None:
    server = Server(half_close=True)
    upper, stream = server.open(1)
    stream.write(b"all")
    stream.write_eof()
    assert server.said() == [(KEEP, 1, b"all"), (END, 1, b"")]
    server.feed(data(1, b"still"), end(1))
    assert upper.data == b"still"
    stream.close()
    assert server.said() == []
    assert server.session.used_slots == 0
    await server.over()


async def test_only_own_peer_is_told_to_stop_a_stream() -> None:
    for half_close in (True, False):
        server = Server(half_close=half_close)
        slow, stream = server.open(1)
        quick, _ = server.open(2)
        stream.pause_reading()
        server.feed(data_frames(1, bytes(STOP_AT + 1)))
        assert server.said() == ([(KEEP_ALIVE, 1, b"")] if half_close else [])
        server.feed(keep_alive(2))
        assert quick.writable is not half_close
        stream.resume_reading()
        await slow.received(STOP_AT + 1)
        assert server.said() == ([(KEEP_ALIVE, 1, b"")] if half_close else [])
        await server.over()


async def test_slow_reader_stalls_a_session_with_a_foreign_peer() -> None:
    """There is no window: memory stays bounded because the connection is not read."""
    server = Server()
    slow, stream = server.open(1)
    stream.pause_reading()
    size = 0
    while server.lower.reading:
        server.feed(data(1, bytes(MAX_PAYLOAD)))
        size += MAX_PAYLOAD
    assert RECEIVE_BUDGET <= size <= RECEIVE_BUDGET + MAX_PAYLOAD
    assert server.session.is_stalled
    stream.resume_reading()
    await slow.received(size)
    assert server.lower.reading
    await server.over()


async def test_only_own_peers_must_send_keepalives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """v2ray-plugin is silent while there is nothing to say."""
    clock = Clock(monkeypatch)
    for half_close in (True, False):
        server = Server(half_close=half_close)
        await clock.passes(STALE_TIME + 1)
        assert server.session.healthy is not half_close
        await clock.passes(2 * DEAD_TIME)
        assert bool(server.lost) is half_close
        assert (KEEP_ALIVE, 0, b"") in server.said()
        if not half_close:
            await server.over()


async def test_frames_before_a_violation_are_handed_up() -> None:
    server = Server()
    server.feed(new(1), data(1, b"good"), b"\xff\xff")
    await turns()
    assert server.uppers[0].data == b"good"
    assert isinstance(server.lost[0], PeerError)
    assert str(server.lost[0]) == "Mux.Cool: metadata of 65535 bytes"


async def test_client_refuses_streams_of_the_server() -> None:
    session, lower = client()
    session.data_received(new(1))
    assert lower.take() == end(1, error=True)
    session.abort()
    await turns()


async def test_answers_that_the_peer_does_not_read_are_bounded() -> None:
    await check_unread_answers_are_bounded(Server(), UDP)


