"""Origin connections kept for further requests: which are reused, retries, timeouts."""

from __future__ import annotations

import asyncio

import pytest

from mtt.proxy import http, origin
from mtt.proxy.exchange import MAX_REPLAY
from tests.proxy.origins import OK, OK_AND_KEEP, ok, read_answer, site
from tests.support.clock import Clock
from tests.support.tunnels import Tcp, eventually


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
        assert len(connection.origins._origins) == origin.MAX_IDLE


async def test_origin_connection_is_not_shared_between_clients() -> None:
    async with site() as there, await there.client() as one, await there.client() as other:
        for client in (one, other, one, other):
            await client.send(there.request("/"))
            await read_answer(client)
        assert [len(heads) for heads in there.heads] == [2, 2]


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
            await connection.send(OK_AND_KEEP)
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
            await connection.send(OK_AND_KEEP)
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
        await connection.send(OK_AND_KEEP)
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
