"""The beginning of a connection: TLS or not, and ALPN names of which none is the server's."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from mtt.http.tls_detector import MAX_READS, TlsDetector
from mtt.layers.tls import TlsLayer
from mtt.trust.certificates import server_context
from mtt.trust.tls_options import ServerTls
from tests.support.certs import Certs
from tests.support.contexts import bare_context
from tests.support.transports import FakeTransport, Recorder, turns


class Tls:
    """Takes what comes, instead of OpenSSL."""

    def __init__(self) -> None:
        self.received = b""
        self.errors: list[Exception] = []

    def connection_made(self, transport: Any) -> None:
        pass

    def data_received(self, data: bytes) -> None:
        self.received += data

    def detach(self, error: Exception) -> None:
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
    detector = TlsDetector(tls, alpn=(), on_plain=lambda _, received: plain.append(received))
    detector.connection_made(FakeTransport(detector))
    detector.data_received(said)
    assert (tls.received, plain) == ((said, []) if is_tls else (b"", [said]))
    assert len(tls.errors) == (not is_tls)


@pytest.mark.parametrize(
    ("pieces", "is_judged"), [(1, True), (2, True), (MAX_READS, True), (MAX_READS + 1, False)]
)
async def test_hello_with_other_alpn_names_may_come_in_pieces(
    pieces: int, is_judged: bool, certs: Certs
) -> None:
    context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=certs.name).do_handshake()
    hello = outgoing.read()
    site, _ = server_context(ServerTls(cert=certs.cert, key=certs.key, alpn=("http/1.1",)))
    tls = TlsLayer(Recorder(), site, server_side=True)
    transport = FakeTransport()
    detector = TlsDetector(tls, alpn=[b"http/1.1"], on_plain=lambda *_: None)
    transport.set_protocol(detector)
    detector.connection_made(transport)
    for at in range(pieces):
        piece = hello[at:] if at == pieces - 1 else hello[at : at + 1]
        transport.get_protocol().data_received(piece)
    assert (transport.sent == bytes.fromhex("15 03 03 00 02 02 78")) == is_judged
    tls.abort()
    await turns()
