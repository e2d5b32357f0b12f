"""smux sessions over a fake connection: every frame under control, both kinds of peer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from mtt.errors import NetworkError
from mtt.layers import linger
from mtt.layers.mux_tunnel import MAX_STREAMS
from mtt.layers.smux import SmuxSession
from mtt.wire.smux import FIN, MAX_LENGTH, MAX_PAYLOAD, NOP, PSH, SYN, frame
from tests.layers.smux_side import Server, client, finished
from tests.support.transports import FakeLayer, Recorder, turns

# The order of things.


async def test_a_stream_from_opening_to_end() -> None:
    server = Server()
    upper, stream = server.open(3)
    server.feed(frame(PSH, 3, b"one"), frame(PSH, 3, b"two"))
    assert upper.data == b"onetwo"
    stream.write(b"three")
    server.feed(frame(PSH, 3, b"four") + frame(FIN, 3))
    assert upper.data == b"onetwofour"
    assert upper.eof
    stream.write(b"five")
    stream.close()
    stream.write(b"late")
    assert await upper.ended() is None
    assert server.said() == [(PSH, 3, b"three"), (PSH, 3, b"five"), (FIN, 3, b"")]
    assert server.session.used_slots == 0
    await server.over()


async def test_client_numbers_streams_and_splits_data() -> None:
    session, lower = client()
    uppers = [Recorder() for _ in range(3)]
    streams = [session.open_stream(upper) for upper in uppers]
    assert [stream.id for stream in streams] == [3, 5, 7]
    streams[1].write(bytes(MAX_PAYLOAD + 1))
    assert lower.take() == (
        frame(SYN, 3) + frame(SYN, 5) + frame(SYN, 7)
        + frame(PSH, 5, bytes(MAX_PAYLOAD)) + frame(PSH, 5, b"\0")
    )  # fmt: skip
    await finished(session)
    assert [upper.lost for upper in uppers] == [True] * 3


@pytest.mark.parametrize(("half_close", "most"), [(False, MAX_PAYLOAD), (True, MAX_LENGTH)])
async def test_only_own_peers_get_frames_above_16_kib(half_close: bool, most: int) -> None:
    server = Server(half_close=half_close)
    _, stream = server.open()
    data = random.Random(8).randbytes(2 * MAX_LENGTH)
    stream.write(data)
    said = server.said()
    assert b"".join(payload for _, _, payload in said) == data
    assert {len(payload) for _, _, payload in said[:-1]} == {most}
    await server.over()


async def test_stream_is_opened_though_its_application_is_silent() -> None:
    session, lower = client()
    stream = session.open_stream(Recorder())
    session.open_stream(Recorder())
    assert lower.take() == b""  # it may have something to say at once, which goes with it
    await turns()
    assert lower.take() == frame(SYN, 3) + frame(SYN, 5)
    stream.write(b"later")
    await turns()
    assert lower.take() == frame(PSH, 3, b"later")
    await finished(session)


async def test_stream_not_yet_announced_ends_with_the_session() -> None:
    session, lower = client()
    upper = Recorder()
    session.open_stream(upper)
    session.abort()
    await turns()
    assert upper.lost
    assert lower.take() == b""


@pytest.mark.parametrize("stream_id", [0, 1, 2, 3, 0xFFFFFFFF])
async def test_a_server_takes_any_id(stream_id: int) -> None:
    server = Server()
    upper, _ = server.open(stream_id)
    server.feed(frame(PSH, stream_id, b"x"))
    assert upper.data == b"x"
    await server.over()


async def test_frames_for_unknown_streams_are_ignored() -> None:
    server = Server()
    upper, stream = server.open(3)
    server.feed(
        frame(SYN, 3),  # again
        frame(PSH, 9, b"unknown"), frame(PSH, 9, b"unknown"), frame(FIN, 9), frame(NOP, 0),
        frame(PSH, 3, b"known"),
    )  # fmt: skip
    assert len(server.uppers) == 1
    assert upper.data == b"known"
    stream.close()
    server.feed(frame(PSH, 3, b"too late"))
    assert upper.data == b"known"
    assert server.session.used_slots == 1  # until the peer has said FIN too
    server.feed(frame(FIN, 3), frame(FIN, 3))
    assert server.session.used_slots == 0
    server.feed(frame(SYN, 3), frame(PSH, 3, b"an id used again"))
    assert server.uppers[1].data == b"an id used again"
    assert server.said() == [(FIN, 3, b"")]
    await server.over()


async def test_data_after_fin_are_dropped() -> None:
    server = Server()
    upper, stream = server.open()
    other, waiting = server.open(5)
    waiting.pause_reading()
    for stream_id in (3, 5):
        server.feed(frame(PSH, stream_id, b"a"), frame(FIN, stream_id), frame(PSH, stream_id, b"b"))
    assert upper.data == b"a"
    waiting.resume_reading()
    await other.at_eof()
    assert other.data == b"a"
    assert not stream.is_closing()
    await server.over()


async def test_client_refuses_streams_of_its_server() -> None:
    session, lower = client()
    session.data_received(frame(SYN, 2))
    assert lower.take() == frame(FIN, 2)
    await finished(session)


async def test_streams_beyond_the_limit_are_refused() -> None:
    server = Server()
    server.feed(*(frame(SYN, number) for number in range(MAX_STREAMS + 2)))
    assert len(server.uppers) == MAX_STREAMS
    assert server.said() == [(FIN, MAX_STREAMS, b""), (FIN, MAX_STREAMS + 1, b"")]
    server.uppers[0].transport.close()
    server.feed(frame(SYN, 999))
    assert len(server.uppers) == MAX_STREAMS  # its place is free when the peer says FIN
    server.feed(frame(FIN, 0), frame(SYN, 1001), frame(PSH, 5, b"alive"))
    assert len(server.uppers) == MAX_STREAMS + 1
    assert server.uppers[5].data == b"alive"
    await server.over()


async def test_session_is_exhausted_when_ids_run_out() -> None:
    session, _ = client()
    session._next_id = 0xFFFFFFFF
    assert not session.exhausted
    session.open_stream(Recorder())
    assert session.exhausted
    with pytest.raises(NetworkError):
        session.open_stream(Recorder())
    await finished(session)


# Streams from both sides.


async def test_both_sides_open_streams_on_one_session() -> None:
    uppers: dict[str, list[Recorder]] = {"gateway": [], "agent": []}

    def accepting(side: str) -> Callable[[], Recorder]:
        def accept() -> Recorder:
            uppers[side].append(Recorder())
            return uppers[side][-1]

        return accept

    gateway = SmuxSession(accept=accepting("gateway"), first_id=2)
    agent = SmuxSession(accept=accepting("agent"), first_id=3)
    lowers = FakeLayer(gateway), FakeLayer(agent)
    gateway.connection_made(lowers[0])
    agent.connection_made(lowers[1])
    mine, theirs = Recorder(), Recorder()
    streams = [gateway.open_stream(upper) for upper in (mine, Recorder())]
    streams.append(agent.open_stream(theirs))
    assert [stream.id for stream in streams] == [2, 4, 3]
    streams[0].write(b"to the agent")
    streams[2].write(b"to the gateway")
    agent.data_received(lowers[0].take())
    gateway.data_received(lowers[1].take())
    assert [upper.data for upper in uppers["agent"]] == [b"to the agent", b""]
    assert [upper.data for upper in uppers["gateway"]] == [b"to the gateway"]
    uppers["agent"][0].transport.write(b"back")
    gateway.data_received(lowers[1].take())
    assert mine.data == b"back"
    await finished(gateway)
    await finished(agent)


async def test_peer_that_uses_ids_of_this_side_is_cut() -> None:
    lost: list[Exception | None] = []
    session = SmuxSession(accept=Recorder, first_id=2, on_lost=lambda _, error: lost.append(error))
    lower = FakeLayer(session)
    session.connection_made(lower)
    session.data_received(frame(SYN, 4))
    assert str(lost[0]) == "smux: the peer opens stream 4, an id of this side"
    assert lower.aborted
    await turns()


@pytest.mark.parametrize(
    ("first_id", "advice"), [(None, "use the same mode, -mux"), (2, "run the same version of this")]
)
async def test_advice_about_other_bytes_fits_the_program(
    first_id: int | None, advice: str
) -> None:
    lost: list[Exception | None] = []
    session = SmuxSession(first_id=first_id, on_lost=lambda _, error: lost.append(error))
    lower = FakeLayer(session)
    session.connection_made(lower)
    session.data_received(b"SSH-2.0-OpenSSH_9.2p1\r\n")
    await turns()
    assert f"version 83 instead of 1: {advice}" in str(lost[0])


async def test_large_session_carries_all_its_streams() -> None:
    most = 2 * MAX_STREAMS
    session = SmuxSession(accept=Recorder, max_streams=most)
    lower = FakeLayer(session)
    session.connection_made(lower)
    session.data_received(b"".join(frame(SYN, number) for number in range(most + 1)))
    while session.admission is not None and session.admission.waiting:
        await asyncio.sleep(0)
    for stream in session._streams.values():
        stream.add_carried(1)
    assert session.open_streams == most
    assert lower.take() == frame(FIN, most)
    await finished(session)


async def test_session_has_room_up_to_its_own_limit() -> None:
    session = SmuxSession(first_id=2, max_streams=2)
    lower = FakeLayer(session)
    session.connection_made(lower)
    first = session.open_stream(Recorder())
    assert session.has_room
    session.open_stream(Recorder())
    assert not session.has_room
    first.close()
    assert not session.has_room  # the peer still counts it
    session.data_received(frame(FIN, 2))
    assert session.has_room
    await finished(session)


# Half-close, between our own ends.


@pytest.mark.parametrize("half_close", [False, True])
async def test_stream_half_closes_as_the_connection_does(half_close: bool) -> None:
    server = Server(half_close=half_close)
    _, stream = server.open(3)
    assert stream.can_write_eof() is half_close
    assert stream.half_closes() is half_close
    server.lower.half_close = None
    assert stream.half_closes() is None
    await server.over()


async def test_each_direction_ends_separately() -> None:
    server = Server(half_close=True)
    upper, stream = server.open(3)
    stream.write(b"all")
    stream.write_eof()
    stream.write_eof()
    stream.write(b"late")
    assert server.said() == [(PSH, 3, b"all"), (FIN, 3, b"")]
    server.feed(frame(PSH, 3, b"still"), frame(FIN, 3))
    assert upper.data == b"still"
    assert upper.eof
    stream.close()
    assert await upper.ended() is None
    assert server.said() == []
    assert server.session.used_slots == 0
    await server.over()


@pytest.mark.parametrize("ended", [False, True], ids=["open", "ended"])
async def test_reset_differs_from_an_ordinary_end(ended: bool) -> None:
    server, other = Server(half_close=True), Server(half_close=True)
    upper, stream = server.open(3)
    peer, _ = other.open(3)
    if ended:
        stream.write_eof()
        other.feed(server.lower.take())
        assert peer.eof
    server.lower.writes.clear()
    stream.abort()
    # Nothing that a torn connection could make an ordinary end of.
    assert server.lower.writes[0] == frame(PSH, 3)
    other.feed(server.lower.take())
    assert isinstance(peer.error, ConnectionResetError)
    assert peer.eof is ended
    assert await upper.ended() is None
    await server.over()
    await other.over()


async def test_reset_while_half_close_is_undecided() -> None:
    """A WebSocket's marker is still on its way; the peer must not see an ordinary end."""
    server, other = Server(), Server()
    for side in (server, other):
        side.lower.half_close = None
    upper, stream = server.open(3)
    peer, _ = other.open(3)
    stream.cut()
    assert server.said() == [(PSH, 3, b""), (FIN, 3, b"")]  # Go peers ignore the first
    other.feed(frame(PSH, 3), frame(FIN, 3))
    assert isinstance(peer.error, ConnectionResetError)
    assert not peer.eof
    assert await upper.ended() is None
    await server.over()
    await other.over()


async def test_empty_frame_of_a_foreign_peer_is_ignored() -> None:
    server = Server()
    upper, _ = server.open(3)
    server.feed(frame(PSH, 3), frame(PSH, 3, b"data"), frame(PSH, 3), frame(PSH, 9))
    assert upper.data == b"data"
    assert not upper.lost
    await server.over()


async def test_sender_to_a_closed_stream_gets_one_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    for half_close in (True, False):
        server = Server(half_close=half_close)
        _, stream = server.open(3)
        stream.close()
        server.feed(frame(PSH, 3, b"on its way"))
        assert server.said() == [(FIN, 3, b"")]
        monkeypatch.setattr(linger, "LINGER_TIME", 0.0)
        await asyncio.sleep(0.01)
        server.feed(frame(PSH, 3, b"still"), frame(NOP, 0), frame(PSH, 3, b"still"))
        assert server.said() == ([(PSH, 3, b"")] if half_close else [])
        monkeypatch.undo()
        await server.over()
