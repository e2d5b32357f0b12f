"""How HTTP clients' connections end: closes, half-closes, resets, timeouts, draining."""

from __future__ import annotations

import asyncio

import pytest

from mtt.errors import DestinationError
from mtt.outcome import Outcome
from mtt.proxy import http, origin
from mtt.tunnels.relay import MAX_CHECK_INTERVAL
from tests.proxy.origins import OK, ok, read_answer, site
from tests.support.clock import Clock
from tests.support.tunnels import Tcp, eventually


@pytest.mark.parametrize(
    ("line", "version"),
    [("Connection: close", "1.1"), ("X: y", "1.0"), ("Connection: keep-alive", "1.0")],
)
async def test_connection_close_of_the_client_is_honoured(line: str, version: str) -> None:
    async with site() as there, await there.client() as client:
        await client.send(there.request("/1", line, version=version) + there.request("/2"))
        answer = await client.rest()
        assert answer == (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n/1"
        )
        assert there.requests == [b"GET /1"]
        assert there.heads[0][0].endswith(b"\r\nConnection: close\r\n\r\n")


async def test_origin_close_keeps_the_client_connection() -> None:
    async def closing(connection: Tcp, _head: bytes) -> None:
        await connection.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    async with site(closing) as there, await there.client() as client:
        for method in ("GET", "POST", "GET"):
            await client.send(there.request("/", "Content-Length: 0", method=method))
            head, body = await read_answer(client)
            assert (head + body) == OK
        assert there.there.count == 3


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_unannounced_origin_close(method: str) -> None:
    async def closing(connection: Tcp, _head: bytes) -> None:
        await connection.exactly(3)
        await connection.send(OK)

    async with site(closing) as there, await there.client() as client:
        for _ in range(20):
            await client.send(there.request("/", "Content-Length: 3", method=method) + b"abc")
            assert (await read_answer(client))[1] == b"ok"


async def test_half_closed_client_gets_all_answers() -> None:
    async with site() as there, await there.client() as client:
        await client.send(there.request("/1") + there.request("/2"))
        await client.finish()
        answers = await client.rest()
        assert answers.count(b"HTTP/1.1 200 OK") == 2
        assert b"\r\nConnection: close\r\n\r\n/2" in answers
        assert b"Connection: close" not in answers.partition(b"/1")[0]


async def test_idle_client_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site() as there, await there.client() as client:
        clock = Clock(monkeypatch, origin, http)
        await client.send(there.request("/"))
        await read_answer(client)
        await clock.passes(http.KEEPALIVE_TIME - 0.1)
        assert there.proxy.tunnels == 1
        await clock.passes(MAX_CHECK_INTERVAL)
        assert await client.rest() == b""
        assert not there.proxy.tunnels


async def test_incomplete_further_request_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site() as there, await there.client() as client:
        clock = Clock(monkeypatch, origin, http)
        await client.send(there.request("/"))
        await read_answer(client)
        await client.send(b"GET http://")
        connection = there.connection
        await eventually(lambda: connection._buffer)
        await clock.passes(9.9)
        assert there.proxy.tunnels == 1
        await clock.passes(0.1)
        assert await client.rest() == b""


@pytest.mark.parametrize("begun", [False, True])
async def test_stalled_answer_times_out(begun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(connection: Tcp, _head: bytes) -> bool:
        if begun:
            await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
        assert await connection.rest() == b""
        return False

    async with site(serve, idle_time=100) as there, await there.client() as client:
        clock = Clock(monkeypatch, origin, http)
        await client.send(there.request("/"))
        if begun:
            assert (await client.until(b"\r\n\r\no")).endswith(b"o")
        await eventually(lambda: there.requests)
        await clock.passes(99)
        assert there.proxy.tunnels == 1
        await clock.passes(20)
        if begun:
            with pytest.raises(ConnectionResetError):
                await client.rest()
        else:
            assert (await client.rest()).startswith(b"HTTP/1.1 504 ")


async def test_drain_closes_idle_clients_and_finishes_others() -> None:
    gate = asyncio.Event()

    async def slow(connection: Tcp, head: bytes) -> bool:
        if b"/slow" in head:
            await gate.wait()
        return await ok(connection, head)

    async with site(slow) as there, await there.client() as idle, await there.client() as busy:
        await idle.send(there.request("/"))
        await read_answer(idle)
        await busy.send(there.request("/slow"))
        await eventually(lambda: b"GET /slow" in there.requests)
        there.proxy.proxy.drain()
        assert await idle.rest() == b""
        gate.set()
        assert b"\r\nConnection: close\r\n\r\n/slow" in await busy.rest()
        await eventually(lambda: not there.proxy.tunnels)


async def test_lost_client_aborts_its_request() -> None:
    ended = asyncio.Event()

    async def serve(connection: Tcp, _head: bytes) -> None:
        with pytest.raises(ConnectionResetError):
            await connection.rest()
        ended.set()

    async with site(serve) as there:
        client = await there.client()
        await client.send(there.request("/"))
        await eventually(lambda: there.requests)
        client.reset()
        await asyncio.wait_for(ended.wait(), 5)
        await eventually(lambda: not there.proxy.tunnels)


async def test_client_lost_during_dial_cancels_the_dial() -> None:
    async with site() as there:
        there.proxy.gate.clear()
        client = await there.client()
        await client.send(there.request("/"))
        await eventually(lambda: there.proxy.asked)
        client.reset()
        await eventually(lambda: not there.proxy.tunnels)
        assert there.there.count == 0


async def test_half_closed_slow_client_gets_all_answers() -> None:
    async with site() as there, await there.client() as client:
        await client.send(there.request("/"))
        await read_answer(client)
        there.proxy.error = DestinationError(Outcome.CONNECTION_REFUSED)
        connection = there.connection
        connection.pause_writing()
        await client.send(b"GET http://a.test/ HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        await client.finish()
        await eventually(lambda: connection._eof)
        connection.resume_writing()
        for _ in range(3):
            assert (await read_answer(client))[1] == b"connection refused\n"
        assert await client.rest() == b""


@pytest.mark.parametrize("early", [True, False])
async def test_client_half_close_reaches_the_origin(early: bool) -> None:
    async def serve(connection: Tcp, _head: bytes) -> None:
        if not early:
            await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        assert await connection.rest() == b""
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nbye" if early else b"bye")

    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/"))
        if not early:
            await client.until(b"\r\n\r\n")
        await client.finish()
        assert (await client.rest()).endswith(b"bye")
        await eventually(lambda: not there.proxy.tunnels)


async def test_client_half_close_during_the_dial() -> None:
    async def serve(connection: Tcp, _head: bytes) -> None:
        assert await connection.rest() == b""
        await connection.send(OK)

    async with site(serve) as there, await there.client() as client:
        there.proxy.gate.clear()
        await client.send(there.request("/"))
        await client.finish()
        await eventually(lambda: there.proxy.open_tunnels.open and there.connection.has_ended)
        there.proxy.gate.set()
        assert (await client.rest()).endswith(b"\r\nConnection: close\r\n\r\nok")
