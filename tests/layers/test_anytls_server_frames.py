"""Frames of data that the server's AnyTLS session puts together, and those that it sends."""

from __future__ import annotations

import random

import pytest

from mtt.errors import NetworkError
from mtt.layers.anytls_server import WHOLE_SIZE, WHOLE_TIME
from mtt.wire.anytls import PSH, frame
from tests.layers.anytls_server_side import OWN, V2, Server
from tests.support.clock import Clock


async def test_a_frame_in_pieces_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    server = Server(V2)
    upper, _ = server.open()
    hello = frame(PSH, 1, bytes(517))
    server.feed(hello[:9])
    server.feed(hello[9:300])
    assert not upper.calls
    server.feed(hello[300:] + frame(PSH, 1, b"more"))
    assert (upper.calls, len(upper.data)) == (1, 521)
    await clock.passes(1)
    assert upper.calls == 1
    await server.over()


async def test_slow_frame_is_delivered_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    server = Server(V2)
    upper, _ = server.open()
    slow = frame(PSH, 1, b"abcdef")
    server.feed(slow[:9])
    await clock.passes(WHOLE_TIME / 2)
    server.feed(slow[9:10])  # this does not make it younger
    await clock.passes(WHOLE_TIME * 0.6)
    assert upper.data == b"abc"
    server.feed(slow[10:12])
    assert upper.data == b"abcde"
    server.feed(slow[12:])
    assert upper.data == b"abcdef"
    await server.over()


async def test_each_frame_has_its_own_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    server = Server(V2)
    upper, _ = server.open()
    each = frame(PSH, 1, b"abcdef")
    server.feed(each[:9])
    for _ in range(3):
        await clock.passes(WHOLE_TIME * 0.9)
        server.feed(each[9:] + each[:9])
    assert (upper.calls, len(upper.data)) == (3, 18)
    await clock.passes(WHOLE_TIME)
    assert len(upper.data) == 20
    await server.over()


async def test_large_frames_are_delivered_as_they_arrive() -> None:
    server = Server(V2)
    upper, _ = server.open()
    large = frame(PSH, 1, bytes(WHOLE_SIZE + 1))
    server.feed(large[:1000])
    assert len(upper.data) == 1000 - 7
    server.feed(large[1000:])
    assert len(upper.data) == WHOLE_SIZE + 1
    await server.over()


async def test_part_of_a_frame_before_a_failure_is_delivered() -> None:
    server = Server(V2)
    upper, _ = server.open()
    server.feed(frame(PSH, 1, b"abcdef")[:10])
    server.session.connection_lost(ConnectionResetError())
    assert upper.data == b"abc"
    assert isinstance(upper.error, NetworkError)


@pytest.mark.parametrize(("settings", "most"), [(V2, 32768), (OWN, 65535)])
async def test_only_own_clients_get_frames_above_32_kib(settings: bytes, most: int) -> None:
    """The reference has never sent more than 32 KiB in one, and waits for the whole of it."""
    server = Server(settings)
    _, stream = server.open()
    data = random.Random(8).randbytes(2 * 65535)
    stream.write(data)
    said = server.said()
    assert b"".join(payload for _, _, payload in said) == data
    assert {len(payload) for _, _, payload in said[:-1]} == {most}
    await server.over()
