"""Streams that a gateway opens on the session of an agent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from mtt.errors import DestinationError, NetworkError, PeerError
from mtt.layers.base import StreamTransport
from mtt.layers.parked import Parked
from mtt.layers.smux import SmuxSession
from mtt.outbound import agent
from mtt.outbound.agent import OwnAgentSession
from mtt.outcome import Outcome
from mtt.wire.agent import TCP, Answer, Head, parse_head
from mtt.wire.smux import FIN, PSH, Decoder, frame
from tests.support.clock import Clock
from tests.support.transports import FakeLayer, turns

HEAD = Head(TCP, "nas.example", 22, ("198.51.100.7", 4000))


class Gateway:
    """The gateway's side of an agent's session; the test is the agent."""

    def __init__(self, max_streams: int = agent.MAX_STREAMS) -> None:
        self.session = SmuxSession(first_id=2, max_streams=max_streams)
        self.lower = FakeLayer(self.session, half_close=True)
        self.session.connection_made(self.lower)
        self.agent = OwnAgentSession(self.session)

    async def opening(self) -> asyncio.Task[StreamTransport]:
        """A stream of which the agent has seen the head."""
        task = asyncio.ensure_future(self.agent.open(HEAD))
        await turns()
        (syn, psh) = Decoder().feed(self.lower.take())
        assert parse_head(bytes(psh[2])) == (HEAD, len(psh[2]))
        self.id = syn[1]
        return task

    def say(self, data: bytes, command: int = PSH) -> None:
        self.session.data_received(frame(command, self.id, data))

    async def over(self) -> None:
        self.session.abort()
        await turns()


async def failure(opening: Awaitable[StreamTransport]) -> Exception:
    with pytest.raises((DestinationError, NetworkError, PeerError)) as caught:
        await opening
    return caught.value


async def test_stream_is_ready_after_a_good_answer() -> None:
    gateway = Gateway()
    opening = await gateway.opening()
    gateway.say(Answer(Outcome.SUCCEEDED, ("10.0.0.5", 22)).encode()[:4])
    await turns()
    assert not opening.done()
    gateway.say(Answer(Outcome.SUCCEEDED, ("10.0.0.5", 22)).encode()[4:] + b"SSH-2.0")
    stream = await opening
    held = stream.get_protocol()
    assert isinstance(held, Parked)
    assert held.early == b"SSH-2.0"
    await gateway.over()


@pytest.mark.parametrize("outcome", [each for each in Outcome if each is not Outcome.SUCCEEDED])
async def test_outcome_of_the_agent_is_passed_on(outcome: Outcome) -> None:
    gateway = Gateway()
    opening = await gateway.opening()
    gateway.say(Answer(outcome).encode())
    error = await failure(opening)
    assert isinstance(error, DestinationError)
    assert error.outcome is outcome
    gateway.say(b"", FIN)
    assert gateway.agent.open_streams == 0
    await gateway.over()


@pytest.mark.parametrize(
    "said, text",
    [
        (frame(PSH, 2, b"\xff\xff"), "the agent's answer is malformed: the answer of a stream has"),
        (frame(FIN, 2), "the agent did not answer: the stream ended before its answer"),
        (frame(PSH, 2), "the agent did not answer: connection reset by peer"),
        (b"\x07" * 8, "the agent's answer is malformed: smux: "),
    ],
)
async def test_agent_that_does_not_answer_is_an_error(said: bytes, text: str) -> None:
    gateway = Gateway()
    opening = await gateway.opening()
    gateway.session.data_received(said)
    error = await failure(opening)
    assert not isinstance(error, DestinationError)
    assert str(error).startswith(text)
    await gateway.over()


async def test_lost_session_fails_the_streams_that_are_opening() -> None:
    gateway = Gateway()
    opening = await gateway.opening()
    gateway.session.connection_lost(ConnectionResetError())
    error = await failure(opening)
    assert not isinstance(error, DestinationError)
    with pytest.raises(NetworkError):
        await gateway.agent.open(HEAD)
    assert not gateway.agent.is_usable


async def test_silent_agent_is_asked_and_then_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = Gateway()
    opening = await gateway.opening()
    await clock.passes(agent.QUESTION_TIME + agent.SIGN_TIME + 0.1)
    error = await failure(opening)
    assert "no sign of life from the agent" in str(error)
    assert gateway.lower.aborted


async def test_slow_agent_that_is_alive_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = Gateway()
    opening = await gateway.opening()
    await clock.passes(agent.QUESTION_TIME + 2)
    gateway.session.data_received(frame(3, 0))
    await clock.passes(agent.SIGN_TIME)
    assert not opening.done()
    await clock.passes(agent.ANSWER_TIME)
    error = await failure(opening)
    assert isinstance(error, DestinationError)
    assert error.outcome is Outcome.TIMED_OUT
    assert not gateway.session.lost
    await gateway.over()


class Questions:
    """Counts the questions for a sign of life; the test answers them."""

    def __init__(self, gateway: Gateway) -> None:
        self.asked = self.answered = 0
        gateway.lower.ping = self._ask  # type: ignore[method-assign]
        gateway.lower.ping_answered = self._is_answered  # type: ignore[method-assign]

    def _ask(self) -> bool:
        self.asked += 1
        return True

    def _is_answered(self) -> bool:
        return self.answered == self.asked


@pytest.mark.parametrize("moves", ["data", "acknowledgements", "nothing is read"])
async def test_agent_behind_a_full_line_is_not_silent(
    moves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    gateway = Gateway()
    Questions(gateway)
    gateway.lower.written = gateway.lower.buffered = 100_000  # an upload
    opening = await gateway.opening()
    if moves == "nothing is read":
        gateway.session.count_queued(gateway.session.receive_budget)
    await clock.passes(agent.QUESTION_TIME + 0.1)
    for _ in range(2):
        if moves == "data":
            gateway.session.data_received(frame(3, 0))
        elif moves == "acknowledgements":
            gateway.lower.buffered -= 10_000
        await clock.passes(agent.SIGN_TIME)
        assert not opening.done()
    gateway.session.count_queued(-gateway.session._queued)
    await clock.passes(3 * agent.SIGN_TIME)
    assert "no sign of life from the agent" in str(await failure(opening))


async def test_kernel_of_a_frozen_agent_does_not_speak_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    gateway = Gateway()
    Questions(gateway)
    openings = [await gateway.opening()]
    await clock.passes(agent.QUESTION_TIME + 0.1)
    for _ in range(3):  # other users, whose heads are acknowledged at once
        openings.append(asyncio.ensure_future(gateway.agent.open(HEAD)))
        await clock.passes(agent.SIGN_TIME / 3)
    for opening in openings:
        assert "no sign of life from the agent" in str(await failure(opening))


async def test_question_is_not_repeated_before_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    gateway = Gateway()
    questions = Questions(gateway)
    openings = [await gateway.opening()]
    for _ in range(10):  # the last question would be open when the first is looked at
        openings.append(asyncio.ensure_future(gateway.agent.open(HEAD)))
        await clock.passes(agent.QUESTION_TIME / 10)
    await clock.passes(0.1)
    assert questions.asked == 1
    for _ in range(30):
        questions.answered = questions.asked
        await clock.passes(agent.SIGN_TIME / 10)
    assert 2 < questions.asked < 20
    assert not gateway.session.lost
    await gateway.over()
    for opening in openings:
        assert isinstance(await failure(opening), NetworkError)


async def test_user_who_leaves_resets_the_stream() -> None:
    gateway = Gateway()
    opening = await gateway.opening()
    opening.cancel()
    await turns()
    assert opening.cancelled()
    assert Decoder().feed(gateway.lower.take())[0][:2] == (PSH, gateway.id)
    await gateway.over()


async def test_session_is_usable_while_it_has_room_and_is_wanted() -> None:
    gateway = Gateway()
    assert gateway.agent.is_usable
    gateway.agent.is_draining = True
    assert not gateway.agent.is_usable
    gateway.agent.is_draining = False
    gateway.session.heard_at -= 1000
    assert not gateway.agent.is_usable
    await gateway.over()


async def test_session_without_room_sends_nothing() -> None:
    gateway = Gateway(max_streams=1)
    opening = await gateway.opening()
    assert not gateway.agent.is_usable
    error = await failure(gateway.agent.open(HEAD))
    assert isinstance(error, DestinationError)
    assert error.outcome is Outcome.OVERLOADED
    assert gateway.lower.take() == b""
    await gateway.over()
    assert isinstance(await failure(opening), NetworkError)
