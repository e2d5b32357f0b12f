"""Answers: those cut or ended by a close, interim and early ones, HTTP/1.0, upgrades."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.proxy.origins import OK, PAYLOAD, chunked, read_answer, site
from tests.support.tunnels import (
    SMALL,
    Tcp,
    connect,
    eventually,
    maybe_reset,
    port_of,
    settled,
    shrink,
    unsent,
)


async def test_answer_ended_by_close_closes_the_client() -> None:
    async def serve(connection: Tcp, _head: bytes) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nX: 1\r\n\r\n" + PAYLOAD)
        await connection.finish()

    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/") + there.request("/2"))
        answer = await client.rest()
        assert answer == b"HTTP/1.1 200 OK\r\nX: 1\r\nConnection: close\r\n\r\n" + PAYLOAD
        assert there.requests == [b"GET /"]


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked", b"X: 1"])
async def test_cut_answer_looks_cut(framing: bytes, reset: bool) -> None:
    seen = asyncio.Event()

    async def serve(connection: Tcp, _head: bytes) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n5\r\nhe")
        await seen.wait()
        if reset:
            connection.reset()

    if framing == b"X: 1" and not reset:
        return  # that is a complete answer
    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/") + there.request("/2"))
        assert (await client.until(b"5\r\nhe")).endswith(b"5\r\nhe")
        seen.set()
        with pytest.raises(ConnectionResetError):
            await client.rest()


async def test_received_part_of_an_answer_precedes_the_cut() -> None:
    """Also if the client reads slowly."""
    gate, cut = asyncio.Event(), asyncio.Event()
    data = PAYLOAD[:300_000]  # more than the client's kernel buffers

    async def serve(connection: Tcp, _head: bytes) -> None:
        await gate.wait()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n" + data)
        while unsent(connection):
            await asyncio.sleep(0.001)
        connection.reset()
        cut.set()

    async with site(serve) as there, await connect(port_of(there.proxy), buffer=SMALL) as client:
        await client.send(there.request("/"))
        await eventually(lambda: there.requests)
        shrink(there.near.get_extra_info("socket"), SMALL)
        gate.set()
        await cut.wait()
        await settled()
        await client.until(b"\r\n\r\n")
        received = bytearray()
        with pytest.raises(ConnectionResetError):
            while True:
                received += await client.read(20_000)
        assert received == data


# HTTP/1.0.


async def test_http_1_0_client_gets_no_chunks_and_no_1xx() -> None:
    async def serve(connection: Tcp, _head: bytes) -> bool:
        await connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nA: 1\r\n\r\n")
        await connection.send(chunked(PAYLOAD, b"X-Digest: 1\r\n"))
        return True

    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/", version="1.0"))
        answer = await client.rest()
        assert answer == b"HTTP/1.1 200 OK\r\nA: 1\r\nConnection: close\r\n\r\n" + PAYLOAD


async def test_cut_chunks_look_cut_to_http_1_0_client() -> None:
    async def serve(connection: Tcp, _head: bytes) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")

    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/", version="1.0"))
        with pytest.raises(ConnectionResetError):
            await client.rest()


@pytest.mark.parametrize("keep", [False, True])
async def test_http_1_0_origin(keep: bool) -> None:
    line = b"Connection: keep-alive\r\n" if keep else b""

    async def serve(connection: Tcp, _head: bytes) -> bool:
        await connection.send(b"HTTP/1.0 200 OK\r\n" + line + b"Content-Length: 2\r\n\r\nok")
        return keep

    async with site(serve) as there, await there.client() as client:
        for _ in range(3):
            await client.send(there.request("/"))
            assert await read_answer(client) == (OK[:-2], b"ok")
        assert there.there.count == (1 if keep else 3)


# Interim answers, and answers that do not wait for the request.


async def test_100_continue_is_passed_on() -> None:
    async def serve(connection: Tcp, head: bytes) -> bool:
        assert b"\r\nExpect: 100-continue\r\n" in head
        await connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await connection.exactly(5) == b"hello"
        await connection.send(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK)
        return True

    async with site(serve) as there, await there.client() as client:
        for _ in range(2):
            lines = "Content-Length: 5", "Expect: 100-continue"
            await client.send(there.request("/", *lines, method="PUT"))
            assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(b"hello")
            hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
            assert await client.until(b"ok") == hints + OK
        assert there.there.count == 1


async def test_early_refusal_closes_the_connection() -> None:
    async def serve(connection: Tcp, _head: bytes) -> bool:
        await connection.send(b"HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno")
        return True

    async with site(serve) as there, await there.client() as client:
        lines = "Content-Length: 5", "Expect: 100-continue"
        await client.send(there.request("/", *lines, method="PUT"))
        answer = await client.rest()
        assert answer.endswith(b"\r\nConnection: close\r\n\r\nno")


async def test_incomplete_request_looks_cut_to_the_origin() -> None:
    ends: list[str] = []

    async def serve(connection: Tcp, _head: bytes) -> bool:
        await connection.send(b"HTTP/1.1 417 No\r\nContent-Length: 2\r\n\r\nno")
        try:
            await connection.rest()
            ends.append("end")
        except ConnectionResetError:
            ends.append("reset")
        return True

    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/", "Content-Length: 5", method="PUT"))
        await client.rest()
        await eventually(lambda: ends)
        assert ends == ["reset"]


@pytest.mark.parametrize("reads", [0, 100_000])
async def test_origin_that_answers_and_closes_during_upload(reads: int) -> None:
    """The answer arrives even if the origin resets the rest of the upload."""

    async def serve(connection: Tcp, _head: bytes) -> None:
        await connection.exactly(reads)
        await connection.send(b"HTTP/1.1 413 Large\r\nContent-Length: 2\r\n\r\nno")

    async with site(serve) as there, await there.client() as client:
        request = there.request("/", "Content-Length: 50000000", method="POST")
        sending = asyncio.create_task(client.send(request + bytes(5_000_000)))
        answer = await client.until(b"\r\n\r\nno")
        assert answer == (
            b"HTTP/1.1 413 Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
        )
        await asyncio.gather(sending, return_exceptions=True)


async def test_answer_before_the_request_is_complete() -> None:
    async def echo(connection: Tcp, _head: bytes) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
        for _ in range(2):
            await connection.send(await connection.exactly(5))

    async with site(echo) as there, await there.client() as client:
        await client.send(there.request("/", "Content-Length: 10", method="POST"))
        await client.until(b"\r\n\r\n")
        for word in (b"hello", b"world"):
            await client.send(word)
            assert await client.exactly(5) == word
        assert await client.rest() == b""


# Upgrades.

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: Upgrade\r\n\r\n"


@pytest.mark.parametrize("early", [False, True])
async def test_upgrade_becomes_a_tunnel(early: bool) -> None:
    async def serve(connection: Tcp, head: bytes) -> None:
        if b"/first" in head:
            await connection.send(OK)
            head = await connection.until(b"\r\n\r\n")
        assert head.endswith(b"\r\nUpgrade: chat\r\nConnection: Upgrade\r\n\r\n")
        await connection.send(SWITCH + (b"welcome" if early else b""))
        while data := await connection.read():
            await connection.send(data.upper())
        await connection.send(b"bye")
        await connection.finish()

    async with site(serve) as there, await there.client() as client:
        await client.send(there.request("/first"))
        await read_answer(client)
        request = there.request("/", "Upgrade: chat", "Connection: keep-alive, Upgrade")
        await client.send(request + (b"hello" if early else b""))
        assert await client.until(b"\r\n\r\n") == SWITCH
        if early:
            assert await client.exactly(7) == b"welcome"
        else:
            await client.send(b"hello")
        assert await client.exactly(5) == b"HELLO"
        await client.send(b"GET / HTTP/1.1\r\n\r\n")  # no longer a request
        assert await client.exactly(18) == b"GET / HTTP/1.1\r\n\r\n"
        await client.finish()
        assert await client.rest() == b"bye"
        await eventually(lambda: not there.proxy.tunnels)


async def test_refused_upgrade_is_an_ordinary_answer() -> None:
    async def serve(connection: Tcp, _head: bytes) -> bool:
        await connection.send(OK)
        return True

    async with site(serve) as there, await there.client() as client:
        for _ in range(2):
            await client.send(there.request("/", "Upgrade: chat", "Connection: Upgrade"))
            assert await read_answer(client) == (OK[:-2], b"ok")
        assert there.there.count == 1


async def test_random_input_from_clients_and_origins(caplog: pytest.LogCaptureFixture) -> None:
    """Every client gets an answer, a refusal or an end; no internal error, nothing stays open."""
    rng = random.Random(11)
    answers = (
        OK, SWITCH, b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"HTTP/1.0 200 OK\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"hello", b"A: 1\r\n"),
        b"HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n", OK + OK,
    )  # fmt: skip

    def damaged(data: bytes) -> bytes:
        noise = bytearray(data)
        for _ in range(rng.choice((0, 0, 1, 3))):
            noise[rng.randrange(len(noise))] = rng.choice(b"\0\r\n :0a5;")
        return bytes(noise[: rng.choice((None, len(noise) - 3))])

    async def serve(connection: Tcp, _head: bytes) -> bool:
        answer = rng.choice(answers)
        said = damaged(answer)
        await connection.send(said)
        # The origin must end answers that are incomplete, or that only the close completes.
        return said == answer and b"HTTP/1.0" not in said

    async with site(serve) as there:
        requests = (
            there.request("/"),
            there.request("/", method="HEAD"),
            there.request("/", version="1.0"),
            there.request("/", "Upgrade: chat", "Connection: upgrade"),
            there.request("/", "Content-Length: 5", method="POST") + b"hello",
            there.request("/", "Transfer-Encoding: chunked", method="PUT") + chunked(b"hello"),
        )

        async def one() -> None:
            async with await there.client() as client:
                said = b"".join(damaged(rng.choice(requests)) for _ in range(rng.randrange(1, 5)))
                with maybe_reset():
                    await client.send(said)
                    await client.finish()
                    got = await client.rest()
                    assert not got or got.startswith(b"HTTP/1.")

        for _ in range(10):
            await asyncio.gather(*(one() for _ in range(20)))
        await eventually(lambda: not (there.proxy.tunnels or there.proxy.proxy.pending))
        assert len(there.requests) > 30
    assert "internal error" not in caplog.text
