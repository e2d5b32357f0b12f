"""Connections through a proxy, which is a script on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from mtt.address import Endpoint
from mtt.errors import Cause, MttError, NetworkError, PeerError, RefusedError
from mtt.layers.base import StreamProtocol, StreamTransport
from mtt.layers.connect import ConnectClient
from mtt.net.dial import Dialer, ProtocolFactory
from mtt.net.resolve import Address, Resolver
from mtt.observe.metrics import Counters
from mtt.options.proxy import ProxyServer
from mtt.outbound import proxy_dialer
from mtt.outbound.connector import Connector
from mtt.outbound.proxy_dialer import ProxyDialer
from mtt.outcome import Outcome
from mtt.trust.tls_options import ClientTls
from mtt.wire.http1 import MAX_REASON
from tests.support.loopback import black_hole
from tests.support.transports import FakeTransport, Recorder, turns
from tests.support.tunnels import SOON, Tcp, serving

SERVER = Endpoint(("server.test",), 443)
OK = b"HTTP/1.1 200 Connection established\r\n\r\n"


@dataclass
class Proxy:
    """A proxy that answers each request with the next script, and then echoes.

    A script is what to send; None sends nothing. `ended`: how many connections the client ended.
    """

    answers: list[bytes | None]
    port: int = 0
    requests: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    ended: int = 0

    async def serve(self, connection: Tcp) -> None:
        head = (await connection.until(b"\r\n\r\n")).decode()
        self.heads.append(head)
        self.requests.append(head.partition("\r\n")[0])
        answer = self.answers.pop(0)
        try:
            if answer:
                await connection.send(answer)
            while data := await connection.read():
                await connection.send(data)
        finally:
            self.ended += 1

    def dialer(self, login: tuple[str, str] | None = None, option: str = "-proxy") -> ProxyDialer:
        address = Endpoint(("127.0.0.1",), self.port)
        return ProxyDialer(Dialer(Resolver()), ProxyServer(address, login, option))


@contextlib.asynccontextmanager
async def proxy_at(*answers: bytes | None) -> AsyncIterator[Proxy]:
    proxy = Proxy(list(answers))
    async with asyncio.timeout(SOON), serving(proxy.serve) as there:
        proxy.port = there.port
        yield proxy
        while proxy.ended < len(proxy.requests):  # every connection is closed, also after a failure
            await asyncio.sleep(0.01)


async def failure_of(dialer: ProxyDialer, server: Endpoint = SERVER) -> MttError:
    """The error of an attempt that does not create the protocol."""

    def make() -> StreamProtocol:
        raise AssertionError("not connected")

    with pytest.raises(MttError) as caught:
        await dialer.connect(server, make)
    return caught.value


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.0 200 OK\r\nProxy-Agent: x\r\n\r\n",
        b"HTTP/1.1 204 No Content\n\n",
        # RFC 9110, 9.3.6: the client ignores both headers in a 2xx answer to CONNECT.
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" + OK,
    ],
)
async def test_protocol_gets_the_connection(answer: bytes) -> None:
    async with proxy_at(answer) as proxy:
        protocol = Recorder()
        transport = await proxy.dialer().connect(SERVER, lambda: protocol)
        assert protocol.transport is transport
        transport.write(b"hello")
        assert await protocol.received(5) == b"hello"
        transport.abort()
    assert proxy.heads == ["CONNECT server.test:443 HTTP/1.1\r\nHost: server.test:443\r\n\r\n"]


async def test_login_is_sent() -> None:
    async with proxy_at(OK) as proxy:
        transport = await proxy.dialer(("user", "p:\u00e4")).connect(SERVER, Recorder)
        transport.abort()
    assert "\r\nProxy-Authorization: Basic dXNlcjpwOsOk\r\n" in proxy.heads[0]


@pytest.mark.parametrize(
    ("host", "sent"),
    [("2001:db8::1", "[2001:db8::1]"), ("b\u00fccher.example", "xn--bcher-kva.example")],
)
async def test_proxy_gets_hosts_as_they_are(host: str, sent: str) -> None:
    async with proxy_at(OK) as proxy:
        transport = await proxy.dialer().connect(Endpoint((host,), 443), Recorder)
        transport.abort()
    assert proxy.requests == [f"CONNECT {sent}:443 HTTP/1.1"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", "403 Forbidden"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "502 Bad Gateway"),
        (b"HTTP/1.1 503\r\n\r\n", "503"),
        (b"HTTP/1.1 503 " + 4000 * b"x" + b"\r\n\r\n", "503 " + MAX_REASON * "x"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n", "302 Found"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "101 Switching Protocols"),
        (b"SSH-2.0-OpenSSH_9\r\n\r\n", "it does not speak HTTP: malformed status line"),
        (OK + b"\x15\x03\x01", "it sent data behind its answer"),
    ],
)
async def test_refusals_name_server_proxy_and_reason(answer: bytes, reason: str) -> None:
    async with proxy_at(answer) as proxy:
        error = await failure_of(proxy.dialer(("user", "secret")))
    assert isinstance(error, PeerError)
    assert str(error) == (
        f"cannot connect to server.test:443 through the proxy 127.0.0.1:{proxy.port}: {reason}"
    )
    assert error.cause is Cause.HTTP


@pytest.mark.parametrize("option", ["-proxy", "HTTPS_PROXY"])
@pytest.mark.parametrize("hosts", [("a.test",), ("a.test", "b.test")])
async def test_proxy_that_wants_a_login(hosts: tuple[str, ...], option: str) -> None:
    answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n"
    async with proxy_at(answer, answer) as proxy:
        missing = await failure_of(proxy.dialer(None, option), Endpoint(hosts, 443))
        wrong = await failure_of(proxy.dialer(("user", "secret"), option), Endpoint(hosts, 443))
    assert isinstance(missing, RefusedError)
    assert isinstance(wrong, RefusedError)
    name = f"the proxy 127.0.0.1:{proxy.port}"
    assert str(missing) == f"{name} wants a user and a password (407); give them in {option}"
    assert str(wrong) == f"{name} does not accept the user and the password of {option} (407)"
    assert len(proxy.requests) == 2  # another host would change nothing


async def test_proxy_resets_connection_after_its_answer() -> None:
    class Resetting(Dialer):
        async def connect(self, endpoint: Endpoint, factory: ProtocolFactory) -> StreamTransport:
            stream = FakeTransport(factory())
            stream.upper.connection_made(stream)
            stream.upper.data_received(OK)
            stream.lose(ConnectionResetError())
            await turns()
            return stream

    proxy = ProxyServer(Endpoint(("proxy.test",), 3128))
    error = await failure_of(ProxyDialer(Resetting(Resolver()), proxy))
    assert isinstance(error, NetworkError)
    assert str(error).endswith("proxy.test:3128: it closed the connection after its answer")
    assert error.cause is Cause.EOF


async def test_proxy_that_closes_the_connection() -> None:
    async def close(connection: Tcp) -> None:
        await connection.until(b"\r\n\r\n")

    async with asyncio.timeout(SOON), serving(close) as there:
        error = await failure_of(Proxy([], there.port).dialer())
    assert isinstance(error, NetworkError)
    assert str(error).endswith(f":{there.port}: it closed the connection without an answer")
    assert error.cause is Cause.EOF


async def test_silent_proxy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_dialer, "ANSWER_TIME", 0.1)
    async with proxy_at(None) as proxy:
        error = await failure_of(proxy.dialer())
    assert isinstance(error, NetworkError)
    assert str(error).endswith(f" 127.0.0.1:{proxy.port}: no answer within 0.1 s")
    assert (error.cause, error.outcome) == (Cause.TIMEOUT, Outcome.TIMED_OUT)


async def test_unreachable_proxy(refused_port: int) -> None:
    error = await failure_of(
        Proxy([], refused_port).dialer(), Endpoint(("a.test", "b.test"), 443)
    )
    assert isinstance(error, NetworkError)
    assert str(error) == (
        f"the proxy: cannot connect to 127.0.0.1:{refused_port}: connection refused"
    )
    assert error.outcome is Outcome.CONNECTION_REFUSED


async def test_hosts_are_tried_in_order() -> None:
    async with proxy_at(b"HTTP/1.1 502 Bad Gateway\r\n\r\n", OK) as proxy:
        server = Endpoint(("a.test", "::1", "c.test"), 443)
        transport = await proxy.dialer().connect(server, Recorder)
        transport.abort()
    assert proxy.requests == ["CONNECT a.test:443 HTTP/1.1", "CONNECT [::1]:443 HTTP/1.1"]


async def test_hosts_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_dialer, "ANSWER_TIME", 0.2)
    async with proxy_at(None, OK) as proxy:
        begin = time.monotonic()
        server = Endpoint(("a.test", "b.test"), 443)
        transport = await proxy.dialer().connect(server, Recorder)
        assert time.monotonic() - begin >= 0.1
        transport.abort()


async def test_failures_of_all_hosts_are_named() -> None:
    answers = b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"HTTP/1.1 403 Forbidden\r\n\r\n"
    async with proxy_at(*answers) as proxy:
        error = await failure_of(proxy.dialer(), Endpoint(("a.test", "b.test"), 443))
    assert str(error) == (
        f"cannot connect to a.test|b.test:443 through the proxy 127.0.0.1:{proxy.port}: "
        "502 Bad Gateway; 403 Forbidden"
    )


async def test_failures_leave_no_cycles() -> None:
    async with proxy_at(b"HTTP/1.1 502 Bad Gateway\r\n\r\n", None) as proxy:
        gc.collect()
        gc.disable()
        try:
            with contextlib.suppress(PeerError):
                await proxy.dialer().connect(SERVER, Recorder)
            await asyncio.sleep(0.01)
            found = [each for each in gc.get_objects() if isinstance(each, ConnectClient)]
        finally:
            gc.enable()
    assert not found


async def test_cancelled_attempt_closes_the_connection() -> None:
    async with proxy_at(None) as proxy:
        attempt = asyncio.create_task(proxy.dialer().connect(SERVER, Recorder))
        while not proxy.requests:
            await asyncio.sleep(0.01)
        attempt.cancel()
        await asyncio.wait([attempt])
        assert attempt.cancelled()


async def test_failing_protocol_factory_closes_the_connection() -> None:
    def fail() -> StreamProtocol:
        raise NotImplementedError

    async with proxy_at(OK) as proxy:
        with pytest.raises(NotImplementedError):
            await proxy.dialer().connect(SERVER, fail)


class Names(Resolver):
    """Knows only the proxy's name."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.forgotten: list[str] = []

    async def resolve(self, host: str, port: int) -> list[Address]:
        self.asked.append(host)
        return await super().resolve("127.0.0.1", port)

    def forget(self, host: str) -> None:
        self.forgotten.append(host)


async def test_only_the_name_of_the_proxy_is_looked_up() -> None:
    async with proxy_at(OK) as proxy:
        names = Names()
        address = Endpoint(("proxy.test",), proxy.port)
        dialer = ProxyDialer(Dialer(names), ProxyServer(address))
        transport = await dialer.connect(SERVER, Recorder)
        transport.abort()
        dialer.forget(SERVER)
    assert (names.asked, names.forgotten) == (["proxy.test"], ["proxy.test"])


# In a connector.


async def test_connector_counts_dial_failures_of_the_proxy(refused_port: int) -> None:
    counters = Counters()
    tls = ClientTls(server_name="server.test", skip_verify=True)
    async with proxy_at(b"HTTP/1.1 403 Forbidden\r\n\r\n", b"HTTP/1.1 407 No\r\n\r\n") as proxy:
        for dialer in (proxy.dialer(), proxy.dialer(), Proxy([], refused_port).dialer()):
            connector = Connector(SERVER, dialer, counters, tls)
            with pytest.raises(MttError, match=r"proxy 127|the proxy: "):
                await connector.connect()
            assert connector.connecting == 0
    assert counters.dial_failures == 3
    assert not any(counters.handshake_failures.values())


async def test_connector_limits_the_time_for_proxy_and_handshake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mtt.outbound.connector.DIAL_TIME", 0.2)
    tls = ClientTls(server_name="server.test", skip_verify=True)
    async with proxy_at(None) as proxy:
        with pytest.raises(NetworkError, match=r"no tunnel after 0\.2 s: not connected"):
            await Connector(SERVER, proxy.dialer(), Counters(), tls).connect()
    with black_hole() as (_, port), pytest.raises(
        NetworkError, match=r"no tunnel after 0\.2 s: not connected"
    ):
        await Connector(SERVER, Proxy([], port).dialer(), Counters(), tls).connect()


async def test_connector_without_tls_gets_a_parked_connection() -> None:
    async with proxy_at(OK) as proxy:
        transport = await Connector(SERVER, proxy.dialer(), Counters(), None).connect()
        protocol = Recorder()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        transport.write(b"hello")
        assert await protocol.received(5) == b"hello"
        transport.abort()


async def test_answer_that_is_not_tls_fails_the_handshake() -> None:
    tls = ClientTls(server_name="server.test", skip_verify=True)
    async with proxy_at(OK) as proxy:  # which echoes the hello
        with pytest.raises(PeerError, match=r"^server\.test:443: TLS: "):
            await Connector(SERVER, proxy.dialer(), Counters(), tls).connect()
