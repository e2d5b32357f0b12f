"""Fixtures for tests of UDP."""

from __future__ import annotations

import socket

import pytest


@pytest.fixture
def refused_udp_port() -> int:
    """A port of 127.0.0.1 on which nothing listens for UDP.

    Below the range from which Linux takes ports of its own choice, so that it stays free.
    """
    for port in range(31_000, 20_000, -1):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")
