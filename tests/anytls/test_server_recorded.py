"""Recorded exchanges with the reference server: ours answers the same clients the same way."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from tests.anytls.serving import empty, know, server_for
from tests.support.anytlspeer import FIN, PSH, SYNACK, AnyTlsPeer
from tests.support.certs import Certs
from tests.support.gopeer import tls_connect
from tests.support.tunnels import SOON, echo, eventually, port_of, serving
from tests.support.vectors import stream_of, vector

HERE = "127.0.0.1"


@contextlib.asynccontextmanager
async def udp_echo() -> AsyncIterator[int]:
    """A port that answers as the one in the recordings did."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HERE, 0))
        sock.setblocking(False)

        def answer() -> None:
            data, source = sock.recvfrom(65535)
            sock.sendto(b"echo:" + data, source)

        loop.add_reader(sock, answer)
        yield sock.getsockname()[1]
        loop.remove_reader(sock)


# The recordings of one connection, and the port of its destination there.
RECORDED = [
    ("e-anytls-tcp-socks5", "tcp"),
    ("f-anytls-udp-over-tcp-v2", "udp"),
    ("x-anytls-uot-connect", "udp"),
    ("x-anytls-v1-client", "tcp"),
]


def destination(name: str) -> bytes:
    """The port that the client of a recording goes to: behind the first 127.0.0.1."""
    said = stream_of(vector(name), "c2s")
    start = said.index(b"\x7f\0\0\1") + 4
    return said[start : start + 2]


@pytest.mark.parametrize(("name", "kind"), RECORDED)
async def test_server_answers_like_the_reference(name: str, kind: str, certs: Certs) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if kind == "tcp":
            port = (await stack.enter_async_context(serving(echo))).port
        else:
            port = await stack.enter_async_context(udp_echo())
        await stack.enter_async_context(asyncio.timeout(SOON))
        server = await stack.enter_async_context(server_for(certs))
        know(server, {"localhost": [HERE]})
        then, now = destination(name), port.to_bytes(2, "big")
        async with AnyTlsPeer(await tls_connect(port_of(server), certs)) as client:
            for event in vector(name):
                record = bytes.fromhex(event["hex"]).replace(then, now)
                if event["dir"] == "c2s":
                    await client.send(record)
                elif kind == "tcp" and record[:1] == bytes((PSH,)):
                    # The client's padding splits a frame; what is there of it goes on at once, and
                    # so comes back in two.
                    stream = int.from_bytes(record[1:5], "big")
                    assert await client.data(stream, len(record) - 7) == record[7:], event["note"]
                else:
                    assert await client.tls.exactly(len(record)) == record, event["note"]
        await eventually(lambda: empty(server))


async def test_refused_destination_has_a_fixed_synack_text(certs: Certs) -> None:
    said, settings, answer, fin = vector("x-anytls-dial-failure")
    async with (
        asyncio.timeout(SOON),
        server_for(certs) as server,
        AnyTlsPeer(await tls_connect(port_of(server), certs)) as client,
    ):
        await client.send(bytes.fromhex(said["hex"]).replace(
            destination("x-anytls-dial-failure"), b"\0\1"
        ))  # fmt: skip
        assert await client.tls.exactly(10) == bytes.fromhex(settings["hex"])
        assert await client.frame() == (SYNACK, 1, b"connection refused")
        assert answer["note"].endswith("connection refused'")
        assert await client.frame() == (FIN, 1, b"")
        assert fin["note"] == "FIN sid=1"


async def test_a_refusal_ends_with_close_notify(certs: Certs) -> None:
    said, *answers = vector("x-anytls-syn-before-settings")
    async with (
        asyncio.timeout(SOON),
        server_for(certs) as server,
        await tls_connect(port_of(server), certs) as client,
    ):
        await client.send(bytes.fromhex(said["hex"]))
        assert await client.rest() == b"".join(bytes.fromhex(e["hex"]) for e in answers)


async def test_wrong_password_is_answered_as_by_a_web_server(certs: Certs) -> None:
    """Where the reference says nothing, which no web server does."""
    said, end = vector("x-anytls-auth-failure")
    assert end["hex"] == ""
    async with (
        asyncio.timeout(SOON),
        server_for(certs) as server,
        await tls_connect(port_of(server), certs) as client,
    ):
        await client.send(bytes.fromhex(said["hex"]))
        assert (await client.rest()).startswith(b"HTTP/1.1 400 Bad Request\r\n")
