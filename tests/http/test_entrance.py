"""The first byte of a connection: what is TLS, and what is for the web server without it."""

from __future__ import annotations

from typing import Any

import pytest

from mtt.http.entrance import Entrance
from tests.support.transports import FakeTransport


class Tls:
    """Takes what comes, instead of OpenSSL."""

    def __init__(self) -> None:
        self.received = b""
        self.errors: list[Exception] = []

    def connection_made(self, transport: Any) -> None:
        pass

    def data_received(self, data: bytes) -> None:
        self.received += data

    def give_up(self, error: Exception) -> None:
        self.errors.append(error)


@pytest.mark.parametrize(
    ("said", "is_tls"),
    [
        (b"\x16\x03\x01", True),
        (b"\x80\x2e\x01\x03\x01", True),  # SSLv2, by whose length nginx and OpenSSL know it
        (b"\xff", True),
        (b"GET / HTTP/1.1\r\n", False),
        (b"\x00", False),
        (b"\x15\x03\x01\x00\x02\x02\x28", False),
        (b"\x7f", False),
    ],
)
async def test_first_byte_tells_tls_from_the_rest(said: bytes, is_tls: bool) -> None:
    tls: Any = Tls()
    plain: list[bytes] = []
    entrance = Entrance(tls, alpn=(), on_plain=lambda transport, received: plain.append(received))
    entrance.connection_made(FakeTransport(entrance))
    entrance.data_received(said)
    assert (tls.received, plain) == ((said, []) if is_tls else (b"", [said]))
    assert len(tls.errors) == (not is_tls)
