"""Plain HTTP requests: reuse of connections, order of answers, refusals and failures."""

from __future__ import annotations

import asyncio
import logging

import pytest

from mtt.errors import DestinationError
from mtt.outcome import Outcome
from mtt.proxy.exchange import MAX_AHEAD
from mtt.wire.http1 import MAX_HEAD
from tests.proxy.clients import USER, http_connect
from tests.proxy.origins import ok, read_answer, site
from tests.support.tunnels import Tcp, eventually, unsent


async def test_requests_reuse_both_connections() -> None:
    async with site() as there, await there.client() as client:
        for number in range(5):
            await client.send(there.request(f"/{number}"))
            head, body = await read_answer(client)
            assert body == b"/%d" % number
            assert head == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        assert there.there.count == len(there.proxy.asked) == 1
        assert there.heads[0][0] == (
            b"GET /0 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: keep-alive\r\n\r\n"
            % there.there.port
        )
        assert there.proxy.tunnels == 1
    await eventually(lambda: not there.proxy.tunnels)


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with site() as there, await there.client() as client:
        targets = [f"/{number:03}" for number in range(300)]
        sending = asyncio.create_task(client.send(b"".join(map(there.request, targets))))
        for target in targets:
            assert (await read_answer(client))[1] == target.encode()
        await sending
        assert there.there.count == 1


async def test_pipelined_request_waits_for_the_previous_answer() -> None:
    gate = asyncio.Event()

    async def slow(connection: Tcp, head: bytes) -> bool:
        await gate.wait()
        return await ok(connection, head)

    async with site(slow) as there, await there.client() as client:
        await client.send(there.request("/1") + there.request("/2"))
        await eventually(lambda: there.requests == [b"GET /1"])
        gate.set()
        assert (await read_answer(client))[1] == b"/1"
        assert (await read_answer(client))[1] == b"/2"


async def test_pipelined_requests_are_bounded() -> None:
    gate = asyncio.Event()

    async def slow(connection: Tcp, head: bytes) -> bool:
        await gate.wait()
        return await ok(connection, head)

    async with site(slow) as there, await there.client() as client:
        requests = b"".join(there.request(f"/{number:05}") for number in range(150_000))
        sending = asyncio.create_task(client.send(requests))
        await eventually(lambda: there.requests and not there.proxy.proxy.pending)
        await eventually(lambda: not there.near.is_reading())
        assert MAX_AHEAD < len(there.connection._buffer) < MAX_AHEAD + 300_000
        await eventually(lambda: unsent(client))
        sending.cancel()
        gate.set()
        assert (await read_answer(client))[1] == b"/00000"


async def test_failed_request_keeps_the_client_connection() -> None:
    async with site() as there, await there.client() as client:
        there.proxy.error = DestinationError(Outcome.CONNECTION_REFUSED)
        await client.send(there.request("/", method="HEAD"))
        head, _ = await read_answer(client, body=False)
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert b"Connection: close" not in head
        await client.send(there.request("/"))
        assert (await read_answer(client))[1] == b"connection refused\n"
        there.proxy.error = None
        await client.send(there.request("/1"))
        assert (await read_answer(client))[1] == b"/1"


async def test_failed_request_with_incomplete_body_closes() -> None:
    async with site() as there, await there.client() as client:
        there.proxy.error = DestinationError(Outcome.TIMED_OUT)
        await client.send(there.request("/", "Content-Length: 5", method="POST") + b"hell")
        answer = await client.rest()
        assert answer.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
        assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_HEAD,
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConte",
        b"",
    ],
)
async def test_invalid_answer_of_the_origin(answer: bytes) -> None:
    async def serve(connection: Tcp, _head: bytes) -> bool:
        await connection.send(answer)
        await connection.finish()
        return False

    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/"))
        head, body = await read_answer(client)
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert body == b"the connection failed\n"


@pytest.mark.parametrize(
    "second",
    [
        b"POST http://a/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n",
        b"nonsense\r\n",
    ],
)
async def test_bad_request_is_refused_after_earlier_answers(
    second: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with site() as there, await there.client() as client:
        await client.send(there.request("/1") + second + b"\r\n" + there.request("/3"))
        assert (await read_answer(client))[1] == b"/1"
        assert (await client.rest()).startswith(b"HTTP/1.1 400 Bad Request")
        assert there.requests == [b"GET /1"]
    (line,) = (line for line in caplog.records if line.levelno >= logging.WARNING)
    assert line.getMessage().startswith("127.0.0.1:")


async def test_every_request_needs_the_login() -> None:
    async with site(users=[USER]) as there, await there.client() as client:
        await client.send(
            there.request("/1", "Proxy-Authorization: Basic dXNlcjpww6Rzc3dvcmQ=")
            + there.request("/2")
        )
        assert (await read_answer(client))[1] == b"/1"
        assert (await client.rest()).startswith(b"HTTP/1.1 407 ")
        assert there.requests == [b"GET /1"]
        assert b"Proxy-Auth" not in there.heads[0][0]


async def test_connect_may_follow_requests() -> None:
    async with site() as there, await there.client() as client:
        await client.send(there.request("/1"))
        await read_answer(client)
        said, answer = http_connect(there.there.port)
        await client.send(said + b"GET /tunnel HTTP/1.1\r\n\r\n")
        assert await client.exactly(len(answer)) == answer
        assert (await read_answer(client))[1] == b"/tunnel"
        await client.finish()
        assert await client.rest() == b""


async def test_no_url_reaches_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def ends(_connection: Tcp, _head: bytes) -> None:
        pass

    async with site(ends) as there, await there.client() as client:
        for error in (None, DestinationError(Outcome.TIMED_OUT)):
            there.proxy.error = error
            uri = f"http://me:secret1@127.0.0.1:{there.there.port}/secret2?secret3#secret4"
            await client.send(f"GET {uri} HTTP/1.1\r\nHost: x\r\nX: secret5\r\n\r\n".encode())
            await read_answer(client)
        await client.send(f"GET {uri} HTTP/1.1\r\nHost: x\r\nsecret6\r\n\r\n".encode())
        await client.rest()
    assert "127.0.0.1" in caplog.text
    assert "secret" not in caplog.text


async def test_request_in_pieces_after_an_empty_line() -> None:
    async with site() as there, await there.client() as client:
        for request in (there.request("/1"), b"\r\n\r\n" + there.request("/2")):  # RFC 9112, 2.2
            for byte in request:
                await client.send(bytes([byte]))
                await asyncio.sleep(0)
            assert (await read_answer(client))[1] in (b"/1", b"/2")
        assert there.there.count == 1


async def test_client_back_pressure_stops_answers() -> None:
    async with site() as there, await there.client() as client:
        await client.send(there.request("/"))
        await read_answer(client)
        there.proxy.error = DestinationError(Outcome.CONNECTION_REFUSED)
        connection, count = there.connection, MAX_AHEAD // 30
        connection.pause_writing()
        await client.send(b"GET http://a.test/ HTTP/1.1\r\nHost: a\r\n\r\n" * count)
        await eventually(lambda: not there.near.is_reading())
        assert len(there.proxy.asked) == 1
        connection.resume_writing()
        for _ in range(count):
            assert (await read_answer(client))[1] == b"connection refused\n"
        await client.send(there.request("/"))
        await read_answer(client)
