"""Lingering streams: the application has ended, and the Go server has not received the end."""

from __future__ import annotations

import pytest

from mtt.errors import NetworkError
from mtt.layers import anytls_client
from mtt.layers.anytls_client import ClientSession
from mtt.layers.anytls_stream import ClientStream
from mtt.layers.parked import hand_over
from mtt.wire.anytls import FIN, HEART_RESPONSE, PSH, Decoder, frame
from tests.outbound.anytls_network import Network
from tests.support.clock import Clock
from tests.support.transports import Recorder


class Application(Recorder):
    """The protocol of a stream; `ended` says whether its application has ended."""

    ended = False

    @property
    def has_finished_writing(self) -> bool:
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
