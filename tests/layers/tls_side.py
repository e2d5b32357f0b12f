"""Sides of TLS connections: layers, and a peer whose every record is under control."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any, Self

import pytest

from mtt.layers.reads import READ_SIZE
from mtt.layers.tls import TlsLayer
from tests.support.certs import Certs
from tests.support.stacks import Stack, client_context, server_context
from tests.support.transports import FakeTransport, Recorder, turns

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
both_versions = pytest.mark.parametrize("version", [V12, V13], ids=["1.2", "1.3"])


def stack(version: ssl.TLSVersion) -> Stack:
    """TLS alone, at both ends of a TCP connection."""
    return Stack("tls", ("tls",), version=version)


class Peer:
    """A TLS client made of nothing but OpenSSL, against a server layer on a fake transport.

    Every record of either side is under control: what the layer wrote is in `transport`, what
    the peer wants to say comes out of `say()` and goes in with `feed()`.
    """

    def __init__(
        self,
        certs: Certs,
        version: ssl.TLSVersion,
        *,
        half_close: bool = True,
        alpn: str | None = "x",
        keylog: str = "",
    ) -> None:
        names = [alpn] if alpn else None
        self.recorder = Recorder()
        self.layer = TlsLayer(
            self.recorder,
            server_context(certs, version, names),
            server_side=True,
            half_close=half_close,
        )
        self.transport = FakeTransport(self.layer)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = client_context(certs, version, names)
        if keylog:
            context.keylog_filename = keylog
        self.ssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname=certs.name)
        self.layer.connection_made(self.transport)
        for _ in range(3):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.ssl.do_handshake()
            self.feed(self._outgoing.read())
            self._incoming.write(self.transport.take())
        self.ssl.do_handshake()
        assert self.recorder.transport is self.layer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.abort()
        await turns()

    def feed(self, data: bytes) -> None:
        for at in range(0, len(data), READ_SIZE):
            self.layer.data_received(data[at : at + READ_SIZE])

    def say(self, data: bytes) -> bytes:
        """`data` encrypted."""
        view = memoryview(data)
        while view:
            view = view[self.ssl.write(view) :]
        return self._outgoing.read()

    def end(self) -> bytes:
        """close_notify."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.ssl.unwrap()
        return self._outgoing.read()

    def heard(self) -> bytes:
        """What the layer has said so far; raises SSLError for an alert."""
        self._incoming.write(self.transport.take())
        data = b""
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while piece := self.ssl.read(65536):
                data += piece
        return data


def server(certs: Certs, **options: Any) -> tuple[TlsLayer, Recorder]:
    """A server's layer, and the protocol above it."""
    recorder = Recorder()
    context = options.pop("context", None) or server_context(certs)
    return TlsLayer(recorder, context, server_side=True, **options), recorder


def client(certs: Certs, **options: Any) -> tuple[TlsLayer, Recorder]:
    """A client's layer, and the protocol above it."""
    recorder = Recorder()
    context = options.pop("context", None) or client_context(certs)
    name = options.pop("server_name", certs.name)
    return TlsLayer(recorder, context, server_side=False, server_name=name, **options), recorder
