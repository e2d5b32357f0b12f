"""The server's HTTP side: on a transport in memory, then on sockets."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mtt.address import parse_endpoint
from mtt.http.limits import MAX_DISCARD, VISITORS
from mtt.http.server import HttpServer
from mtt.layers.base import Data, StreamProtocol, StreamTransport
from mtt.layers.reads import READ_SIZE
from mtt.net.listen import bind
from mtt.net.resolve import Resolver
from mtt.wire.http1 import MAX_HEAD, Reply, Request, parse_response, text_reply
from mtt.wire.servemux import ServeMux
from mtt.wire.upgrade import Upgrade, switching_protocols
from tests.support.clock import Clock
from tests.wire.test_http1 import WSS_VECTORS, handshake

GET = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n"
UPGRADE = handshake(WSS_VECTORS[0])[0]
PROTOCOLS = ("smux_on", "smux_off")
WS = ServeMux("/ws").route


class MemoryTransport(StreamTransport):
    """What an HttpServer sees of a connection, and what it did to it."""

    def __init__(self, protocol: Any) -> None:
        super().__init__()
        self.protocol = protocol
        self.sent = bytearray()
        self.reading = True
        self.closed = False
        self.clog = False  # the next write finds the peer not reading

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.sent += data
        if self.clog:
            self.clog = False
            self.protocol.pause_writing()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    @property
    def statuses(self) -> list[int]:
        """The status of each response so far; 0 stands for what has no Content-Length."""
        found, rest = [], bytes(self.sent)
        while rest:
            head, end, rest = rest.partition(b"\r\n\r\n")
            response = parse_response(head + end)
            found.append(response.status)
            length = response.first("content-length")
            rest = rest[int(length) :] if length else b""
        return found


class Connection:
    """An HttpServer on a `MemoryTransport`, and what it reported."""

    def __init__(self, pattern: str = "/ws", **options: Any) -> None:
        self.upgrades: list[tuple[Request, Upgrade]] = []
        self.failures: list[str] = []
        self.mux = ServeMux(pattern)
        self.routed: list[str] = []
        self.server = HttpServer(
            self.route,
            self.take,
            protocols=PROTOCOLS,
            on_failure=lambda error: self.failures.append(str(error)),
            **options,
        )
        self.transport = MemoryTransport(self.server)
        self.server.connection_made(self.transport)

    def route(self, request: Request) -> Reply | None:
        self.routed.append(request.target)
        return self.mux.route(request)

    def take(self, transport: asyncio.Transport, request: Request, upgrade: Upgrade) -> None:
        assert transport is self.transport
        transport.set_protocol(asyncio.Protocol())
        self.upgrades.append((request, upgrade))

    def send(self, *pieces: bytes) -> MemoryTransport:
        for piece in pieces:
            self.server.data_received(memoryview(piece))
        return self.transport

    async def gone(self) -> None:
        """Let the end of the connection arrive, as every connection has one."""
        if not self.transport.closed:
            self.transport.protocol.connection_lost(None)
        await asyncio.sleep(0)
        assert self.server._timer is None


def each_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# Answers.


@pytest.mark.parametrize("cut", [lambda data: [data], each_byte], ids=["whole", "bytewise"])
async def test_requests_are_answered_in_order(cut: Callable[[bytes], list[bytes]]) -> None:
    connection = Connection()
    head = b"HEAD /1 HTTP/1.1\r\nHost: a\r\n\r\n"
    sent = connection.send(*cut(GET + GET + b"GET //ws HTTP/1.1\nHost: a\n\n" + head)).sent
    assert connection.routed == ["/page", "/page", "//ws", "/1"]
    assert sent.count(b"HTTP/1.1 404 Not Found\r\n") == 3
    assert sent.count(b"HTTP/1.1 301 Moved Permanently\r\n") == 1
    assert sent.count(b"404 page not found\n") == 2
    assert sent.endswith(b"Content-Length: 19\r\n\r\n")
    assert not connection.transport.closed
    await connection.gone()
    assert connection.failures == []


async def test_an_answer_is_laid_out_as_by_go() -> None:
    connection = Connection()
    head, _, body = bytes(connection.send(GET).sent).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[:3] == [
        "HTTP/1.1 404 Not Found",
        "Content-Type: text/plain; charset=utf-8",
        "X-Content-Type-Options: nosniff",
    ]
    assert lines[3].startswith("Date: ") and lines[3].endswith(" GMT") and len(lines[3]) == 35
    assert lines[4:] == ["Content-Length: 19"]
    assert body == b"404 page not found\n"
    await connection.gone()


@pytest.mark.parametrize(
    "last",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (MAX_DISCARD + 1),
    ],
)
async def test_nothing_is_served_after_the_last_request(last: bytes) -> None:
    connection = Connection()
    connection.send(last + GET)
    assert len(connection.routed) == 1
    assert connection.transport.closed
    assert (b"Connection: close\r\n" in connection.transport.sent) is (b"HTTP/1.1" in last)
    await connection.gone()
    assert connection.failures == []


async def test_http_1_0_may_keep_the_connection() -> None:
    connection = Connection()
    request = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    sent = connection.send(request + request).sent
    assert sent.count(b"HTTP/1.0 404 Not Found\r\n") == 2
    assert sent.count(b"Connection: keep-alive\r\n") == 2
    await connection.gone()


@pytest.mark.parametrize("length", [0, 1, 1000, MAX_DISCARD])
async def test_bodies_are_dropped(length: int) -> None:
    connection = Connection()
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length
    data = post + b"x" * length + GET
    connection.send(*[data[i : i + READ_SIZE] for i in range(0, len(data), READ_SIZE)])
    assert connection.transport.statuses == [404, 404]
    assert len(connection.server._buffer) == 0
    await connection.gone()


# Upgrades.


@pytest.mark.parametrize("cut", [lambda data: [data], each_byte], ids=["whole", "bytewise"])
async def test_an_upgrade_hands_the_transport_over(cut: Callable[[bytes], list[bytes]]) -> None:
    connection = Connection("/")
    request, answer = handshake(WSS_VECTORS[0])
    connection.send(*cut(request))
    assert bytes(connection.transport.sent) == answer
    [(asked, upgrade)] = connection.upgrades
    assert asked.path == "/"
    assert answer == switching_protocols(upgrade.key, "smux_off")
    assert connection.transport.protocol is not connection.server
    assert not connection.transport.closed
    assert connection.server._timer is None
    await asyncio.sleep(0)
    assert connection.failures == []


async def test_an_upgrade_may_follow_other_requests() -> None:
    connection = Connection("/ws")
    at_path = UPGRADE.replace(b"GET / ", b"GET /ws ")
    sent = connection.send(GET + UPGRADE + at_path).sent
    assert sent.count(b"HTTP/1.1 404 ") == 2
    assert len(connection.upgrades) == 1


async def test_a_refused_upgrade_leaves_the_connection_open() -> None:
    connection = Connection("/")
    connection.send(UPGRADE.replace(b"Version: 13", b"Version: 8"))
    assert connection.transport.statuses == [400]
    assert b"Sec-Websocket-Version: 13\r\n" in connection.transport.sent
    assert len(connection.failures) == 1 and "Version" in connection.failures[0]
    connection.send(GET)
    assert connection.transport.statuses == [400, 400]
    assert len(connection.failures) == 1
    connection.send(UPGRADE)
    assert len(connection.upgrades) == 1


@pytest.mark.parametrize(
    "request_",
    [
        UPGRADE + b"\x82\x80\0\0\0\0",
        UPGRADE + GET,
        UPGRADE.replace(b"\r\n\r\n", b"\r\nContent-Length: 1\r\n\r\n"),
        UPGRADE.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
async def test_early_bytes_end_the_connection_without_an_answer(request_: bytes) -> None:
    connection = Connection("/")
    connection.send(request_)
    assert connection.transport.closed
    assert connection.transport.sent == b""
    assert connection.upgrades == []
    await connection.gone()
    assert len(connection.failures) == 1


async def test_a_full_pipe_does_not_reach_the_new_owner_as_a_reading_pause() -> None:
    connection = Connection("/")
    connection.transport.clog = True
    connection.send(UPGRADE)
    assert connection.transport.reading
    assert len(connection.upgrades) == 1


# Nonsense.


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GARBAGE\n", b"400 Bad Request"),
        (b"\r\n", b"400 Bad Request"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", b"400 Bad Request"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505 HTTP Version Not Supported"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400 Bad Request: missing required Host header"),
        (b"GET /" + b"a" * MAX_HEAD, b"431 Request Header Fields Too Large"),
        (b"GET / HTTP/1.1\r\nX:" + b"a" * MAX_HEAD + b"\r\n\r\n", b"431 Request"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\n\r\n", b"501 Not Implemented"),
    ],
)
@pytest.mark.parametrize("before", [b"", GET], ids=["first", "second"])
async def test_what_is_no_request_is_told_so(before: bytes, data: bytes, status: bytes) -> None:
    connection = Connection()
    connection.send(before)
    del connection.transport.sent[:]
    connection.send(data)
    assert connection.transport.sent.startswith(b"HTTP/1.1 " + status)
    assert connection.transport.closed
    await connection.gone()
    assert len(connection.failures) == 1
    assert len(connection.routed) == bool(before)


@pytest.mark.parametrize("before", [b"", GET], ids=["first", "second"])
@pytest.mark.parametrize("cut", [1, len(b"SSH-2.0-x"), len(b"SSH-2.0-x\r")])
async def test_the_first_line_of_another_protocol_in_pieces(cut: int, before: bytes) -> None:
    line = b"SSH-2.0-x\r\n"
    connection = Connection()
    connection.send(before)
    connection.send(line[:cut])
    assert not connection.transport.closed
    connection.send(line[cut:])
    assert connection.transport.closed
    assert connection.transport.statuses[-1] == 400
    await connection.gone()
    assert len(connection.failures) == 1


@pytest.mark.parametrize("cut", [None, 1, MAX_HEAD - 4, MAX_HEAD - 1])
@pytest.mark.parametrize("excess", [0, 1])
async def test_the_largest_head_there_may_be(excess: int, cut: int | None) -> None:
    head = GET[:-2] + b"X: "
    head += b"a" * (MAX_HEAD + excess - len(head) - 4) + b"\r\n\r\n"
    assert len(head) == MAX_HEAD + excess
    connection = Connection()
    for piece in (head,) if cut is None else (head[:cut], head[cut:]):
        connection.send(piece)
    assert connection.transport.statuses == [431 if excess else 404]
    await connection.gone() if excess else connection.server.connection_lost(None)


async def test_other_protocols_without_a_line_wait_for_the_time_limit() -> None:
    connection = Connection(limits=VISITORS._replace(head=0.01))
    connection.send(b"\x16\x03\x01\x02\x00\x01")
    assert not connection.transport.closed
    await until(lambda: connection.transport.closed)
    assert connection.transport.sent == b""
    await connection.gone()
    assert connection.failures == ["no complete HTTP request within 0.01 s"]


async def test_an_end_within_a_head_is_a_bad_request() -> None:
    connection = Connection()
    connection.send(GET[:-2])
    assert connection.server.eof_received()
    assert connection.transport.statuses == [400]
    assert connection.transport.closed
    await connection.gone()
    assert len(connection.failures) == 1


@pytest.mark.parametrize("before", [b"", GET, GET[:-4] + b"\r\nContent-Length: 9\r\n\r\nx"])
async def test_an_end_between_requests_is_just_an_end(before: bytes) -> None:
    connection = Connection()
    connection.send(before)
    connection.server.eof_received()
    assert connection.transport.closed
    assert len(connection.transport.statuses) == bool(before)
    await connection.gone()
    assert connection.failures == []


async def test_a_connection_lost_in_a_head_is_reported() -> None:
    connection = Connection()
    connection.send(b"GET")
    connection.server.connection_lost(ConnectionResetError(104, "reset"))
    assert len(connection.failures) == 1 and "reset" in connection.failures[0]
    await connection.gone()


# Limits.


async def test_a_client_that_does_not_read_is_not_served() -> None:
    connection = Connection()
    connection.transport.clog = True
    connection.send(GET * 100)
    assert len(connection.routed) == 1
    assert not connection.transport.reading
    connection.send(GET * 100)  # one read may be under way
    assert len(connection.routed) == 1
    assert len(connection.server._buffer) == 199 * len(GET)
    connection.transport.clog = True
    connection.server.resume_writing()
    assert len(connection.routed) == 2
    assert not connection.transport.reading
    connection.server.resume_writing()
    assert len(connection.routed) == 200
    assert connection.transport.reading
    await connection.gone()


async def test_requests_before_an_end_are_served_when_the_client_reads_again() -> None:
    connection = Connection()
    connection.transport.clog = True
    connection.send(GET * 3)
    connection.server.eof_received()
    assert not connection.transport.closed
    connection.server.resume_writing()
    assert connection.transport.statuses == [404] * 3
    assert connection.transport.closed
    await connection.gone()


async def test_a_silent_connection_is_closed_without_a_word() -> None:
    connection = Connection(limits=VISITORS._replace(head=0.01))
    await until(lambda: connection.transport.closed)
    await connection.gone()
    assert connection.failures == []
    assert connection.transport.sent == b""


async def test_dripping_bytes_do_not_buy_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    connection = Connection(limits=VISITORS._replace(head=10, keepalive=30))
    connection.send(GET)  # a further request has a limit of its own

    async def drip() -> None:
        for piece in each_byte(b"GET / HTTP/1.1\r\nX: " + b"x" * 5000):
            if connection.transport.closed:
                return
            connection.send(piece)
            await clock.passes(1)

    started = clock.now
    await drip()
    assert connection.transport.closed
    assert clock.now - started <= 11
    await connection.gone()
    assert len(connection.failures) == 1


async def test_an_idle_connection_is_closed_after_the_keep_alive_time() -> None:
    connection = Connection(limits=VISITORS._replace(head=30, keepalive=0.01))
    connection.send(GET)
    await until(lambda: connection.transport.closed)
    await connection.gone()
    assert connection.failures == []


async def test_any_bytes_leave_a_defined_state() -> None:
    rng = random.Random(101)
    pieces = [GET, UPGRADE, b"\r\n", b"\n\n", b"POST /", b" HTTP/1.1\r\n", b"Content-Length: 9\r\n"]
    pieces += [b"Transfer-Encoding: chunked\r\n", b"Host: a\r\n", b"x" * 9, b"\0", b"Expect: x\r\n"]
    ended = 0
    for _ in range(1500):
        connection = Connection(rng.choice(["/", "/ws"]))
        data = b"".join(rng.choice(pieces) for _ in range(rng.randrange(8))) + rng.randbytes(2)
        while data and not (connection.transport.closed or connection.upgrades):
            size = rng.randrange(1, 80)
            connection.transport.clog = rng.random() < 0.1
            connection.send(data[:size])
            data = data[size:]
            while not (connection.transport.reading or connection.transport.closed):
                connection.server.resume_writing()
            assert len(connection.server._buffer) <= MAX_HEAD
        ended += connection.transport.closed or bool(connection.upgrades)
        await connection.gone()
    assert ended > 300


# Sockets.


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def serving(
    route: Callable[[Request], Reply | None] = WS,
    servers: list[HttpServer] | None = None,
) -> AsyncIterator[int]:
    """The port of a server on loopback; `/ws` echoes what it gets after the upgrade.

    `servers`: gets the protocol of each connection.
    """

    class Echo(StreamProtocol):
        def __init__(self, transport: asyncio.Transport) -> None:
            self.transport = transport

        def data_received(self, data: Data) -> None:
            self.transport.write(data)

    def take(transport: asyncio.Transport, request: Request, upgrade: Upgrade) -> None:
        transport.set_protocol(Echo(transport))

    def make() -> HttpServer:
        made = HttpServer(route, take, protocols=PROTOCOLS)
        if servers is not None:
            servers.append(made)
        return made

    server = await bind(parse_endpoint("-b", "127.0.0.1:0"), "", resolver=Resolver())
    server.serve(make)
    try:
        yield int(server.addresses[0].rpartition(":")[2])
    finally:
        server.close()


async def with_client(
    port: int, talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await talk(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_upgrade_on_a_socket() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GET)
        assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(19) == b"404 page not found\n"
        writer.write(UPGRADE.replace(b"GET / ", b"GET /ws "))
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer == handshake(WSS_VECTORS[0])[1]
        writer.write(b"\x82\x05hello")
        assert await reader.readexactly(7) == b"\x82\x05hello"

    async with serving() as port:
        await with_client(port, talk)


@pytest.mark.parametrize("chunked", [False, True])
async def test_the_answer_to_a_large_upload_is_not_lost(chunked: bool) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size = 4 << 20
        framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
        for _ in range(size // READ_SIZE):
            writer.write(b"x" * READ_SIZE)
            await writer.drain()
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")
        assert b"\r\nConnection: close\r\n" in answer
        assert answer.endswith(b"404 page not found\n")

    async with serving() as port:
        await with_client(port, talk)


async def test_a_half_closed_client_gets_its_answers() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GET * 1000)
        writer.write_eof()
        assert (await reader.read()).count(b"404 page not found\n") == 1000

    async with serving() as port:
        await with_client(port, talk)


async def test_a_flood_of_requests_stops_at_a_client_that_does_not_read() -> None:
    servers: list[HttpServer] = []
    routed = 0

    def route(request: Request) -> Reply | None:
        nonlocal routed
        routed += 1
        return text_reply(404, "x" * 1000)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = (16 << 20) // len(GET)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(GET * count)
        await until(lambda: bool(servers) and servers[0]._paused)
        # Without back-pressure all answers, half a gigabyte, would wait in memory by now.
        assert 0 < routed < count // 4
        assert servers[0]._transport.get_write_buffer_size() < 1 << 20
        assert len(servers[0]._buffer) <= MAX_HEAD + READ_SIZE
        writer.transport.abort()

    async with serving(route, servers) as port:
        await with_client(port, talk)
