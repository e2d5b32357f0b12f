"""What is no request, and ends within one."""

from __future__ import annotations

import random

import pytest

from mtt.http.limits import VISITORS
from mtt.wire.http1 import MAX_HEAD
from tests.http.served import GET, UPGRADE, Connection, until


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
async def test_invalid_requests_get_an_error(before: bytes, data: bytes, status: bytes) -> None:
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
