"""Detection of mux in WebSockets without a subprotocol: by the first bytes, or without any."""

from __future__ import annotations

from typing import Any

import pytest

from mtt.inbound.mux_cool_detector import FIRST_TIME, MuxCoolDetector
from mtt.wire.mux_cool import is_plugin_head, new
from tests.support.clock import Clock
from tests.support.transports import FakeLayer, turns


class Detected:
    """A detector on a fake WebSocket, and what it has said."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.known: list[tuple[Any, bool]] = []
        self.lost: list[Any] = []
        self.detector = MuxCoolDetector(
            is_plugin_head,
            waiting=self.waiting.append,
            known=lambda transport, is_mux: self.known.append((transport, is_mux)),
            lost=self.lost.append,
        )
        self.lower = FakeLayer(self.detector)
        self.detector.connection_made(self.lower)
        assert self.waiting == [self.lower]

    def feed(self, data: bytes) -> None:
        self.detector.data_received(data)

    @property
    def answer(self) -> bool | None:
        if not self.known:
            return None
        ((transport, is_mux),) = self.known
        assert transport is self.lower
        return is_mux


@pytest.mark.parametrize(("data", "is_mux"), [(new(1) + b"more", True), (b"\0\x0cplain", False)])
@pytest.mark.parametrize("bytewise", [False, True])
async def test_data_decides(
    data: bytes, is_mux: bool, bytewise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    detected = Detected()
    fed = b""
    for piece in [data[at : at + 1] for at in range(len(data))] if bytewise else [data]:
        detected.feed(piece)
        fed += piece
        if detected.answer is not None:
            break
    assert detected.answer is is_mux
    assert detected.detector.early == fed  # for the next protocol
    assert not detected.lower.reading
    assert detected.detector.is_settled
    assert not clock.pending
    detected.feed(b"on its way")
    assert detected.detector.early == fed + b"on its way"


@pytest.mark.parametrize("data", [b"", new(1)[:5]])
async def test_silence_means_a_plain_stream(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    detected = Detected()
    if data:
        detected.feed(data)
    await clock.passes(FIRST_TIME - 0.1)
    assert detected.answer is None
    await clock.passes(0.2)
    assert detected.answer is False
    assert detected.lower.reading is not bool(data)
    detected.feed(b"first")
    assert detected.detector.early == data + b"first"
    assert not detected.lower.reading


async def test_end_means_a_plain_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    detected = Detected()
    assert detected.detector.eof_received()
    assert detected.answer is False
    assert detected.detector.eof
    assert not clock.pending


async def test_loss_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    detected = Detected()
    detected.lower.lose(ConnectionResetError())
    await turns()
    assert detected.lost == [detected.lower]
    assert detected.answer is None
    assert not clock.pending
    settled = Detected()
    settled.feed(b"plain")
    settled.lower.lose(None)
    await turns()
    assert settled.lost == []
