"""smux sessions: their end, what it means for the streams, keepalive, and noise."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from mtt.errors import NetworkError, PeerError
from mtt.layers import keepalive
from mtt.layers.mux_tunnel import RECEIVE_BUDGET
from mtt.layers.smux import SmuxStream
from mtt.wire.smux import FIN, NOP, PSH, SYN, frame
from tests.layers.smux_side import Server, client, finished
from tests.support.clock import Clock
from tests.support.transports import Recorder, turns

# Ends of the session.


@pytest.mark.parametrize("how", ["eof", "lost", "garbage", "close", "abort"])
async def test_every_stream_ends_once_with_its_session(how: str) -> None:
    server = Server()
    uppers = [server.open(number)[0] for number in (3, 5, 7)]
    uppers[1].transport.pause_reading()
    server.feed(frame(PSH, 5, b"cut off"))
    if how == "eof":
        server.session.eof_received()
    elif how == "lost":
        server.session.connection_lost(ConnectionResetError())
    elif how == "garbage":
        server.feed(b"GET / HTTP/1.1\r\n\r\n")
    elif how == "close":
        server.session.close()
    else:
        server.session.abort()
    await turns()
    server.session.abort()
    server.session.close()
    server.session.data_received(frame(SYN, 9))
    await turns()
    ours = how in ("close", "abort")
    # What the peer has said before it failed comes first.
    assert [upper.lost for upper in uppers] == [True, ours, True]
    uppers[1].transport.resume_reading()
    await turns()
    assert [upper.lost for upper in uppers] == [True] * 3
    assert uppers[1].data == (b"" if ours else b"cut off")
    assert not uppers[1].eof
    assert len(server.lost) == 1
    assert (server.lost[0] is None) is ours
    assert all((upper.error is None) is ours for upper in uppers)
    assert how != "garbage" or isinstance(server.lost[0], PeerError)
    for upper in uppers:
        assert upper.transport.is_closing()
        upper.transport.write(b"late")
        upper.transport.close()
        upper.transport.abort()
        upper.transport.resume_reading()
    with pytest.raises(NetworkError):
        server.session.open_stream(Recorder())
    assert not server.uppers[3:]
    await turns()


async def test_frames_before_a_broken_one_are_handed_up() -> None:
    server = Server()
    upper, _ = server.open(3)
    whole = frame(PSH, 3, b"whole, ") + frame(PSH, 3, b"all of it") + frame(FIN, 3)
    server.feed(whole, b"GET / HTTP")
    assert upper.data == b"whole, all of it"
    assert upper.eof
    assert not server.lower.reading
    await turns()
    assert isinstance(server.lost[0], PeerError)


async def test_the_session_ends_in_the_middle_of_what_arrived() -> None:
    server = Server()
    first, _ = server.open(3)
    second, _ = server.open(5)
    first.on_data = lambda _data: server.session.abort()
    server.feed(frame(PSH, 3, b"stop"), frame(PSH, 5, b"late"), frame(FIN, 3), frame(SYN, 7))
    assert first.data == b"stop"
    assert not second.data
    assert len(server.uppers) == 2
    await turns()
    assert first.lost
    assert second.lost


@pytest.mark.parametrize("half_close", [False, True])
@pytest.mark.parametrize("cut", [False, True], ids=["eof", "reset"])
async def test_a_whole_upload_survives_the_end_of_the_session(cut: bool, half_close: bool) -> None:
    # Go clients end a session with its last stream, at once, whatever our reader is busy with.
    server = Server(half_close=half_close)
    whole, stream = server.open(3)
    cut_off, other = server.open(5)
    for transport in (stream, other):
        transport.pause_reading()
    data = random.Random(51).randbytes(50_000)
    server.feed(frame(PSH, 3, data), frame(FIN, 3), frame(PSH, 5, data))
    if cut:
        server.session.connection_lost(ConnectionResetError())
    else:
        server.session.eof_received()
    assert not (cut_off.lost or other.is_closing())
    other.resume_reading()
    assert await cut_off.ended() is not None
    assert cut_off.data == data
    assert not cut_off.eof
    assert not whole.lost
    assert not stream.is_closing()
    stream.write(b"in vain")
    stream.resume_reading()
    await whole.ended()
    assert whole.data == data
    assert whole.eof
    assert stream.is_closing()
    stream.close()
    await turns()
    assert len(server.lost) == 1


@pytest.mark.parametrize("end", ["read", "close", "abort", "session"])
async def test_a_whole_upload_survives_the_reset_of_its_stream(end: str) -> None:
    # A peer whose application is gone has ended its direction, then resets what still comes.
    server = Server(half_close=True)
    upper, stream = server.open(3)
    stream.pause_reading()
    data = random.Random(52).randbytes(50_000)
    server.feed(frame(PSH, 3, data), frame(FIN, 3), frame(PSH, 3), frame(PSH, 3))
    assert server.session.used_slots == 1
    assert server.said() == [(FIN, 3, b"")]
    stream.write(b"in vain")
    assert not upper.lost
    if end == "session":
        server.session.eof_received()
    if end in ("close", "abort"):
        getattr(stream, end)()
        assert await upper.ended() is None
        assert not upper.data
    else:
        stream.resume_reading()
        assert await upper.ended() is not None
        assert upper.data == data
        assert upper.eof
        assert isinstance(upper.error, ConnectionResetError) is (end == "read")
    assert stream.is_closing()
    assert server.session.used_slots == 0
    assert server.session._queued == 0
    assert (PSH, 3, b"in vain") not in server.said()


async def test_stream_that_outlives_its_session_can_be_closed_unread() -> None:
    for end in (SmuxStream.close, SmuxStream.abort):
        server = Server()
        upper, stream = server.open(3)
        stream.pause_reading()
        server.feed(frame(PSH, 3, b"unread"), frame(FIN, 3))
        server.session.eof_received()
        end(stream)
        end(stream)
        assert stream.is_closing()
        assert await upper.ended() is None
        stream.resume_reading()
        await turns()
        assert not upper.data


# Keepalive.


async def test_nops_are_sent_unless_the_connection_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    session, lower = client()
    session.pause_writing()
    await clock.passes(2 * keepalive.INTERVAL[1])
    assert not lower.sent
    session.resume_writing()
    for _ in range(3):
        session.data_received(frame(NOP, 0))  # the peer lives
        await clock.passes(keepalive.INTERVAL[1])
    assert lower.take()[:24] == 3 * frame(NOP, 0)
    await finished(session)


async def test_a_silent_peer_is_dead_and_a_talking_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    silent, talking, paused = Server(), Server(), Server()
    upper, _ = silent.open(3)
    _, stream = paused.open(3)
    stream.pause_reading()
    # It is us who do not read.
    paused.feed(*(frame(PSH, 3, bytes(65535)) for _ in range(RECEIVE_BUDGET // 65535 + 1)))
    for _ in range(30):  # twice as long as the silent one is given, and some
        talking.feed(frame(NOP, 0))
        await clock.passes(keepalive.CHECK_INTERVAL / 2)
    assert isinstance(silent.lost[0], NetworkError)
    assert silent.lower.aborted
    assert upper.error is silent.lost[0]
    assert not talking.lost
    assert not paused.lost
    stream.resume_reading()
    await clock.until(lambda: paused.lost)
    await talking.over()


# Noise.


def garbled(rng: random.Random) -> Iterable[bytes]:
    for _ in range(rng.randrange(1, 30)):
        command = rng.choice((SYN, FIN, PSH, PSH, PSH, NOP))
        payload = rng.randbytes(rng.randrange(50)) if command == PSH else b""
        yield frame(command, rng.choice((3, 5, 7)), payload)
    if rng.random() < 0.3:
        yield rng.randbytes(20)


@pytest.mark.parametrize("half_close", [False, True])
async def test_noise_ends_the_session_or_does_no_harm(half_close: bool) -> None:
    rng = random.Random(52)
    for _ in range(300):
        server = Server(half_close=half_close)
        for piece in garbled(rng):
            server.feed(piece)
            for upper in server.uppers:
                what = rng.random()
                if what < 0.2:
                    upper.transport.pause_reading()
                elif what < 0.4:
                    upper.transport.resume_reading()
                elif what < 0.45:
                    upper.transport.close()
                elif what < 0.5:
                    upper.transport.abort()
                elif what < 0.6:
                    upper.transport.write(b"reply")
            if rng.random() < 0.2:
                await turns(1)
        assert not server.lost or isinstance(server.lost[0], PeerError)
        server.session.connection_lost(None)
        for upper in server.uppers:
            upper.transport.resume_reading()
        await turns(3)
        assert all(upper.lost for upper in server.uppers)
        assert server.session._queued == 0 or server.session.lost
