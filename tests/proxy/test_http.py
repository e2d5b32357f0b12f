"""Plain HTTP requests: reuse of connections, order of answers, retries and timeouts."""

from __future__ import annotations

import asyncio
import logging

import pytest

from mtt.errors import DestinationError
from mtt.outcome import Outcome
from mtt.proxy import http, origin
from mtt.proxy.exchange import MAX_AHEAD, MAX_REPLAY
from mtt.tunnels.relay import MAX_CHECK_INTERVAL
from mtt.wire.http1 import MAX_HEAD
from tests.proxy.clients import USER, http_connect
from tests.proxy.origins import OK, ok, read_answer, site
from tests.support.clock import Clock
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
        await eventually(lambda: there.proxy.proxy._idle == set() and there.requests)
        connection = there.connection
        await eventually(lambda: not connection._near.is_reading())
        assert MAX_AHEAD < len(connection._buffer) < MAX_AHEAD + 300_000
        await eventually(lambda: unsent(client))
        sending.cancel()
        gate.set()
        assert (await read_answer(client))[1] == b"/00000"


async def test_several_origins_on_one_client_connection() -> None:
    async with site() as one, site() as other, await one.client() as client:
        for number in range(3):
            for there in (one, other):
                await client.send(there.request(f"/{number}"))
                assert (await read_answer(client))[1] == b"/%d" % number
        assert one.there.count == other.there.count == 1
        assert one.requests == other.requests == [b"GET /0", b"GET /1", b"GET /2"]


async def test_idle_origin_connections_are_bounded() -> None:
    async with site() as there, await there.client() as client:
        there.proxy.names |= {f"{number}.test" for number in range(origin.MAX_IDLE + 1)}
        for number in range(origin.MAX_IDLE + 1):
            uri = f"http://{number}.test:{there.there.port}/{number}"
            await client.send(f"GET {uri} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert (await read_answer(client))[1] == b"/%d" % number
        connection = there.connection
        assert len(connection.origins) == origin.MAX_IDLE


async def test_origin_connection_is_not_shared_between_clients() -> None:
    async with site() as there, await there.client() as one, await there.client() as other:
        for client in (one, other, one, other):
            await client.send(there.request("/"))
            await read_answer(client)
        assert [len(heads) for heads in there.heads] == [2, 2]


# Closing connections.


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


# Idle origin connections that end.


class Ends:
    """Answers the first request of a connection, and ends it at the second one."""

    def __init__(self, *, reset: bool = False, partial: bytes = b"") -> None:
        self.connections = 0
        self.reset = reset
        self.partial = partial
        self.bodies: list[bytes] = []

    async def __call__(self, connection: Tcp, head: bytes) -> bool:
        if b"Content-Length: 5" in head:
            self.bodies.append(await connection.exactly(5))
        if b"/first" in head:
            await connection.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"))
            return True
        self.connections += 1
        if self.connections == 1:
            await connection.send(self.partial)
            if self.reset:
                connection.reset()
            return False
        return await ok(connection, head)


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_idempotent_request_is_retried(method: str, reset: bool) -> None:
    ends = Ends(reset=reset)
    async with site(ends) as there, await there.client() as client:
        await client.send(there.request("/first"))
        await read_answer(client)
        body = b"" if method in ("GET", "HEAD") else b"hello"
        lines = ["Content-Length: 5"] if body else []
        await client.send(there.request("/again", *lines, method=method) + body)
        head, _ = await read_answer(client, body=method != "HEAD")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert there.requests == [
            b"GET /first", f"{method} /again".encode(), f"{method} /again".encode(),
        ]  # fmt: skip
        assert ends.bodies == ([b"hello"] * 2 if body else [])


async def test_request_with_unbegun_body_is_retried() -> None:
    ends = Ends()
    async with site(ends) as there, await there.client() as client:
        await client.send(there.request("/first"))
        await read_answer(client)
        ends_here = there.request("/again", "Content-Length: 1", "Expect: x", method="POST")
        await client.send(ends_here)
        await eventually(lambda: len(there.heads) == 2 and there.heads[1])
        await client.send(b"x")
        assert (await read_answer(client))[1] == b"/again"


@pytest.mark.parametrize(("method", "size"), [("POST", 5), ("PUT", MAX_REPLAY + 1)])
async def test_possibly_processed_request_is_not_retried(method: str, size: int) -> None:
    async def serve(connection: Tcp, head: bytes) -> bool:
        if b"/first" in head:
            await connection.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"))
            return True
        await connection.exactly(size)
        return False

    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/first"))
        await read_answer(client)
        await client.send(there.request("/", f"Content-Length: {size}", method=method))
        await client.send(b"x" * size)
        head, body = await read_answer(client)
        assert head.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert body == b"the connection failed\n"
        await client.send(there.request("/first"))  # the client's connection stays open
        assert (await read_answer(client))[1] == b"ok"
        assert there.there.count == 2


async def test_no_retry_after_a_byte_of_the_answer() -> None:
    async with site(Ends(partial=b"H")) as there, await there.client() as client:
        await client.send(there.request("/first"))
        await read_answer(client)
        await client.send(there.request("/second"))
        assert (await read_answer(client))[0].startswith(b"HTTP/1.1 502 ")


async def test_no_retry_after_a_new_connection_ends() -> None:
    async def ends(_connection: Tcp, _head: bytes) -> None:
        pass

    async with site(ends) as there, await there.client() as client:
        await client.send(there.request("/"))
        assert (await read_answer(client))[0].startswith(b"HTTP/1.1 502 ")
        assert there.there.count == 1


async def test_post_uses_only_proven_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site() as there, await there.client() as client:
        clock = Clock(monkeypatch, origin, http)

        async def post() -> int:
            await client.send(there.request("/", "Content-Length: 0", method="POST"))
            await read_answer(client)
            return there.there.count

        assert await post() == 1
        assert await post() == 2  # at once: the first may be about to end
        clock.now += origin.PROOF_TIME
        assert await post() == 2  # both have been kept for a while
        assert await post() == 2


async def test_keep_alive_header_proves_a_connection() -> None:
    async def keeping(connection: Tcp, _head: bytes) -> bool:
        await connection.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"))
        return True

    async with site(keeping) as there, await there.client() as client:
        for _ in range(5):
            await client.send(there.request("/", "Content-Length: 0", method="POST"))
            await read_answer(client)
        assert there.there.count == 1


async def test_end_of_idle_connection_is_noticed_at_once() -> None:
    released = asyncio.Event()

    async def serve(connection: Tcp, head: bytes) -> bool:
        await ok(connection, head)
        await released.wait()
        return False

    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/1"))
        await read_answer(client)
        connection = there.connection
        (idle,) = connection.origins._origins
        released.set()
        await eventually(lambda: not idle.usable)
        await client.send(there.request("/2"))
        await read_answer(client)
        assert [len(heads) for heads in there.heads] == [1, 1]


@pytest.mark.parametrize(
    ("line", "seconds"), [("X: y", origin.KEEP_TIME), ("Keep-Alive: timeout=5, max=9", 4.0)]
)
async def test_idle_timeout_of_origin_connections(
    line: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(connection: Tcp, _head: bytes) -> bool:
        await connection.send(OK.replace(b"\r\n\r\n", f"\r\n{line}\r\n\r\n".encode()))
        return True

    async with site(serve) as there, await there.client() as client:
        clock = Clock(monkeypatch, origin, http)
        for after, count in ((0, 1), (seconds - 0.1, 1), (seconds, 2)):
            clock.now += after
            await client.send(there.request("/"))
            await read_answer(client)
            assert there.there.count == count


async def test_unsolicited_answer_ends_the_connection() -> None:
    async def serve(connection: Tcp, _head: bytes) -> bool:
        await connection.send(OK + OK)
        return True

    async with site(serve) as there, await there.client() as client:
        for number in range(3):
            await client.send(there.request(f"/{number}"))
            assert (await read_answer(client))[1] == b"ok"
        assert there.there.count == 3


# Failures.


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


# Time.


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
    async with site(handshake_time=10) as there, await there.client() as client:
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
        await eventually(lambda: not connection._near.is_reading())
        assert len(there.proxy.asked) == 1
        connection.resume_writing()
        for _ in range(count):
            assert (await read_answer(client))[1] == b"connection refused\n"
        await client.send(there.request("/"))
        await read_answer(client)


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
        await eventually(lambda: there.proxy.open_tunnels._carriers and there.connection._eof)
        there.proxy.gate.set()
        assert (await client.rest()).endswith(b"\r\nConnection: close\r\n\r\nok")
