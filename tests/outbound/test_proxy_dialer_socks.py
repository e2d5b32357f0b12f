"""Connections through SOCKS5 proxies, and through HTTP proxies in TLS."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from mtt.address import Endpoint
from mtt.errors import MttError, PeerError, RefusedError
from mtt.net.dial import Dialer
from mtt.net.resolve import Resolver
from mtt.options.proxy import HTTPS, SOCKS5, ProxyServer
from mtt.outbound.proxy_dialer import ProxyDialer
from mtt.wire import addresses
from tests.outbound.test_proxy_dialer import OK, SERVER, Names, failure_of
from tests.support.certs import Certs
from tests.support.contexts import bare_context
from tests.support.transports import Recorder
from tests.support.tunnels import SOON, Tcp, serving


@dataclass
class SocksProxy:
    """Answers with `answers`, one for each message of the client, and then echoes."""

    answers: list[bytes]
    port: int = 0
    received: list[bytes] = field(default_factory=list)

    async def serve(self, connection: Tcp) -> None:
        for answer in self.answers:
            self.received.append(await connection.read())
            await connection.send(answer)
        while data := await connection.read():
            await connection.send(data)

    def dialer(self, login: tuple[str, str] | None = None) -> ProxyDialer:
        address = Endpoint(("127.0.0.1",), self.port)
        return ProxyDialer(Dialer(Resolver()), ProxyServer(address, login, scheme=SOCKS5))


@contextlib.asynccontextmanager
async def socks_at(*answers: bytes) -> AsyncIterator[SocksProxy]:
    proxy = SocksProxy(list(answers))
    async with asyncio.timeout(SOON), serving(proxy.serve) as there:
        proxy.port = there.port
        yield proxy


@pytest.mark.parametrize("host", ["server.test", "b\u00fccher.example", "2001:db8::1%eth0"])
async def test_socks_proxy_gets_the_name(host: str) -> None:
    answers = b"\x05\x02", b"\x01\0", b"\x05\0\0\x01" + bytes(6)
    async with socks_at(*answers) as proxy:
        protocol = Recorder()
        dialer = proxy.dialer(("user", "p\u00e4ss"))
        transport = await dialer.connect(Endpoint((host,), 443), lambda: protocol)
        transport.write(b"hello")
        assert await protocol.received(5) == b"hello"
        transport.abort()
    ascii_host = {"b": "xn--bcher-kva.example", "2": "2001:db8::1"}.get(host[0], host)
    assert proxy.received == [
        b"\x05\x02\0\x02",
        b"\x01\x04user\x05p\xc3\xa4ss",
        b"\x05\x01\0" + addresses.encode(ascii_host, 443),
    ]


@pytest.mark.parametrize(
    ("answers", "login", "error", "text"),
    [
        ([b"\x05\xff"], None, RefusedError, "wants a user and a password; give them in -proxy"),
        ([b"\x05\xff"], ("u", "p"), RefusedError, "does not accept the user and the password of"),
        ([b"\x05\x02", b"\x01\x01"], ("u", "p"), RefusedError, "does not accept the user and"),
        ([b"\x05\0", b"\x05\x05\0\x01" + bytes(6)], None, PeerError, ": connection refused"),
        ([b"\x05\0", b"\x05\x02\0\x01" + bytes(6)], None, PeerError, ": not allowed"),
        ([b"HTTP/1.1 400 Bad Request\r\n"], None, PeerError, ": it does not speak SOCKS5"),
        ([b"\x05\0", b"\x05\0\0\x01" + bytes(6) + b"x"], None, PeerError, "data behind its answer"),
    ],
)  # fmt: skip
async def test_failures_of_socks_proxies(
    answers: list[bytes], login: tuple[str, str] | None, error: type[MttError], text: str
) -> None:
    async with socks_at(*answers) as proxy:
        failure = await failure_of(proxy.dialer(login))
    assert isinstance(failure, error)
    assert text in str(failure)
    assert f"the proxy 127.0.0.1:{proxy.port}" in str(failure)


@contextlib.asynccontextmanager
async def https_proxy(certs: Certs) -> AsyncIterator[tuple[int, list[bytes]]]:
    """An HTTP proxy in asyncio's TLS, which connects to an echo; its port and the requests."""
    requests = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(OK)
            while data := await reader.read(1000):
                writer.write(data)
        writer.close()

    context = bare_context(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certs.cert, certs.key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1], requests


async def test_http_proxy_in_tls(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certs.ca)
    async with asyncio.timeout(SOON), https_proxy(certs) as (port, requests):
        proxy = ProxyServer(Endpoint((certs.name,), port), scheme=HTTPS)
        protocol = Recorder()
        transport = await ProxyDialer(Dialer(Names()), proxy).connect(SERVER, lambda: protocol)
        assert transport.get_extra_info("ssl_object") is not None
        transport.write(b"hello")
        assert await protocol.received(5) == b"hello"
        transport.close()
        await protocol.ended()
        assert requests == [b"CONNECT server.test:443 HTTP/1.1\r\nHost: server.test:443\r\n\r\n"]


async def test_certificate_of_the_proxy_is_verified(certs: Certs) -> None:
    # asyncio's server reports the handshake that fails.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with asyncio.timeout(SOON), https_proxy(certs) as (port, requests):
        proxy = ProxyServer(Endpoint((certs.name,), port), ("user", "secret"), scheme=HTTPS)
        error = await failure_of(ProxyDialer(Dialer(Names()), proxy))
        assert "through the proxy" in str(error)
        assert "certificate not accepted" in str(error)
        assert not requests
