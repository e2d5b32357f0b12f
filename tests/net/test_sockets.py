from __future__ import annotations

import errno
import socket
from typing import Any

import pytest

from mtt.net.sockets import source_address


def test_source_address_towards_a_peer() -> None:
    assert source_address(("127.0.0.1", 443)) == "127.0.0.1"
    if socket.has_ipv6:
        assert source_address(("::1", 443, 0, 0)) in ("::1", None)  # None: IPv6 is switched off


def test_source_address_without_a_route(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_address("/run/a.sock") is None
    assert source_address(None) is None

    class Unreachable(socket.socket):
        def connect(self, address: Any) -> None:
            raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(socket, "socket", Unreachable)
    assert source_address(("192.0.2.1", 443)) is None
