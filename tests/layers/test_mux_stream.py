"""Streams that a peer opens in a burst: begun in turn, not begun at all when they are over."""

from __future__ import annotations

import pytest

from mtt.layers import mux_stream
from mtt.layers.mux_stream import STREAMS_A_TURN
from mtt.wire.smux import FIN, PSH, SYN, frame
from tests.layers.smux_side import Server
from tests.support.transports import turns

BURST = 3 * STREAMS_A_TURN
IDS = range(3, 3 + 2 * BURST, 2)


def begun(server: Server) -> int:
    return sum(upper.transport is not None for upper in server.uppers)


async def test_a_few_streams_begin_in_each_turn() -> None:
    server = Server()
    server.feed(*(frame(SYN, number) for number in IDS))
    assert begun(server) == STREAMS_A_TURN
    await turns(1)
    assert begun(server) == 2 * STREAMS_A_TURN
    server.feed(frame(SYN, 999))  # another read does not change that
    assert begun(server) == 2 * STREAMS_A_TURN
    await turns(3)
    assert begun(server) == BURST + 1


async def test_streams_begin_in_order_and_with_their_data() -> None:
    server = Server()
    server.feed(*(frame(SYN, number) + frame(PSH, number, b"%d" % number) for number in IDS))
    await turns()
    assert [upper.data for upper in server.uppers] == [b"%d" % number for number in IDS]
    assert [upper.transport.id for upper in server.uppers] == list(IDS)


async def test_streams_that_are_over_do_not_begin() -> None:
    server = Server()
    server.feed(*(frame(SYN, number) + frame(FIN, number) for number in IDS))
    await turns()
    assert begun(server) == 0
    assert all(upper.lost for upper in server.uppers)
    assert server.session.used_slots == 0
    assert server.said() == [(FIN, number, b"") for number in IDS]


async def test_streams_with_data_begin_though_they_are_over() -> None:
    server = Server()
    server.feed(frame(SYN, 3) + frame(PSH, 3, b"all") + frame(FIN, 3))
    assert (server.uppers[0].data, server.uppers[0].eof) == (b"all", True)


async def test_half_closed_streams_begin() -> None:
    server = Server(half_close=True)
    server.feed(frame(SYN, 3) + frame(FIN, 3))
    assert server.uppers[0].transport is not None
    assert server.uppers[0].eof


@pytest.mark.parametrize("said", [(), (PSH,), (FIN,), (PSH, FIN)])
async def test_streams_that_are_reset_do_not_begin(said: tuple[int, ...]) -> None:
    server = Server(half_close=True)
    for number in IDS:
        before = b"".join(frame(what, number, b"x" * (what == PSH)) for what in said)
        server.feed(frame(SYN, number) + before + frame(PSH, number))
    assert server.session.used_slots == 0
    await turns()
    assert begun(server) == 0
    assert server.session.used_slots == 0


async def test_streams_wait_for_those_that_are_being_carried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mux_stream, "MAX_CARRIED", 2)
    server = Server()
    server.feed(frame(SYN, 3))
    first = server.uppers[0].transport
    first.add_carried(1)
    first.add_carried(1)
    server.feed(frame(SYN, 5))
    await turns()
    assert begun(server) == 1
    first.close()
    first.add_carried(-1)
    await turns()
    assert begun(server) == 2


async def test_streams_with_data_and_end_survive_their_session() -> None:
    server = Server(half_close=True)
    server.feed(
        *(frame(SYN, number) + frame(PSH, number, b"all") + frame(FIN, number) for number in IDS)
    )
    server.session.connection_lost(None)
    await turns()
    assert [(upper.data, upper.eof) for upper in server.uppers] == [(b"all", True)] * BURST
    assert all(upper.lost for upper in server.uppers)


async def test_streams_whose_session_ends_do_not_begin() -> None:
    server = Server()
    server.feed(*(frame(SYN, number) for number in IDS))
    server.session.connection_lost(None)
    await turns()
    assert begun(server) == STREAMS_A_TURN
    assert all(upper.lost for upper in server.uppers)
