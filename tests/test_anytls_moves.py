"""Streams whose session turns out to be dead before the server has answered: begun again."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from mtt.errors import MttError, NetworkError
from mtt.layers.anytls_stream import KEPT_LIMIT, ClientStream
from mtt.layers.holding import hand_over
from mtt.wire.anytls import FIN, PSH, SETTINGS, SYN, SYNACK, Decoder, PreambleReader, frame
from mtt.wire.socks import DestinationError
from tests.support.transports import Recorder, turns
from tests.test_anytls_sessions import Network

DEAD = ConnectionResetError()


class Application(Recorder):
    """What is above a stream on a session that was used before."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        stream = network.pool.open_at_once(b"dest")
        assert stream is not None
        self.stream: ClientStream = stream
        hand_over(stream, self)


async def used_before(*, version: int = 2) -> tuple[Network, Application]:
    """A network with one idle session, and an application that has just got it."""
    network = Network()
    if version == 1:
        network.greeting = b""
        network.pool._server.version = 1
    await network.idle(1)
    return network, Application(network)


def said(network: Network, number: int) -> list[tuple[int, int, bytes]]:
    """What a new session has said since its preamble, without padding."""
    reader = PreambleReader()
    reader.feed(network.lowers[number].take())
    events = Decoder().feed(reader.rest)
    return [(command, sid, bytes(data)) for command, sid, data in events if command != 0]


def answered(network: Network, number: int, *frames: bytes) -> None:
    network.sessions[number].data_received(network.greeting + b"".join(frames))


@pytest.mark.parametrize("version", [1, 2])
async def test_an_unanswered_stream_begins_again_on_a_new_session(version: int) -> None:
    network, application = await used_before(version=version)
    application.stream.write(b"hello")
    application.stream.write(b" there")
    network.sessions[0].connection_lost(DEAD)
    assert not application.lost
    assert not application.writable
    assert not application.stream.is_closing()
    application.stream.write(b", one more")  # was under way
    assert application.stream.unsent()  # so an end waits
    await turns()
    assert network.dials == 2
    assert application.writable
    greeting, *rest = said(network, 1)
    assert greeting[0] == SETTINGS
    assert rest == [(SYN, 1, b""), (PSH, 1, b"dest"), (PSH, 1, b"hello there, one more")]
    application.stream.write(b"again")
    answered(network, 1, frame(PSH, 1, b"reply"))
    assert application.data == b"reply"
    network.sessions[1].connection_lost(DEAD)
    assert application.lost
    assert network.dials == 2
    await network.over()


async def test_who_waits_for_the_destination_waits_on() -> None:
    network = Network()
    await network.idle(1)
    task = asyncio.ensure_future(network.pool.open(b"dest"))
    await turns()
    network.sessions[0].connection_lost(DEAD)
    await turns()
    assert not task.done()
    answered(network, 1, frame(SYNACK, 1))
    assert network.number(await task) == 1
    await network.over()


@pytest.mark.parametrize(
    "answer", [frame(SYNACK, 2), frame(PSH, 2, b"data")], ids=["synack", "data"]
)
async def test_an_answered_stream_fails_with_its_session(answer: bytes) -> None:
    """What it said may have been delivered."""
    network, application = await used_before()
    application.stream.write(b"hello")
    answered(network, 0, answer)
    network.sessions[0].connection_lost(DEAD)
    await turns()
    assert application.lost
    assert network.dials == 1
    await network.over()


@pytest.mark.parametrize(("size", "moves"), [(KEPT_LIMIT, True), (KEPT_LIMIT + 1, False)])
async def test_so_much_is_kept(size: int, moves: bool) -> None:
    network, application = await used_before()
    application.stream.write(bytes(size - 1))
    application.stream.write(b"x")
    network.sessions[0].connection_lost(DEAD)
    await turns()
    assert application.lost is not moves
    if moves:
        data = b"".join(data for command, _, data in said(network, 1) if command == PSH)
        assert data == b"dest" + bytes(size - 1) + b"x"
    await network.over()


async def test_a_stream_of_a_new_session_fails_with_it() -> None:
    network = Network()
    stream = await network.pool.open(b"dest", wait=False)
    application = Recorder()
    hand_over(stream, application)
    network.sessions[0].connection_lost(DEAD)
    await turns()
    assert application.lost
    assert network.dials == 1
    await network.over()


async def test_a_stream_begins_again_only_once() -> None:
    network, application = await used_before()
    network.sessions[0].connection_lost(DEAD)
    await turns()
    network.sessions[1].connection_lost(DEAD)
    assert isinstance(application.error, NetworkError)
    await turns()
    assert network.dials == 2
    await network.over()


async def test_without_another_session_the_stream_fails() -> None:
    network, application = await used_before()
    waiting = asyncio.ensure_future(application.stream.acknowledged())
    await turns()
    network.error = NetworkError("no server")
    network.sessions[0].connection_lost(DEAD)
    with pytest.raises(NetworkError, match="no server"):
        await waiting
    assert application.error is network.error
    assert application.stream.is_closing()
    await network.over()


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_an_application_that_leaves_ends_the_dial(how: str) -> None:
    network, application = await used_before()
    network.allowed.clear()
    network.sessions[0].connection_lost(DEAD)
    await turns()
    assert network.dials == 2
    getattr(application.stream, how)()
    await turns()
    assert application.lost
    assert application.error is None
    assert not network.pool._moves
    network.allowed.set()
    await turns()
    assert len(network.sessions) == 1
    await network.over()


async def test_the_end_of_the_client_ends_what_is_moving() -> None:
    network, application = await used_before()
    network.allowed.clear()
    network.sessions[0].connection_lost(DEAD)
    await turns()
    await network.pool.close()
    assert isinstance(application.error, MttError)
    network.allowed.set()
    await network.over()


async def test_an_end_that_was_told_is_told_again() -> None:
    network = Network()
    await network.idle(1)
    network.sessions[0]._half_close = True
    application = Application(network)
    application.stream.write(b"all")
    application.stream.write_eof()
    network.sessions[0].connection_lost(DEAD)
    await turns()
    assert said(network, 1)[1:] == [
        (SYN, 1, b""), (PSH, 1, b"dest"), (PSH, 1, b"all"), (FIN, 1, b""),
    ]  # fmt: skip
    await network.over()


async def test_a_refusal_is_the_servers_answer() -> None:
    network, application = await used_before()
    answered(network, 0, frame(SYNACK, 2, b"connection refused"), frame(FIN, 2))
    assert isinstance(application.error, DestinationError)
    await turns()
    assert network.dials == 1
    await network.over()


async def test_nothing_is_left_of_a_stream_that_was_moved() -> None:
    network, application = await used_before()
    network.sessions[0].connection_lost(DEAD)
    await turns()
    left = weakref.ref(application)
    gc.collect()
    gc.disable()
    try:
        application.stream.close()
        answered(network, 1, frame(FIN, 1))
        await turns()
        del application
        assert left() is None
    finally:
        gc.enable()
    await network.over()
