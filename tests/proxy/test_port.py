"""The proxy port on real sockets: SOCKS and HTTP clients, logins and failures."""

from __future__ import annotations

import asyncio
import base64
import logging
import random

import pytest

from mtt.errors import Cause, DestinationError, MttError, NetworkError, PeerError
from mtt.layers.base import StreamTransport
from mtt.outcome import Outcome
from mtt.proxy.port import Route
from mtt.users.user import User
from mtt.wire.http1 import MAX_HEAD
from tests.proxy.clients import (
    FAILURE4,
    IP,
    NAME,
    TUNNELS,
    USER,
    http_connect,
    in_every_protocol,
    reply5,
    socks4,
    socks4a,
    socks5,
    socks5_login,
)
from tests.proxy.direct import direct_proxy
from tests.support.tunnels import Tcp, connect, echo, listening, port_of, serving


@in_every_protocol
async def test_tunnel_with_step_by_step_handshake(name: str) -> None:
    async with serving(echo) as destination, direct_proxy() as proxy:
        said, answer = TUNNELS[name](destination.port)
        async with await connect(port_of(proxy)) as client:
            await client.send(said)
            assert await client.exactly(len(answer)) == answer
            await client.check_echo(b"hello")
            await client.finish()
            assert await client.rest() == b""
        host = NAME if name in ("socks5-name", "socks4a", "http") else IP
        assert proxy.asked == [(host, destination.port)]
        assert proxy.proxy.pending == 0


@in_every_protocol
async def test_tunnel_with_pipelined_handshake(name: str) -> None:
    payload = random.Random(1).randbytes(300_000)
    async with serving(echo) as destination, direct_proxy() as proxy:
        said, answer = TUNNELS[name](destination.port)
        async with await connect(port_of(proxy)) as client:
            sending = asyncio.create_task(client.send(said + payload))
            assert await client.exactly(len(answer) + len(payload)) == answer + payload
            await sending
            await client.finish()
            assert await client.rest() == b""


@in_every_protocol
async def test_handshake_byte_by_byte(name: str) -> None:
    async with serving(echo) as destination, direct_proxy() as proxy:
        said, answer = TUNNELS[name](destination.port)
        async with await connect(port_of(proxy)) as client:
            for byte in said + b"hello":
                await client.send(bytes([byte]))
                await asyncio.sleep(0)
            assert await client.exactly(len(answer) + 5) == answer + b"hello"


@in_every_protocol
async def test_success_is_sent_after_the_dial(name: str) -> None:
    async with listening() as destination, direct_proxy() as proxy:
        proxy.gate.clear()
        said, answer = TUNNELS[name](destination.port)
        async with await connect(port_of(proxy)) as client:
            await client.send(said + b"early")
            if name.startswith("socks5"):
                assert await client.exactly(2) == answer[:2]
                answer = answer[2:]
            while not proxy.asked:
                await asyncio.sleep(0)
            client.sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.sock.recv(1)
            proxy.gate.set()
            there = await destination.accept()
            assert await there.exactly(5) == b"early"
            assert await client.exactly(len(answer)) == answer


@in_every_protocol
async def test_server_first_protocol_and_early_half_close(name: str) -> None:
    async def speak(connection: Tcp) -> None:
        await connection.send(b"welcome")
        assert await connection.rest() == b"bye"
        await connection.finish()

    async with serving(speak) as destination, direct_proxy() as proxy:
        said, answer = TUNNELS[name](destination.port)
        async with await connect(port_of(proxy)) as client:
            await client.send(said + b"bye")
            await client.finish()
            assert await client.rest() == answer + b"welcome"


async def test_client_lost_during_dial_cancels_the_dial() -> None:
    async with listening() as destination, direct_proxy() as proxy:
        proxy.gate.clear()
        client = await connect(port_of(proxy))
        await client.send(socks5(destination.port)[0])
        while not proxy.asked:
            await asyncio.sleep(0)
        client.reset()
        while proxy.tunnels:
            await asyncio.sleep(0)
        assert destination.count == 0


# Failures.

FAILURES: list[tuple[MttError, int, bytes]] = [
    (DestinationError(Outcome.GENERAL_FAILURE), 1, b"502"),
    (DestinationError(Outcome.NOT_ALLOWED), 2, b"403"),
    (DestinationError(Outcome.NETWORK_UNREACHABLE), 3, b"502"),
    (DestinationError(Outcome.HOST_UNREACHABLE), 4, b"502"),
    (DestinationError(Outcome.CONNECTION_REFUSED), 5, b"502"),
    (DestinationError(Outcome.TIMED_OUT), 6, b"504"),
    # A refusal by the *server* says nothing about the destination.
    (NetworkError("cannot connect to proxy.example:443: connection refused"), 1, b"502"),
    (NetworkError("no tunnel after 10 s", cause=Cause.TIMEOUT), 6, b"504"),
    (PeerError("the server closed the session"), 1, b"502"),
]


@pytest.mark.parametrize(("error", "code", "status"), FAILURES)
async def test_reply_codes_of_failures(error: MttError, code: int, status: bytes) -> None:
    async with direct_proxy() as proxy:
        proxy.error = error
        for request in (socks5, socks4, socks4a, http_connect):
            async with await connect(port_of(proxy)) as client:
                said, _ = request(1)
                await client.send(said + b"what the destination should have got")
                answer = await client.rest()
                if request is socks5:
                    assert answer == b"\5\0" + reply5(code)
                elif request is http_connect:
                    assert answer.startswith(b"HTTP/1.1 " + status)
                    assert b"\r\nConnection: close\r\n" in answer
                    assert b"Content-Length: " in answer
                else:
                    assert answer == FAILURE4


async def test_connection_refused() -> None:
    async with direct_proxy() as proxy, listening() as destination:
        port = destination.port
        destination.close()
        async with await connect(port_of(proxy)) as client:
            await client.send(socks5(port)[0])
            assert (await client.rest())[:4] == b"\5\0\5\5"


async def test_server_failures_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with direct_proxy() as proxy:
        for error in (DestinationError(Outcome.CONNECTION_REFUSED), NetworkError("no server")):
            proxy.error = error
            async with await connect(port_of(proxy)) as client:
                await client.send(socks5(1)[0])
                await client.rest()
    lines = [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert lines[0].endswith(": no server")


REFUSED = {
    "methods": (b"\5\1\2", b"\5\xff"),
    "no methods": (b"\5\0", b"\5\xff"),
    "bind": (b"\5\1\0" b"\5\2\0\1\0\0\0\0\0\0", b"\5\0" + reply5(7)),
    "udp": (b"\5\1\0" b"\5\3\0\1\0\0\0\0\0\0", b"\5\0" + reply5(7)),
    "command": (b"\5\1\0" b"\5\xff\0\1\0\0\0\0\0\0", b"\5\0" + reply5(7)),
    "address type": (b"\5\1\0" b"\5\1\0\2", b"\5\0" + reply5(8)),
    "empty name": (b"\5\1\0" b"\5\1\0\3\0\0\x50", b"\5\0" + reply5(1)),
    "a name with a line break": (b"\5\1\0" b"\5\1\0\3\3a\nb\0\x50", b"\5\0" + reply5(1)),
    "bind 4": (b"\4\2\0\x50\1\2\3\4\0", FAILURE4),
    "long user": (b"\4\1\0\x50\1\2\3\4" + b"u" * 256, FAILURE4),
    "tls": (b"\x16\3\1\2\0\1\0\1\xfc\3\3", b""),
    "socks 6": (b"\6", b""),
    "not a proxy's": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 400 Bad Request: this is"),
    "no http": (b"hello\r\n", b"HTTP/1.1 400 Bad Request\r\n"),
    "much, and no http": (b"hello\r\n" + b"a" * MAX_HEAD, b"HTTP/1.1 400 Bad Request\r\n"),
    "http 2": (b"PRI * HTTP/2.0\r\n", b"HTTP/1.1 505 "),
    "large": (b"GET http://a/ HTTP/1.1\r\nX: " + b"a" * MAX_HEAD, b"HTTP/1.1 431 "),
    "smuggled": (
        b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 400 ",
    ),
    "chunk": (
        b"POST http://a/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n",
        b"HTTP/1.1 400 ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_requests(name: str, caplog: pytest.LogCaptureFixture) -> None:
    said, answer = REFUSED[name]
    async with direct_proxy() as proxy:
        async with await connect(port_of(proxy)) as client:
            await client.send(said)
            got = await client.rest()
        assert got[: len(answer) if answer.startswith(b"HTTP") else None] == answer
        assert proxy.asked == []
        assert proxy.proxy.pending == 0
    (line,) = (line for line in caplog.records if line.levelno >= logging.WARNING)
    assert line.getMessage().startswith("127.0.0.1:")


# Users.


@pytest.mark.parametrize("users", [[USER], [User("other", "pw"), USER, User("third", "")]])
async def test_valid_login(users: list[User]) -> None:
    async with serving(echo) as destination, direct_proxy(users=users) as proxy:
        authorization = "Proxy-Authorization: Basic dXNlcjpww6Rzc3dvcmQ="
        for said, answer in (
            socks5_login(destination.port),
            http_connect(destination.port, NAME, authorization),
        ):
            async with await connect(port_of(proxy)) as client:
                await client.send(said + b"hello")
                assert await client.exactly(len(answer) + 5) == answer + b"hello"


@pytest.mark.parametrize("user", [User("user", "passw0rd"), User("", ""), User("x", "pässword")])
async def test_invalid_login(user: User, caplog: pytest.LogCaptureFixture) -> None:
    async with direct_proxy(users=[USER]) as proxy:
        async with await connect(port_of(proxy)) as client:
            await client.send(socks5_login(1, user)[0])
            assert await client.rest() == b"\5\2\1\1"
        for said, answer in (socks4(1), socks4a(1)):
            async with await connect(port_of(proxy)) as client:
                await client.send(said)
                assert await client.rest() == b"\0\x5b" + answer[2:]
        async with await connect(port_of(proxy)) as client:
            await client.send(socks5(1)[0])
            assert await client.rest() == b"\5\xff"
        assert proxy.asked == []
    assert not user.password or user.password not in caplog.text


async def test_http_clients_get_a_login_challenge() -> None:
    async with direct_proxy(users=[USER]) as proxy:
        wrong = "Proxy-Authorization: Basic dXNlcjpwYXNz"
        for said in (
            http_connect(1)[0],
            http_connect(1, NAME, wrong)[0],
            b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        ):
            async with await connect(port_of(proxy)) as client:
                await client.send(said)
                answer = await client.rest()
                assert answer.startswith(b"HTTP/1.1 407 Proxy Authentication Required\r\n")
                assert b"\r\nProxy-Authenticate: Basic " in answer
        assert proxy.asked == []


# Routes: users and where their connections go.

BASIC = {
    user: "Proxy-Authorization: Basic " + base64.b64encode(f"{user}:pw".encode()).decode()
    for user in ("ada", "bob", "eve")
}


async def test_each_user_has_a_route() -> None:
    async with serving(echo) as destination, direct_proxy() as proxy:
        port = proxy.proxy
        opened: list[str] = []

        def route_of(user: str) -> Route:
            async def open(near: StreamTransport, host: str, number: int) -> StreamTransport:
                opened.append(f"{user} from {near.get_extra_info('peername')[0]}")
                return await proxy._open(near, host, number)

            return Route(open)

        routes = {user.encode(): route_of(user) for user in ("ada", "bob")}
        port.route = None
        port.login = lambda _, user, password: routes.get(user) if password == b"pw" else None
        said, answer = http_connect(destination.port, NAME, BASIC["ada"])
        async with await connect(port_of(proxy)) as client:
            await client.send(said)
            assert await client.exactly(len(answer)) == answer
        said, answer = socks5_login(destination.port, User("bob", "pw"))
        async with await connect(port_of(proxy)) as client:
            await client.send(said)
            assert await client.exactly(len(answer)) == answer
        async with await connect(port_of(proxy)) as client:
            await client.send(http_connect(destination.port, NAME, BASIC["eve"])[0])
            assert (await client.rest()).startswith(b"HTTP/1.1 407 ")
        assert opened == ["ada from 127.0.0.1", "bob from 127.0.0.1"]


async def test_login_is_optional_on_an_open_port_with_users() -> None:
    async with serving(echo) as destination, direct_proxy(users=[USER]) as proxy:
        login = proxy.proxy.login
        assert login is not None
        proxy.proxy.route = Route(proxy._open)
        for said, answer in (
            socks5(destination.port),
            socks5_login(destination.port),
            socks4(destination.port),
            http_connect(destination.port),
        ):
            async with await connect(port_of(proxy)) as client:
                await client.send(said)
                assert await client.exactly(len(answer)) == answer
