"""The pool of AnyTLS sessions: reuse, idle timeouts and warm sessions."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mtt.errors import DestinationError, NetworkError, PeerError
from mtt.layers import anytls_client
from mtt.layers.anytls_client import ClientSession
from mtt.layers.anytls_stream import ClientStream
from mtt.layers.parked import Parked, hand_over
from mtt.outbound import anytls_pool as anytls_sessions
from mtt.outbound import reuse
from mtt.outbound.anytls_pool import AnyTlsPool
from mtt.outcome import Outcome
from mtt.wire.anytls import (
    FIN,
    HEART_REQUEST,
    HEART_RESPONSE,
    PSH,
    SERVER_SETTINGS,
    SETTINGS,
    SYN,
    SYNACK,
    UPDATE_PADDING,
    WASTE,
    Decoder,
    PreambleReader,
    frame,
)
from tests.support.clock import Clock
from tests.support.transports import FakeLayer, Recorder, turns


class Answering(FakeLayer):
    """A connection to a server that answers liveness checks."""

    def write(self, data: Any) -> None:
        super().write(data)
        if frame(HEART_REQUEST, 0) in data:
            asyncio.get_running_loop().call_soon(
                self.protocol.data_received, frame(HEART_RESPONSE, 0)
            )


class Network:
    """What the pool dials: by default, version 2 servers that reach every destination."""

    def __init__(self, **options: object) -> None:
        self.sessions: list[ClientSession] = []
        self.lowers: list[FakeLayer] = []
        self.dials = 0
        self.error: Exception | None = None
        self.allowed = asyncio.Event()
        self.allowed.set()
        self.lost: list[Exception | None] = []
        self.greeting = frame(SERVER_SETTINGS, 0, b"v=2")
        self.pool = AnyTlsPool(self._connect, bytes(32), on_lost=self.lost.append, **options)  # type: ignore[arg-type]

    async def _connect(self, session: ClientSession) -> None:
        self.dials += 1
        await self.allowed.wait()
        if self.error is not None:
            raise self.error
        lower = Answering(session)
        session.connection_made(lower)
        self.sessions.append(session)
        self.lowers.append(lower)

    async def open(self, answer: bytes = b"") -> ClientStream:
        """Open a stream that the server acknowledges."""
        task = asyncio.ensure_future(self.pool.open(b"dest"))
        await turns()
        for session in list(self.sessions):
            for stream_id in list(session._streams):
                session.data_received(self.greeting + frame(SYNACK, stream_id, answer))
        return await task

    async def idle(self, count: int) -> list[ClientSession]:
        """`count` idle sessions, oldest first."""
        streams = [await self.open() for _ in range(count)]
        for stream in streams:
            stream.close()
        return self.sessions[-count:]

    def number(self, stream: ClientStream) -> int:
        return next(at for at, session in enumerate(self.sessions) if session is stream._session)

    def up(self) -> list[int]:
        return [at for at, session in enumerate(self.sessions) if not session.lost]

    async def over(self) -> None:
        await self.pool.close()
        await turns()
        assert not self.up()
        assert not self.pool.sessions


# Choice of the session.


async def test_newest_idle_session_is_used_and_not_shared() -> None:
    network = Network()
    streams = [await network.open() for _ in range(3)]
    assert [network.number(stream) for stream in streams] == [0, 1, 2]
    streams[1].close()
    streams[0].close()
    assert network.pool.idle == 2
    again = [await network.open() for _ in range(3)]
    assert [network.number(stream) for stream in again] == [1, 0, 3]
    assert [stream.id for stream in again] == [2, 2, 1]
    assert network.pool.idle == 0
    await network.over()


async def test_open_at_once_uses_only_existing_sessions() -> None:
    network = Network()
    assert network.pool.open_at_once(b"dest") is None
    first, second = await network.idle(2)
    for session in (second, first):
        stream = network.pool.open_at_once(b"dest")
        assert stream is not None
        assert stream._session is session
        assert not stream.is_reading()  # until its owner is attached
    assert network.pool.open_at_once(b"dest") is None
    assert network.dials == 2
    await network.over()
    assert network.pool.open_at_once(b"dest") is None


async def test_dialled_session_goes_to_its_dialler() -> None:
    network = Network()
    network.allowed.clear()
    tasks = [asyncio.ensure_future(network.pool.open(b"dest", wait=False)) for _ in range(3)]
    await turns()
    tasks[0].cancel()
    await turns()
    network.allowed.set()
    streams = await asyncio.gather(*tasks[1:])
    assert sorted(network.number(stream) for stream in streams) == [0, 1]
    assert network.dials == 3
    await network.over()


async def test_early_data_is_kept_for_the_stream() -> None:
    network = Network()
    stream = await network.open()
    session = network.sessions[0]
    session.data_received(frame(PSH, 1, b"early") + frame(FIN, 1))
    await turns()
    parked = stream.get_protocol()
    assert isinstance(parked, Parked)
    assert not parked.early
    assert network.pool.idle == 0  # until the early data is read
    upper = Recorder(stay=False)
    hand_over(stream, upper)
    assert await upper.at_eof() == b"early"
    await upper.ended()
    assert network.pool.idle == 1
    await network.over()


async def test_unreachable_destination_keeps_the_session() -> None:
    network = Network()
    with pytest.raises(DestinationError) as caught:
        await network.open(b"connection refused")
    assert caught.value.outcome is Outcome.CONNECTION_REFUSED
    assert network.pool.idle == 1
    assert network.number(await network.open()) == 0
    assert network.dials == 1
    await network.over()


async def test_unhealthy_sessions_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    sessions = await network.idle(3)
    monkeypatch.setattr(network.lowers[1], "write", lambda _data: None)
    sessions[2].connection_lost(ConnectionResetError())  # the pool verifies the others
    await turns()
    monkeypatch.setattr("mtt.layers.anytls_client.LATE_TIME", 0.0)
    assert network.number(await network.open()) == 0
    assert len(network.lost) == 1
    await network.over()


async def test_session_found_dead_is_replaced_by_a_new_one() -> None:
    """The pool does not try other idle sessions, which may be dead too: each takes seconds."""
    network = Network()
    await network.idle(2)
    task = asyncio.ensure_future(network.pool.open(b"dest"))
    await turns()
    assert network.sessions[1].open_streams == 1
    network.sessions[1].eof_received()
    await turns()
    assert network.dials == 3
    network.sessions[2].data_received(network.greeting + frame(SYNACK, 1))
    assert network.number(await task) == 2
    await network.over()


async def test_lost_session_makes_the_pool_verify_idle_ones() -> None:
    network = Network()
    sessions = await network.idle(3)
    await network.open()  # on the newest session
    for lower in network.lowers:
        lower.take()
    sessions[1].connection_lost(ConnectionResetError())
    asked = [frame(HEART_REQUEST, 0) in lower.take() for lower in network.lowers]
    assert asked == [True, False, False]
    await turns()
    sessions[2].abort()  # closed by this side
    assert not network.lowers[0].sent
    await network.over()


async def test_network_change_verifies_idle_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network()
    await network.idle(1)
    monkeypatch.setattr(network.lowers[0], "write", network.lowers[0].sent.extend)
    network.lowers[0].take()
    monkeypatch.setattr(reuse, "source_address", lambda peer: "198.51.100.1")
    assert network.number(await network.open()) == 1
    assert frame(HEART_REQUEST, 0) in network.lowers[0].take()
    network.sessions[0].data_received(frame(UPDATE_PADDING, 0))  # may have waited in the kernel
    assert network.number(await network.open()) == 2
    network.sessions[0].data_received(frame(HEART_RESPONSE, 0))
    assert network.number(await network.open()) == 0
    await network.over()


async def test_busy_session_is_verified_without_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Go server with a slow destination does not read the request for a sign of life."""
    clock = Clock(monkeypatch)
    network = Network()
    stream = await network.open()
    await network.idle(1)
    monkeypatch.setattr(network.lowers[0], "write", network.lowers[0].sent.extend)
    network.lowers[0].take()
    network.sessions[1].connection_lost(ConnectionResetError())
    asked = network.lowers[0].take()
    assert asked[:5] == frame(WASTE, 0)[:5]
    assert frame(HEART_REQUEST, 0) not in asked
    await clock.passes(10.0)
    assert not stream.is_closing()
    await network.over()


async def test_dead_new_session_is_not_replaced() -> None:
    network = Network()
    task = asyncio.ensure_future(network.pool.open(b"dest"))
    await turns()
    network.sessions[0].eof_received()
    with pytest.raises(PeerError, match="password"):
        await task
    network.error = NetworkError("no server")
    with pytest.raises(NetworkError, match="no server"):
        await network.pool.open(b"dest")
    assert network.dials == 2
    await network.over()


async def test_cancelled_open_ends_the_stream() -> None:
    network = Network()
    await network.idle(1)
    network.lowers[0].take()
    task = asyncio.ensure_future(network.pool.open(b"dest"))
    await turns()
    task.cancel()
    await asyncio.wait([task])
    said = [event[0] for event in Decoder().feed(network.lowers[0].take())]
    assert [command for command in said if command != 0] == [SYN, PSH, FIN]
    assert network.pool.idle == 1
    await network.over()


async def test_session_ends_with_its_stream_without_reuse() -> None:
    network = Network(reuse=False)
    network.pool.start()
    stream = await network.open()
    network.lowers[0].take()
    stream.write(b"last")
    stream.close()
    said = [event[0] for event in Decoder().feed(network.lowers[0].take())]
    assert [command for command in said if command != 0] == [PSH, FIN]
    assert network.lowers[0].closing
    assert not network.lowers[0].aborted
    assert network.number(await network.open()) == 1
    assert network.lost == [None]
    await network.over()


async def test_sessions_share_the_learned_padding_scheme() -> None:
    network = Network()
    await network.idle(1)
    network.sessions[0].data_received(frame(UPDATE_PADDING, 0, b"stop=1\n0=77-77"))
    await network.open()
    await network.open()
    reader = PreambleReader()
    reader.feed(bytes(network.lowers[1].sent))
    assert network.lowers[1].sent[32:34] == (77).to_bytes(2, "big")
    assert reader.rest
    await network.over()


# Lingering streams: the application has ended, and the Go server has not received the end.


class Application(Recorder):
    """The protocol of a stream; `ended` says whether its application has ended."""

    ended = False

    @property
    def sends_no_more(self) -> bool:
        return self.ended


async def lingering(network: Network, *frames: bytes) -> tuple[ClientStream, Application]:
    """A stream whose application received an answer (default) or `frames`, then ended."""
    stream = await network.open()
    application = Application()
    hand_over(stream, application)
    stream.write(b"request")
    session = stream._session
    assert isinstance(session, ClientSession)
    session.data_received(b"".join(frames) or frame(PSH, stream.id, b"answer"))
    application.ended = True
    return stream, application


async def test_session_is_reused_while_its_stream_lingers() -> None:
    network = Network()
    old, _ = await lingering(network)
    new = await network.open()
    assert network.number(new) == network.number(old) == 0
    assert network.number(await network.open()) == 1  # the new stream has not ended
    old.write_eof()
    assert network.sessions[0].open_streams == 2
    await network.over()


async def test_stream_awaiting_its_answer_keeps_its_session() -> None:
    network = Network()
    stream, _ = await lingering(network, frame(HEART_RESPONSE, 0))
    assert network.number(await network.open()) == 1
    network.sessions[0].data_received(frame(PSH, stream.id, b"answer"))
    assert network.number(await network.open()) == 2  # more of the answer may follow
    await network.over()


async def test_stream_with_undelivered_answer_keeps_its_session() -> None:
    network = Network()
    stream, application = await lingering(network)
    stream.pause_reading()
    assert network.number(await network.open()) == 1
    stream.resume_reading()
    assert network.number(await network.open()) == 0
    application.ended = False
    await network.over()


async def test_lingering_streams_of_a_session_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anytls_client, "MAX_LINGERING", 3)
    network = Network()
    numbers = [network.number((await lingering(network))[0]) for _ in range(9)]
    assert numbers == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    await network.over()


async def test_lingering_stream_keeps_its_session_without_reuse() -> None:
    network = Network(reuse=False)
    await lingering(network)
    assert network.number(await network.open()) == 1
    await network.over()


async def test_lingering_stream_that_stalls_its_session_is_cut(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    network = Network()
    old, application = await lingering(network)
    new = await network.open()
    old.pause_reading()
    network.sessions[0].data_received(frame(PSH, old.id, bytes(60_000)) * 5)
    assert not network.lowers[0].reading
    await clock.passes(anytls_client.STALL_TIME - 1)
    assert not application.lost
    network.lowers[0].take()
    await clock.passes(2)
    assert isinstance(application.error, NetworkError)
    assert network.lowers[0].reading
    assert not new.is_closing()
    assert (FIN, old.id, b"") in Decoder().feed(network.lowers[0].take())
    await network.over()


async def test_sole_stream_may_stall_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network()
    old, application = await lingering(network)
    old.pause_reading()
    network.sessions[0].data_received(frame(PSH, old.id, bytes(60_000)) * 5)
    await clock.passes(3 * anytls_client.STALL_TIME)
    assert not application.lost
    await network.over()


# Idle timeout, as in the reference: checks every 30 s, timeout 30 s.


async def test_oldest_idle_sessions_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network(min_idle=5)
    await network.idle(7)
    busy = await network.open()  # the newest
    await clock.passes(29)
    assert len(network.up()) == 7
    await clock.passes(62)
    assert network.up() == [1, 2, 3, 4, 5, 6]
    assert network.number(busy) == 6
    assert network.lost == [None]
    await network.over()


async def test_idle_session_is_closed_at_the_second_check(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network(min_idle=0)
    stream = await network.open()
    await clock.passes(1)  # the first check will find it idle for 29 s
    stream.close()
    await clock.passes(58)
    assert network.up() == [0]
    await clock.passes(2)
    assert network.up() == []
    await network.over()


async def test_newest_idle_sessions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network(min_idle=2, check_interval=100, idle_timeout=60)
    streams = [await network.open() for _ in range(5)]
    streams[0].close()
    streams[4].close()
    await clock.passes(50)
    for stream in streams[1:4]:
        stream.close()
    await clock.passes(51)
    # Sessions 1 to 3 are too young to close, and enough: 0 is closed. 4 was checked before them.
    assert network.up() == [1, 2, 3, 4]
    assert network.sessions[4].idle_since == 1100.0
    await clock.passes(100)
    assert network.up() == [3, 4]
    await network.over()


@pytest.mark.parametrize("seconds", [0.0, 5.0])
async def test_too_short_times_mean_the_defaults(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    network = Network(min_idle=0, check_interval=seconds, idle_timeout=seconds)
    await network.idle(1)
    await clock.passes(29)
    assert network.up() == [0]
    await clock.passes(32)
    assert network.up() == []
    await network.over()


async def test_session_with_an_unended_stream_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network(min_idle=5)
    network.greeting = frame(SERVER_SETTINGS, 0, b"v=2\nhalf-close=1")
    stream = await network.open()
    stream.close()
    assert network.pool.idle == 0
    assert network.number(await network.open()) == 1
    await clock.passes(31)
    assert network.up() == [0, 1]
    await clock.passes(30)
    assert network.up() == [1]
    await network.over()


# Warm-up.


async def test_sessions_are_made_on_demand() -> None:
    network = Network(min_idle=5)
    network.pool.start()
    await turns()
    assert network.dials == 0
    await network.over()


async def test_warm_sessions_are_verified_before_use() -> None:
    network = Network(warm=3, min_idle=0)
    network.pool.start()
    network.pool.start()
    await turns()
    assert network.dials == network.pool.idle == 3
    for lower in network.lowers:  # silence after the preamble would be conspicuous
        reader = PreambleReader()
        reader.feed(bytes(lower.sent))
        ((command, _, _),) = Decoder().feed(reader.rest)
        assert command == SETTINGS
        lower.take()
    assert network.number(await network.open()) == 3
    for session, lower in zip(network.sessions[:2], network.lowers, strict=False):
        session.data_received(network.greeting)
        assert frame(HEART_REQUEST, 0) in lower.take()
    await turns()  # for the answers
    streams = [await network.open() for _ in range(3)]
    assert [network.number(stream) for stream in streams] == [1, 0, 4]
    assert [stream.id for stream in streams] == [1, 1, 1]
    said = [event[0] for event in Decoder().feed(network.lowers[1].take())]
    assert [command for command in said if command != WASTE] == [SYN, PSH]  # no settings again
    await network.over()


async def test_warm_sessions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    network = Network(warm=2, min_idle=0)
    network.pool.start()
    await turns()
    for session in network.sessions:
        session.data_received(network.greeting)
    await clock.passes(200.0)
    assert network.up() == [0, 1]
    assert network.number(await network.open()) == 1
    await network.over()


async def test_warm_session_with_a_version_1_server() -> None:
    """Such a server never answers; an open connection is the only sign of life."""
    network = Network(warm=1)
    network.pool._server.version = 1
    network.pool.start()
    await turns()
    network.greeting = b""
    session = network.sessions[0]
    assert not session.has_answered()
    session._seen_at += 1e9
    assert network.pool.open_at_once(b"dest")
    assert network.dials == 1
    await network.over()


async def test_warm_up_retries_an_unreachable_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "mtt")
    monkeypatch.setattr(anytls_sessions, "RETRY_TIMES", (0.01, 0.04))
    network = Network(warm=2)
    network.error = NetworkError("no server")
    loop = asyncio.get_running_loop()
    start = loop.time()
    network.pool.start()
    while network.dials < 6:
        await asyncio.sleep(0.005)
    assert loop.time() - start >= 0.01 + 0.02 + 0.04 + 0.04 + 0.04 - 0.005
    levels = [entry.levelname for entry in caplog.records if "no server" in entry.getMessage()]
    assert levels[:3] == ["WARNING", "DEBUG", "DEBUG"]
    network.error = None
    while network.pool.idle < 2:
        await asyncio.sleep(0.005)
    assert levels.count("WARNING") == 1
    await network.over()


async def test_warm_up_does_not_redial_a_refusing_server() -> None:
    network = Network(warm=3)
    network.pool.start()
    for _ in range(20):
        await turns()
        for session in network.sessions:
            if not session.lost:
                session.eof_received()
    assert network.dials == 3
    assert [type(error) for error in network.lost] == [PeerError] * 3
    await network.over()


async def test_close_aborts_sessions_and_warm_up() -> None:
    network = Network(warm=2)
    await network.idle(1)
    network.allowed.clear()
    network.pool.start()
    taken = await network.open()
    task = asyncio.ensure_future(network.pool.open(b"dest"))
    await turns()
    await network.pool.close()
    network.allowed.set()
    with pytest.raises(NetworkError):
        await task
    with pytest.raises(NetworkError):
        await network.pool.open(b"dest")
    assert taken.is_closing()
    await network.over()
