"""Fixtures for tests of whole tunnels."""

from __future__ import annotations

import socket

import pytest

from mtt.layers import linger
from mtt.net import dial, listen
from mtt.net.sockets import tune
from mtt.tunnels import relay
from tests.support.tunnels import SMALL, shrink


@pytest.fixture
def short_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that end tunnels and are not about how long that takes."""
    monkeypatch.setattr(relay, "QUIET_TIME", 0.2)
    monkeypatch.setattr(relay, "END_TIME", 0.2)
    monkeypatch.setattr(relay, "QUIET_INTERVALS", (0.05, 0.05))


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests with peers that stay where ours would close."""
    monkeypatch.setattr(linger, "LINGER_TIME", 0.2)
    monkeypatch.setattr(linger, "TICK", 0.05)


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the kernel from buffering megabytes for every connection."""

    def tune_and_shrink(sock: socket.socket, **options: bool) -> None:
        tune(sock, **options)
        shrink(sock, SMALL)

    for module in (dial, listen):
        monkeypatch.setattr(module, "tune", tune_and_shrink)
