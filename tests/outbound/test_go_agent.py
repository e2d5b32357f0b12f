"""Streams and datagrams through agents that are the Go program of AnyProxy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from mtt.errors import DestinationError, NetworkError, PeerError
from mtt.layers.base import Data, StreamTransport
from mtt.layers.parked import Parked, hand_over
from mtt.outbound import agent, go_agent, go_datagrams
from mtt.outbound.go_agent import GoAgentSession
from mtt.outbound.go_datagrams import MAX_DESTINATIONS, MAX_WAITING
from mtt.outcome import Outcome
from mtt.wire import uot
from mtt.wire.agent import UDP, Head
from mtt.wire.anyproxy import Close, Connect, ConnectResponse, StreamData
from mtt.wire.websocket import NO_MASK, PING, PONG, Decoder, frame
from tests.layers.anyproxy_side import HEAD, GoSide
from tests.support.clock import Clock
from tests.support.transports import Recorder, turns


class Gateway(GoSide):
    def __init__(self, **options: int) -> None:
        super().__init__(is_gateway=True, **options)
        self.agent = GoAgentSession(self.session)

    async def asked(self) -> asyncio.Task[StreamTransport]:
        """A stream that the agent was asked for."""
        task = asyncio.ensure_future(self.agent.open(HEAD))
        await turns()
        (connect,) = self.said()
        assert isinstance(connect, Connect)
        self.id = connect.id
        return task


async def failure(opening: Awaitable[StreamTransport]) -> Exception:
    with pytest.raises((DestinationError, NetworkError, PeerError)) as caught:
        await opening
    return caught.value


async def test_stream_is_ready_after_a_good_answer() -> None:
    gateway = Gateway()
    opening = await gateway.asked()
    gateway.feed(ConnectResponse(gateway.id, True), StreamData(gateway.id, b"SSH-2.0"))
    stream = await opening
    held = stream.get_protocol()
    assert isinstance(held, Parked)
    assert held.early == b"SSH-2.0"
    assert gateway.agent.open_streams == 1
    await gateway.over()


async def test_answer_of_the_agent_is_an_outcome() -> None:
    gateway = Gateway()
    opening = await gateway.asked()
    gateway.feed(ConnectResponse(gateway.id, False, "dial tcp: lookup nas: no such host"))
    error = await failure(opening)
    assert isinstance(error, DestinationError)
    assert error.outcome is Outcome.UNRESOLVABLE
    assert gateway.said() == [Close(gateway.id)]
    assert gateway.agent.open_streams == 0
    await gateway.over()


async def test_lost_session_is_no_failure_of_the_target() -> None:
    gateway = Gateway()
    opening = await gateway.asked()
    gateway.lower.upper.connection_lost(ConnectionResetError())
    assert not isinstance(await failure(opening), DestinationError)
    assert gateway.agent.lost
    assert not gateway.agent.is_usable
    for network in (HEAD.network, UDP):
        with pytest.raises(NetworkError):
            await gateway.agent.open(Head(network, "192.0.2.1", 1))


async def test_user_who_leaves_closes_the_stream() -> None:
    gateway = Gateway()
    opening = await gateway.asked()
    opening.cancel()
    await turns()
    assert opening.cancelled()
    assert gateway.said() == [Close(gateway.id)]
    await gateway.over()


async def test_silent_agent_is_asked_and_then_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = Gateway()
    opening = await gateway.asked()
    await clock.passes(agent.QUESTION_TIME + agent.SIGN_TIME + 0.1)
    assert "no sign of life from the agent" in str(await failure(opening))
    assert gateway.lower.aborted


@pytest.mark.parametrize("sign", ["pong", "data"])
async def test_slow_agent_that_is_alive_has_its_time(
    sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    gateway = Gateway()
    _, other = gateway.opened()
    opening = await gateway.asked()
    await clock.passes(agent.QUESTION_TIME + 1)
    ((opcode, question),) = Decoder(masked=False).feed(gateway.lower.take())
    assert opcode == PING
    end = clock.now + go_agent.ANSWER_TIME - agent.QUESTION_TIME - 1.1
    if sign == "pong":
        gateway.lower.upper.data_received(frame(PONG, question, NO_MASK))
    while clock.now < end:
        if sign == "data":  # the pong stands behind it
            gateway.feed(StreamData(other.wire_id, b"bulk"))
        await clock.passes(min(agent.SIGN_TIME, end - clock.now))
    assert not opening.done()
    await clock.passes(0.2)
    error = await failure(opening)
    assert isinstance(error, DestinationError)
    assert error.outcome is Outcome.TIMED_OUT
    assert gateway.said() == [Close(gateway.id)]
    assert not gateway.session.lost
    await gateway.over()


async def test_session_is_usable_while_it_has_room_and_is_wanted() -> None:
    gateway = Gateway(max_streams=1)
    assert gateway.agent.is_usable
    gateway.agent.is_draining = True
    assert not gateway.agent.is_usable
    gateway.agent.is_draining = False
    opening = await gateway.asked()
    assert not gateway.agent.is_usable
    error = await failure(gateway.agent.open(HEAD))
    assert isinstance(error, DestinationError)
    assert error.outcome is Outcome.OVERLOADED
    opening.cancel()
    await turns()
    assert gateway.agent.is_usable
    await gateway.over()


async def test_close_ends_the_session() -> None:
    gateway = Gateway()
    opening = await gateway.asked()
    gateway.agent.close()
    await failure(opening)
    assert gateway.lost == [None]


# Datagrams.


class User(Recorder):
    """A user of UDP through an agent."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self.gateway = gateway
        self._decoder = uot.Decoder()
        self.datagrams: list[tuple[str, int, bytes]] = []

    async def begin(self) -> None:
        hand_over(await self.gateway.agent.open(Head(UDP, "0.0.0.0", 0)), self)

    def data_received(self, data: Data) -> None:
        super().data_received(data)
        self.datagrams += [(h, p, bytes(d)) for h, p, d in self._decoder.feed(data)]

    def send(self, payload: bytes, host: str = "192.0.2.1", port: int = 53) -> None:
        self.transport.write(uot.encode_datagram(payload, host, port))


async def user_of(gateway: Gateway) -> User:
    user = User(gateway)
    await user.begin()
    return user


async def test_each_destination_has_a_stream_of_its_own() -> None:
    gateway = Gateway()
    user = await user_of(gateway)
    assert gateway.said() == []
    user.send(b"one")
    user.send(b"two")
    user.send(b"other", "intra.example", 443)
    first, second = gateway.said()
    assert isinstance(first, Connect)
    assert isinstance(second, Connect)
    assert (first.network, first.address) == ("udp", "192.0.2.1:53")
    assert (second.network, second.address) == ("udp", "intra.example:443")
    gateway.feed(ConnectResponse(first.id, True))
    assert gateway.said() == [StreamData(first.id, b"one"), StreamData(first.id, b"two")]
    user.send(b"three")
    user.send(b"")
    assert gateway.said() == [StreamData(first.id, b"three"), StreamData(first.id, b"")]
    gateway.feed(ConnectResponse(second.id, True), StreamData(second.id, b"answer"))
    gateway.feed(StreamData(first.id, b"a"), StreamData(first.id, b""), Close(first.id))
    assert user.datagrams == [
        ("intra.example", 443, b"answer"), ("192.0.2.1", 53, b"a"), ("192.0.2.1", 53, b""),
    ]  # fmt: skip
    await gateway.over()
    assert user.lost


async def test_destination_that_closes_is_opened_again() -> None:
    gateway = Gateway()
    user = await user_of(gateway)
    user.send(b"one")
    (first,) = gateway.said()
    assert isinstance(first, Connect)
    gateway.feed(ConnectResponse(first.id, True), Close(first.id))
    await turns()
    gateway.said()
    user.send(b"two")
    (second,) = gateway.said()
    assert isinstance(second, Connect)
    assert second.address == first.address
    await gateway.over()


async def test_unreachable_destination_is_left_alone_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    gateway = Gateway()
    user = await user_of(gateway)
    user.send(b"one")
    (first,) = gateway.said()
    assert isinstance(first, Connect)
    gateway.feed(ConnectResponse(first.id, False, "dial udp: no such host"))
    assert gateway.said() == [Close(first.id)]
    user.send(b"two")
    await clock.passes(go_datagrams.RETRY_TIME - 0.1)
    user.send(b"three")
    assert gateway.said() == []
    await clock.passes(0.2)
    user.send(b"four")
    (second,) = gateway.said()
    assert isinstance(second, Connect)
    assert not user.lost
    await gateway.over()


async def test_waiting_datagrams_and_destinations_are_bounded() -> None:
    gateway = Gateway()
    user = await user_of(gateway)
    for _ in range(2 * MAX_WAITING):
        user.send(b"x", port=1)
    (first,) = gateway.said()
    assert isinstance(first, Connect)
    gateway.feed(ConnectResponse(first.id, True))
    assert len(gateway.said()) == MAX_WAITING
    for port in range(2, MAX_DESTINATIONS + 1):
        user.send(b"x", port=port)
    user.send(b"x", port=1)  # used again
    gateway.said()
    user.send(b"x", port=MAX_DESTINATIONS + 1)
    close, connect = gateway.said()
    assert isinstance(close, Close)
    assert close.id != first.id
    assert isinstance(connect, Connect)
    assert gateway.session.open_streams == MAX_DESTINATIONS
    await gateway.over()


async def test_streams_of_all_users_are_bounded() -> None:
    gateway = Gateway()
    gateway.session._max_streams = 3
    first, second, third = [await user_of(gateway) for _ in range(3)]
    first.send(b"x", port=1)
    second.send(b"x", port=2)
    second.send(b"x", port=3)
    two = gateway.said()[1]
    assert isinstance(two, Connect)
    second.send(b"x", port=4)  # instead of the one that was used first
    close, four = gateway.said()
    assert close == Close(two.id)
    assert isinstance(four, Connect)
    third.send(b"x", port=5)
    assert gateway.said() == []
    assert gateway.session.open_streams == 3
    gateway.feed(Close(four.id))
    third.send(b"x", port=5)
    assert isinstance(gateway.said()[-1], Connect)
    await gateway.over()


async def test_idle_destinations_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = Gateway()
    user = await user_of(gateway)
    user.send(b"x", port=1)
    user.send(b"x", port=2)
    first, second = gateway.said()
    assert isinstance(first, Connect)
    assert isinstance(second, Connect)
    gateway.feed(ConnectResponse(first.id, True), ConnectResponse(second.id, True))
    for _ in range(4):
        await clock.passes(go_datagrams.IDLE_TIME / 4 + 5)
        gateway.feed(StreamData(second.id, b"answer"))
    assert Close(first.id) in gateway.said()
    assert gateway.session.open_streams == 1
    assert len(user.datagrams) == 4
    await gateway.over()


@pytest.mark.parametrize("end", ["close", "cut", "abort", "write_eof"])
async def test_end_of_the_user_ends_all_streams(end: str) -> None:
    gateway = Gateway()
    user = await user_of(gateway)
    for port in (1, 2):
        user.send(b"x", port=port)
    connects = gateway.said()
    gateway.feed(ConnectResponse(connects[0].id, True))
    gateway.said()
    getattr(user.transport, end)()
    assert user.transport.is_closing()
    user.send(b"late")
    assert gateway.said() == [Close(connect.id) for connect in connects]
    await turns()
    assert user.lost
    assert user.error is None
    assert gateway.session.open_streams == 0
    await gateway.over()


async def test_lost_session_ends_the_datagrams() -> None:
    for is_used in (True, False):
        gateway = Gateway()
        user = await user_of(gateway)
        if is_used:
            user.send(b"x")
        gateway.lower.upper.connection_lost(ConnectionResetError())
        user.send(b"late")
        await turns()
        assert isinstance(user.error, NetworkError)


async def test_lost_session_is_noticed_without_datagrams(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = Gateway()
    user = await user_of(gateway)
    gateway.lower.upper.connection_lost(ConnectionResetError())
    await clock.passes(go_datagrams.SWEEP_INTERVAL)
    assert isinstance(user.error, NetworkError)
    assert not clock.pending


async def test_paused_reader_loses_datagrams() -> None:
    gateway = Gateway()
    user = await user_of(gateway)
    user.send(b"x")
    (connect,) = gateway.said()
    gateway.feed(ConnectResponse(connect.id, True))
    user.transport.pause_reading()
    assert not user.transport.is_reading()
    gateway.feed(StreamData(connect.id, b"lost"))
    user.transport.resume_reading()
    gateway.feed(StreamData(connect.id, b"x" * 65535), StreamData(connect.id, b"kept"))
    assert [payload for _, _, payload in user.datagrams] == [b"kept"]
    assert user.transport.bottom is gateway.lower
    assert user.transport.unsent() == 0
    assert user.transport.half_closes()
    await gateway.over()
