"""What comes behind the frame that ended a multiplexed session, of every protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mtt.wire import anytls, mux_cool, smux
from tests.layers import anytls_client_side, anytls_server_side, mux_cool_side, smux_side
from tests.support.clock import Clock
from tests.support.transports import FakeLayer, Recorder, turns

READS = pytest.mark.parametrize("reads", ["same read", "next read"])


class Ended:
    """A session with one stream, whose protocol can end it, and what happens to it after that."""

    def __init__(self, owner: Any, upper: Recorder, stream_id: int) -> None:
        self.session: Any = owner.session
        self.lower: FakeLayer = owner.lower
        self.owner = owner
        self.upper = upper
        self.stream_id = stream_id
        self.late: list[bytes] = []  # what is written after the session's end
        write = self.lower.write

        def watched(data: Any) -> None:
            if self.session.lost:
                self.late.append(bytes(data))
            write(data)

        self.lower.write = watched  # type: ignore[method-assign]


def smux_server() -> Ended:
    server = smux_side.Server(half_close=True)
    upper, _ = server.open(3)
    return Ended(server, upper, 3)


def mux_cool_server() -> Ended:
    server = mux_cool_side.Server(half_close=True)
    upper, _ = server.open(1)
    return Ended(server, upper, 1)


def anytls_server() -> Ended:
    server = anytls_server_side.Server(anytls_server_side.OWN)
    upper, _ = server.open(1)
    return Ended(server, upper, 1)


def anytls_client() -> Ended:
    client = anytls_client_side.Client(greeting=anytls_client_side.OWN, half_close=True)
    upper, stream = client.stream()
    return Ended(client, upper, stream.id)


def frames(ended: Ended) -> tuple[bytes, bytes]:
    """A frame with the stream's data, and frames that a session answers to or remembers."""
    number = ended.stream_id
    if isinstance(ended.owner, smux_side.Server):
        data = smux.frame(smux.PSH, number, b"last")
        return data, b"".join((
            smux.frame(smux.SYN, 5), smux.frame(smux.PSH, number, b"late"),
            smux.frame(smux.NOP, number), smux.frame(smux.PSH, 5, b"late"),
            smux.frame(smux.FIN, 5), smux.frame(smux.SYN, 7), smux.frame(smux.FIN, number),
        ))  # fmt: skip
    if isinstance(ended.owner, mux_cool_side.Server):
        data = mux_cool.data_frames(number, b"last")
        return data, b"".join((
            mux_cool.new(5), mux_cool.data_frames(number, b"late"), mux_cool.keep_alive(number),
            mux_cool.data_frames(5, b"late"), mux_cool.end(5), mux_cool.new(7),
            mux_cool.end(number, error=True),
        ))  # fmt: skip
    data = anytls.frame(anytls.PSH, number, b"last")
    return data, b"".join((
        anytls.frame(anytls.SYN, 5), anytls.frame(anytls.PSH, number, b"late"),
        anytls.frame(anytls.HEART_REQUEST, 0), anytls.frame(anytls.PSH, 5, b"late"),
        anytls.frame(anytls.SETTINGS, 0, b"v=2\nclient=late"),
        anytls.frame(anytls.SERVER_SETTINGS, 0, b"v=9"),
        anytls.frame(anytls.UPDATE_PADDING, 0, b"stop=2\n1=100-100"),
        anytls.frame(anytls.FIN, number), anytls.frame(anytls.PSH, 5, b"unfinished")[:9],
    ))  # fmt: skip


@READS
@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("make", [smux_server, mux_cool_server, anytls_server, anytls_client])
async def test_frames_after_the_end_are_ignored(
    make: Callable[[], Ended], how: str, reads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    ended = make()
    ended.upper.on_data = lambda _data: getattr(ended.session, how)()
    data, behind = frames(ended)
    opened = len(getattr(ended.owner, "uppers", ()))
    before = ended.session.version if hasattr(ended.session, "version") else None
    if reads == "same read":
        ended.owner.feed(data + behind)
    else:
        ended.owner.feed(data)
        heard = ended.session.heard_at
        ended.owner.feed(behind)
        ended.owner.feed(behind)
        assert ended.session.heard_at == heard
    await turns()
    assert ended.upper.data == b"last"
    assert ended.upper.lost
    assert ended.late == []
    assert ended.owner.lost == [None]
    assert len(getattr(ended.owner, "uppers", ())) == opened
    assert ended.session.used_slots == 0
    assert not clock.pending
    if before is not None:
        assert ended.session.version == before
        assert getattr(ended.session, "client", "test/1") == "test/1"


@READS
@pytest.mark.parametrize("make", [anytls_server, anytls_client])
async def test_an_alert_is_the_last_frame_that_counts(
    make: Callable[[], Ended], reads: str
) -> None:
    ended = make()
    data, behind = frames(ended)
    alert = anytls.frame(anytls.ALERT, 0, b"go away")
    opened = len(getattr(ended.owner, "uppers", ()))
    ended.owner.feed(*([data, alert + behind] if reads == "same read" else [data, alert]))
    if reads == "next read":
        ended.owner.feed(behind)
    await turns()
    assert ended.upper.data == b"last"  # which came before
    assert ended.late == []
    assert len(ended.owner.lost) == 1
    assert "go away" in str(ended.owner.lost[0])
    assert len(getattr(ended.owner, "uppers", ())) == opened
    assert ended.session.used_slots == 0
    assert ended.session.version == anytls.VERSION
