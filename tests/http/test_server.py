"""The server's HTTP side, on a transport in memory: answers, upgrades, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from mtt.http.limits import MAX_DISCARD, VISITORS
from mtt.http.server import HttpServer
from mtt.layers.parked import hand_over, park
from mtt.layers.reads import READ_SIZE
from mtt.wire.http1 import text_reply
from mtt.wire.upgrade import switching_protocols
from tests.http.served import GET, UPGRADE, Connection, each_byte, until
from tests.support.clock import Clock
from tests.support.transports import FakeTransport
from tests.support.vectors import WSS, handshake

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
    request, answer = handshake(WSS[0])
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


async def test_full_pipe_does_not_pause_the_new_owner() -> None:
    connection = Connection("/")
    connection.transport.clog = True
    connection.send(UPGRADE)
    assert connection.transport.reading
    assert len(connection.upgrades) == 1


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


async def test_full_transport_is_taken_over() -> None:
    transport = FakeTransport()
    transport.write_paused = True
    park(transport, GET)
    server = HttpServer(lambda request: text_reply(404, "no"))
    hand_over(transport, server)
    assert not transport.sent
    assert not transport.reading
    server.resume_writing()
    assert transport.sent.startswith(b"HTTP/1.1 404 ")
    assert transport.reading
    server.connection_lost(None)


async def test_requests_before_end_are_served_once_client_reads() -> None:
    connection = Connection()
    connection.transport.clog = True
    connection.send(GET * 3)
    connection.server.eof_received()
    assert not connection.transport.closed
    connection.server.resume_writing()
    assert connection.transport.statuses == [404] * 3
    assert connection.transport.closed
    await connection.gone()


async def test_silent_connection_is_closed_without_an_answer() -> None:
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
