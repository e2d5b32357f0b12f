"""Bodies through the HTTP proxy: framings, both directions, back-pressure."""

from __future__ import annotations

import asyncio

import pytest

from tests.proxy.origins import OK, PAYLOAD, SIZE, chunked, read_answer, site
from tests.support.tunnels import Tcp, eventually, fill, unsent

# From the client.


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        ("Content-Length: 5", b"hello"),
        ("Transfer-Encoding: chunked", chunked(b"hello")),
        (f"Content-Length: {SIZE}", PAYLOAD),
        ("Transfer-Encoding: chunked", chunked(PAYLOAD, b"X-Digest: 1\r\nX-Other: 2\r\n")),
    ],
)
async def test_request_body_and_next_request(framing: str, body: bytes) -> None:
    got: list[bytes] = []

    async def serve(connection: Tcp, head: bytes) -> bool:
        got.append(await connection.exactly(len(body)) if b"/up" in head else b"")
        await connection.send(OK)
        return True

    async with site(serve) as there, await there.client() as client:
        upload = there.request("/up", framing, method="PUT") + body
        sending = asyncio.create_task(client.send(upload + there.request("/next") + upload))
        for _ in range(3):
            assert (await read_answer(client))[1] == b"ok"
        await sending
        assert got == [body, b"", body]
        assert there.there.count == 1


async def test_body_is_bounded_during_the_dial() -> None:
    async def serve(connection: Tcp, _head: bytes) -> bool:
        assert await connection.exactly(SIZE) == PAYLOAD
        await connection.send(OK)
        return True

    async with site(serve) as there, await there.client() as client:
        there.proxy.gate.clear()
        request = there.request("/", f"Content-Length: {SIZE}", method="POST")
        sending = asyncio.create_task(client.send(request + PAYLOAD))
        await eventually(lambda: there.proxy.asked)
        await eventually(lambda: not there.near.is_reading())
        exchange = there.connection._exchange
        assert exchange is not None
        assert len(exchange._unsent) < 500_000
        there.proxy.gate.set()
        assert (await read_answer(client))[1] == b"ok"
        await sending


async def test_origin_back_pressure_pauses_the_client() -> None:
    gate = asyncio.Event()

    async def serve(connection: Tcp, _head: bytes) -> bool:
        await gate.wait()
        received = await connection.exactly(len(sent))
        assert received == sent
        await connection.send(OK)
        return True

    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/", "Content-Length: 500000000", method="POST"))
        sent = await fill(client)
        assert unsent(client)
        assert not there.near.is_reading()
        gate.set()
        assert (await client.until(b"ok")).endswith(b"ok")


async def test_malformed_chunk_is_refused() -> None:
    seen: list[bytes] = []

    async def serve(connection: Tcp, _head: bytes) -> None:
        seen.append(await connection.until(b"hello\r\n"))
        with pytest.raises(ConnectionResetError):
            await connection.rest()
        seen.append(b"reset")

    async with site(serve) as there, await there.client() as client:
        request = there.request("/", "Transfer-Encoding: chunked", method="POST")
        await client.send(request + b"5\r\nhello\r\n")
        await eventually(lambda: seen)
        await client.send(b"nonsense\r\n")
        assert (await client.rest()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        await eventually(lambda: seen == [b"5\r\nhello\r\n", b"reset"])


async def test_client_end_within_a_body_cuts_the_request() -> None:
    seen: list[bytes] = []

    async def serve(connection: Tcp, _head: bytes) -> None:
        seen.append(await connection.exactly(3))
        with pytest.raises(ConnectionResetError):
            await connection.rest()
        seen.append(b"reset")

    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/", "Content-Length: 5", method="POST") + b"hel")
        await eventually(lambda: seen)
        await client.finish()
        assert (await client.rest()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        await eventually(lambda: seen == [b"hel", b"reset"])


# From the origin.


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: %d" % SIZE, PAYLOAD),
        (b"Transfer-Encoding: chunked", chunked(PAYLOAD, b"X-Digest: 1\r\n")),
        (b"Transfer-Encoding: chunked", chunked(b"", b"X-Digest: 1\r\n")),
    ],
)
async def test_answer_passes_unchanged(framing: bytes, body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n"

    async def serve(connection: Tcp, _head: bytes) -> bool:
        await connection.send(head + body)
        return True

    async with site(serve) as there, await there.client() as client:
        for _ in range(2):
            await client.send(there.request("/"))
            assert await client.exactly(len(head) + len(body)) == head + body
        assert there.there.count == 1


async def test_answer_byte_by_byte() -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"hello world")

    async def serve(connection: Tcp, _head: bytes) -> bool:
        for byte in answer:
            await connection.send(bytes([byte]))
            await asyncio.sleep(0)
        return True

    async with site(serve) as there, await there.client() as client:
        for _ in range(2):
            await client.send(there.request("/"))
            assert await client.exactly(len(answer)) == answer
        assert there.there.count == 1


@pytest.mark.parametrize(
    ("method", "status"), [("HEAD", b"200 OK"), ("GET", b"304 Not Modified"), ("GET", b"204 Empty")]
)
async def test_answers_without_a_body(method: str, status: bytes) -> None:
    async def serve(connection: Tcp, _head: bytes) -> bool:
        await connection.send(b"HTTP/1.1 %b\r\nContent-Length: 5\r\n\r\n" % status)
        return True

    async with site(serve) as there, await there.client() as client:
        for _ in range(3):
            await client.send(there.request("/", method=method))
            head, _ = await read_answer(client, body=False)
            assert head.startswith(b"HTTP/1.1 " + status)
            assert (b"Content-Length" in head) == (b"204" not in status)
        assert there.there.count == 1


async def test_client_back_pressure_pauses_the_origin() -> None:
    sent: list[bytes] = []

    async def serve(connection: Tcp, _head: bytes) -> bool:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500000000\r\n\r\n")
        sent.append(await fill(connection))
        await connection.rest()
        return False

    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/"))
        await eventually(lambda: sent)
        exchange = there.connection._exchange
        assert exchange is not None
        assert exchange.origin is not None
        assert not exchange.origin.transport.is_reading()
        await client.until(b"\r\n\r\n")
        assert await client.exactly(len(sent[0])) == sent[0]
