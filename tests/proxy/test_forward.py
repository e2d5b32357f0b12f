"""Requests that the proxy port forwards: they, their bodies, and nothing else."""

from __future__ import annotations

import asyncio

import pytest

from mtt.wire.socks import DestinationError, Outcome
from tests.proxy.clients import NAME
from tests.proxy.direct import DirectProxy, direct_proxy, port_of
from tests.support.tunnels import Tcp, connect, listening, serving


async def exchange(proxy: DirectProxy, request: bytes) -> bytes:
    async with await connect(port_of(proxy)) as client:
        await client.send(request)
        return await client.rest()


async def test_a_request_is_forwarded_and_answered() -> None:
    got: list[bytes] = []

    async def site(connection: Tcp) -> None:
        got.append(await connection.until(b"\r\n\r\n"))
        await connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npage")

    async with serving(site) as destination, direct_proxy() as proxy:
        request = (
            f"GET http://{NAME}:{destination.port}/a?b HTTP/1.1\r\nHost: other\r\n"
            "Proxy-Connection: keep-alive\r\nX: 1\r\n\r\n"
        )
        answer = await exchange(proxy, request.encode())
    assert answer == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\npage"
    assert got == [
        f"GET /a?b HTTP/1.1\r\nHost: {NAME}:{destination.port}\r\n"
        "X: 1\r\nConnection: close\r\n\r\n".encode()
    ]  # fmt: skip


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("framing", "body"),
    [
        # The first two come whole with their heads, the others do not.
        ("Content-Length: 5", b"hello"),
        ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"),
        ("Content-Length: 200000", bytes(range(200)) * 1000),
        ("Transfer-Encoding: chunked", b"30d40\r\n" + b"x" * 200_000 + b"\r\n0\r\n\r\n"),
    ],
)
async def test_a_body_is_forwarded_and_what_follows_it_is_not(
    framing: str, body: bytes, at_once: bool
) -> None:
    got: list[bytes] = []

    async def site(connection: Tcp) -> None:
        await connection.until(b"\r\n\r\n")
        got.append(await connection.exactly(len(body)))
        await connection.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        await connection.finish()
        got.append(await connection.rest())

    async with serving(site) as destination, direct_proxy() as proxy:
        head = f"POST http://{NAME}:{destination.port}/ HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"
        second = b"GET http://elsewhere/ HTTP/1.1\r\nCookie: secret\r\n\r\n"
        async with await connect(port_of(proxy)) as client:
            if at_once:
                await client.send(head.encode() + body + second)
            else:
                await client.send(head.encode())
                while not proxy.tunnels:
                    await asyncio.sleep(0)
                await client.send(body)
                await client.send(second)
            assert (await client.rest()).startswith(b"HTTP/1.1 200 OK")
        while len(got) < 2:
            await asyncio.sleep(0.001)
    assert got == [body, b""]


async def test_a_chunk_that_turns_out_to_be_none_cuts_the_request() -> None:
    async with listening() as destination, direct_proxy() as proxy:
        head = f"POST http://{NAME}:{destination.port}/ HTTP/1.1\r\nHost: a\r\n"
        async with await connect(port_of(proxy)) as client:
            await client.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            there = await destination.accept()
            assert (await there.until(b"hello\r\n")).endswith(b"\r\n\r\n5\r\nhello\r\n")
            await client.send(b"nonsense\r\n")
            with pytest.raises(ConnectionResetError):
                await there.rest()
            with pytest.raises(ConnectionResetError):
                await client.rest()


async def test_a_head_request_gets_no_body_with_its_failure() -> None:
    async with direct_proxy() as proxy:
        proxy.error = DestinationError(Outcome.CONNECTION_REFUSED)
        answer = await exchange(proxy, b"HEAD http://a/ HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502 Bad Gateway\r\n")
        assert answer.endswith(b"\r\n\r\n")
        answer = await exchange(proxy, b"GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answer.endswith(b"\r\n\r\nconnection refused\n")
