"""One side of a multiplexed session over a fake connection, whatever the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mtt.errors import PeerError
from mtt.layers.mux import ANSWERS_LIMIT
from tests.support.transports import FakeLayer, Recorder, turns


class SessionSide:
    """A session and everything that happened to it; subclasses make the session."""

    session: Any
    decoder: Callable[[], Any]  # of the protocol's frames

    def __init__(self) -> None:
        self.uppers: list[Recorder] = []  # of the streams that the peer opened
        self.lost: list[Exception | None] = []

    def connect(self, *, half_close: bool = False) -> None:
        self.lower = FakeLayer(self.session, half_close=half_close)
        self.session.connection_made(self.lower)

    def on_accept(self) -> Recorder:
        self.uppers.append(Recorder())
        return self.uppers[-1]

    def on_lost(self, session: Any, exc: Exception | None) -> None:
        assert session is self.session
        self.lost.append(exc)

    def feed(self, *frames: bytes) -> None:
        self.session.data_received(b"".join(frames))

    def said(self) -> list[tuple[int, int, bytes]]:
        """The frames that the session has sent since the last time."""
        return [(*event[:2], bytes(event[2])) for event in self.decoder().feed(self.lower.take())]

    async def over(self) -> None:
        self.session.abort()
        await turns()
        assert all(upper.lost for upper in self.uppers)


async def check_unread_answers_are_bounded(server: SessionSide, request: bytes) -> None:
    """A peer may ask for ever if it reads the answers, else the session fails in the end."""
    flood = request * 1000
    for _ in range(2 * ANSWERS_LIMIT // len(flood)):  # read, all of them
        server.session.pause_writing()
        server.feed(flood)
        server.session.resume_writing()
    await turns()
    assert not server.lost
    server.lower.take()
    server.session.pause_writing()
    while not server.lost:
        server.feed(flood)
        await turns(1)
        assert len(server.lower.sent) < ANSWERS_LIMIT + 2 * len(flood)
    assert isinstance(server.lost[0], PeerError)
    assert server.lower.aborted
    await turns()
