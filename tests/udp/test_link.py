"""A link: opening, batches, back-pressure, and its ends, on a transport without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from mtt.errors import NetworkError, PeerError
from mtt.layers.base import Data
from mtt.udp import link as module
from mtt.udp.counters import UdpCounters
from mtt.udp.link import TAKE_SIZE, TURN_DATAGRAMS, WRITE_SIZE, Link
from mtt.udp.queues import MAX_FLOW_BYTES, FairQueues
from mtt.wire.datagrams import ANSWER, HEAD, NO_ANSWER, encode
from tests.support.clock import Clock
from tests.support.transports import FakeTransport, turns
from tests.support.tunnels import eventually


class Owner:
    """Remembers the datagrams, and whether the link is done."""

    def __init__(self) -> None:
        self.datagrams: list[tuple[int, bytes]] = []
        self.done: list[Link] = []
        self.most = TURN_DATAGRAMS  # that it takes in one turn

    def deliver(self, datagrams: Sequence[tuple[int, Data]]) -> int:
        taken = datagrams[: self.most]
        self.datagrams += [(flow, bytes(payload)) for flow, payload in taken]
        return len(taken)


def started(*, is_client: bool = True, open: bool = True) -> tuple[Link, FakeTransport, Owner]:
    """A link on a fake stream; `open`: after the opening messages."""
    owner = Owner()
    stream = FakeTransport()
    link = Link(
        stream, owner, UdpCounters(),
        is_client=is_client, done=owner.done.append, queues=FairQueues(),
    )  # fmt: skip
    link.start()
    if open:
        link.data_received(ANSWER if is_client else HEAD)
        assert link.is_open
        stream.sent.clear()
        stream.writes.clear()
    return link, stream, owner


async def test_client_sends_the_head_and_waits_for_the_answer() -> None:
    link, stream, owner = started(open=False)
    link.send(1, b"early")
    await turns()
    assert stream.sent == HEAD
    assert not link.is_open
    for at in range(len(ANSWER)):
        link.data_received(ANSWER[at : at + 1])
    assert link.is_open
    assert stream.sent == HEAD + encode(1, b"early")
    link.data_received(encode(1, b"reply"))
    assert owner.datagrams == [(1, b"reply")]
    link.abort("test")
    await turns()


async def test_client_need_not_wait_for_the_answer_if_udp_is_agreed() -> None:
    owner, stream, queues = Owner(), FakeTransport(), FairQueues()
    queues.add(1, b"waited")
    link = Link(
        stream, owner, UdpCounters(),
        is_client=True, is_agreed=True, done=owner.done.append, queues=queues,
    )  # fmt: skip
    link.start()
    assert stream.sent == HEAD + encode(1, b"waited")
    link.send(1, b"early")
    await turns()
    assert stream.sent == HEAD + encode(1, b"waited") + encode(1, b"early")
    assert not link.is_open
    link.data_received(ANSWER + encode(1, b"reply"))
    assert owner.datagrams == [(1, b"reply")]
    link.abort("test")
    await turns()


async def test_server_answers_the_head_and_takes_what_follows() -> None:
    link, stream, owner = started(is_client=False, open=False)
    link.data_received(HEAD + encode(9, b"first"))
    assert stream.sent == ANSWER
    assert owner.datagrams == [(9, b"first")]
    assert (link.sent, link.received) == (5, 0)
    link.send(9, b"reply!")
    await turns()
    assert (link.sent, link.received) == (5, 6)
    link.abort("test")
    await turns()


@pytest.mark.parametrize("is_client", [True, False])
@pytest.mark.parametrize("received", [b"\0", b"SSH-2.0-OpenSSH_9.2\r\n", HEAD[:8] + ANSWER[8:]])
async def test_another_opening_ends_the_stream(is_client: bool, received: bytes) -> None:
    link, stream, owner = started(is_client=is_client, open=False)
    link.data_received(received)
    await turns()
    assert stream.aborted
    assert isinstance(link.error, PeerError)
    assert (str(link.error) == NO_ANSWER) == is_client
    assert owner.done == [link]


@pytest.mark.parametrize("is_client", [True, False])
async def test_opening_has_a_time_limit(is_client: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, module)
    link, stream, owner = started(is_client=is_client, open=False)
    await clock.passes(module.OPENING_TIME - 0.1)
    assert not stream.closing
    await clock.passes(0.2)
    assert stream.aborted
    assert owner.done == [link]


async def test_end_before_the_answer_names_the_fix() -> None:
    link, stream, owner = started(open=False)
    assert link.eof_received() is False
    stream.close()
    await turns()
    assert str(link.error) == NO_ANSWER
    assert owner.done == [link]


@pytest.mark.parametrize("error", [None, NetworkError("cut"), ConnectionResetError()])
async def test_end_of_an_open_link(error: Exception | None) -> None:
    link, stream, owner = started()
    stream.lose(error)
    await turns()
    assert link.error is error
    assert owner.done == [link]
    link.send(1, b"late")
    await turns()
    assert not stream.sent


async def test_datagrams_of_one_turn_leave_in_one_write() -> None:
    link, stream, _ = started()
    datagrams = [(number % 3, bytes([number]) * number) for number in range(30)]
    for flow, payload in datagrams:
        link.send(flow, payload)
    assert not stream.writes
    await asyncio.sleep(0)
    assert stream.writes == [b"".join(encode(*datagram) for datagram in datagrams)]
    link.abort("test")
    await turns()


async def test_large_batches_are_written_at_once() -> None:
    link, stream, _ = started()
    for _ in range(2 * WRITE_SIZE // 1024):
        link.send(1, bytes(1024))
    assert [len(write) >= WRITE_SIZE for write in stream.writes] == [True, True]
    link.abort("test")
    await turns()


async def test_blocked_stream_queues_and_drops_the_oldest() -> None:
    link, stream, _ = started()
    link.send(1, b"before")
    link.pause_writing()
    count = MAX_FLOW_BYTES // 1000 + 10
    for number in range(count):
        link.send(1, number.to_bytes(1000, "big"))
    await turns()
    assert stream.sent == encode(1, b"before")
    dropped = link.counters.dropped_full
    assert dropped > 0
    link.resume_writing()
    expected = [encode(1, number.to_bytes(1000, "big")) for number in range(dropped, count)]
    assert stream.sent == encode(1, b"before") + b"".join(expected)
    assert max(map(len, stream.writes)) < 2 * TAKE_SIZE
    link.abort("test")
    await turns()


async def test_batch_is_sent_before_queued_datagrams() -> None:
    link, stream, _ = started()
    link.send(1, b"first")
    link.pause_writing()
    link.send(1, b"second")
    link.resume_writing()  # all in one turn
    link.send(1, b"third")
    await turns()
    assert stream.sent == b"".join(encode(1, each) for each in (b"first", b"second", b"third"))
    link.abort("test")
    await turns()


async def test_draining_stops_when_the_stream_is_full_again() -> None:
    link, stream, _ = started()
    link.pause_writing()
    for _ in range(60):
        link.send(1, bytes(1000))
    original = stream.write

    def write(data: bytes) -> None:
        original(data)
        link.pause_writing()

    stream.write = write  # type: ignore[method-assign]
    link.resume_writing()
    assert len(stream.writes) == 1
    link.resume_writing()
    assert len(stream.writes) == 2
    link.abort("test")
    await turns()


async def test_stream_that_is_paused_at_the_opening() -> None:
    link, stream, _ = started(open=False)
    link.send(1, b"x")
    link.pause_writing()
    link.data_received(ANSWER)
    assert stream.sent == HEAD
    link.resume_writing()
    assert stream.sent == HEAD + encode(1, b"x")
    link.abort("test")
    await turns()


@pytest.mark.parametrize("most", [TURN_DATAGRAMS, 100])
async def test_many_datagrams_of_one_read_are_delivered_in_turns(most: int) -> None:
    link, stream, owner = started()
    owner.most = most
    datagrams = [(number % 7, b"") for number in range(3 * TURN_DATAGRAMS)]
    data = bytearray(b"".join(encode(*each) for each in datagrams))
    link.data_received(memoryview(data))
    data[:] = bytes(len(data))  # the buffer is reused
    assert len(owner.datagrams) == most
    assert not stream.is_reading()
    await eventually(stream.is_reading)
    assert owner.datagrams == datagrams
    link.data_received(encode(1, b"next"))
    assert owner.datagrams[-1] == (1, b"next")
    link.abort("test")
    await turns()


async def test_close_drops_datagrams_of_the_next_turn() -> None:
    link, stream, owner = started()
    link.data_received(encode(1, b"") * (TURN_DATAGRAMS + 1))
    link.abort("test")
    await turns()
    assert stream.aborted
    assert len(owner.datagrams) == TURN_DATAGRAMS
    assert owner.done == [link]


async def test_malformed_datagram_ends_the_stream() -> None:
    link, stream, owner = started()
    link.data_received(encode(1, b"ok"))
    link.data_received(b"\xff\xff" + bytes(4))
    await turns()
    assert owner.datagrams == [(1, b"ok")]
    assert stream.aborted
    assert "a datagram of 65535 bytes" in str(link.error)


async def test_close_delivers_what_was_sent() -> None:
    link, stream, owner = started()
    link.send(1, b"last")
    link.close("the client stops")
    await turns()
    assert stream.sent == encode(1, b"last")
    assert not stream.aborted
    assert link.reason == "the client stops"
    assert owner.done == [link]


async def test_abort_ends_a_link_that_is_still_closing() -> None:
    link, stream, owner = started()
    link.send(1, b"not read by the peer")
    link.close("the server stops")
    link.abort("shutting down")
    await turns()
    assert stream.aborted
    assert link.reason == "the server stops"
    assert owner.done == [link]
