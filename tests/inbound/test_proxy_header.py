"""The PROXY header in front of a connection: in pieces, with data behind it, slow, missing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from mtt.errors import Cause, MttError
from mtt.inbound import proxy_header
from mtt.inbound.proxy_header import HEADER_TIME, ProxyHeaderReader
from mtt.layers.base import StreamTransport
from mtt.layers.linger import reset_on_close
from mtt.layers.tcp import SocketTransport
from mtt.options.trusted_proxies import parse_trusted_proxies
from mtt.wire.proxy_protocol import V1, V2, encode
from tests.support.clock import Clock
from tests.support.transports import Recorder, attach, tcp_sockets

USER, OWN = ("203.0.113.7", 4711), ("198.51.100.1", 443)
HELLO = b"\x16\x03\x01\x00\x05hello"
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
HERE = parse_trusted_proxies("", "127.0.0.0/8")
ELSEWHERE = parse_trusted_proxies("", "192.0.2.0/24")


class Accepted(NamedTuple):
    """A connection under a `ProxyHeaderReader`."""

    peer: socket.socket  # the proxy's end
    transport: SocketTransport
    above: Recorder  # the protocol that gets it
    waiting: set[StreamTransport]
    errors: list[MttError]

    async def said(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.peer, data)


@contextlib.asynccontextmanager
async def accepted(
    *, is_required: bool = True, proxies: proxy_header.TrustedProxies = HERE
) -> AsyncIterator[Accepted]:
    near, far = tcp_sockets()
    above, waiting, errors = Recorder(), set[StreamTransport](), list[MttError]()
    reader = ProxyHeaderReader(
        proxies, lambda: above, is_required=is_required,
        on_wait=waiting.add, on_failure=lambda _, error: errors.append(error),
        on_end=waiting.discard,
    )  # fmt: skip
    transport = attach(near, reader)
    try:
        yield Accepted(far, transport, above, waiting, errors)
    finally:
        far.close()
        transport.abort()
        await asyncio.sleep(0)


def ends(transport: SocketTransport) -> tuple[object, object]:
    return transport.get_extra_info("peername"), transport.get_extra_info("sockname")


@pytest.mark.parametrize("version", [V1, V2])
@pytest.mark.parametrize("is_required", [True, False])
async def test_address_is_the_users(version: str, is_required: bool) -> None:
    async with accepted(is_required=is_required) as it:
        assert it.waiting == {it.transport}
        # The ClientHello is in the header's segment.
        await it.said(encode(version, USER, OWN) + HELLO)
        assert await it.above.received(len(HELLO)) == HELLO
        assert ends(it.transport) == (USER, OWN)
        assert not it.waiting
        await it.said(b"more")
        assert await it.above.received(len(HELLO) + 4) == HELLO + b"more"
        assert not it.errors


@pytest.mark.parametrize("version", [V1, V2])
async def test_header_may_come_byte_by_byte(version: str) -> None:
    data = encode(version, USER, OWN) + HELLO
    async with accepted() as it:
        for at in range(len(data)):
            it.transport.get_protocol().data_received(data[at : at + 1])
        assert bytes(it.above.data) == HELLO
        assert ends(it.transport) == (USER, OWN)


async def test_header_without_data_opens_the_connection() -> None:
    async with accepted() as it:
        await it.said(encode(V2, USER, OWN))
        await it.above.opened()
        assert not it.above.data


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"])
async def test_header_without_address_keeps_the_proxys(header: bytes) -> None:
    async with accepted() as it:
        before = ends(it.transport)
        await it.said(header + HELLO)
        assert await it.above.received(len(HELLO)) == HELLO
        assert ends(it.transport) == before


async def test_untrusted_header_is_data() -> None:
    data = encode(V1, USER, OWN) + HELLO
    async with accepted(proxies=ELSEWHERE) as it:
        before = ends(it.transport)
        assert it.above.transport is it.transport  # at once
        assert not it.waiting
        await it.said(data)
        assert await it.above.received(len(data)) == data
        assert ends(it.transport) == before


@pytest.mark.parametrize(
    "data", [HELLO, b"GET / HTTP/1.1\r\n\r\n", b"PROPFIND / HTTP/1.1\r\n\r\n", b"\r\nGET /"]
)
async def test_missing_header(data: bytes) -> None:
    async with accepted(is_required=False) as it:
        for at in range(len(data)):
            it.transport.get_protocol().data_received(data[at : at + 1])
        assert bytes(it.above.data) == data
        assert not it.errors
    async with accepted() as it:
        await it.said(data)
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(it.peer, 1)
        (error,) = it.errors
        assert "the trusted proxy sent no PROXY header" in str(error)
        assert error.cause is Cause.PROXY_HEADER
        assert it.above.transport is None


@pytest.mark.parametrize("is_required", [True, False])
async def test_invalid_header_ends_the_connection(is_required: bool) -> None:
    async with accepted(is_required=is_required) as it:
        await it.said(b"PROXY TCP4 nonsense\r\n")
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(it.peer, 1)
        (error,) = it.errors
        assert error.cause is Cause.PROXY_HEADER
        assert not it.waiting


@pytest.mark.parametrize("begun", [b"", b"PROXY TCP4 "])
async def test_deadline(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, proxy_header)
    for is_required in (True, False):
        async with accepted(is_required=is_required) as it:
            if begun:
                it.transport.get_protocol().data_received(begun)
            await clock.passes(HEADER_TIME - 0.1)
            assert it.waiting
            await clock.passes(0.2)
            assert not it.waiting
            goes_on = not (begun or is_required)
            assert (it.above.transport is not None) == goes_on
            assert len(it.errors) == (not goes_on)
        assert not clock.pending


async def test_health_check_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, proxy_header)
    for ends_with_reset in (True, False):
        async with accepted() as it:
            if ends_with_reset:
                reset_on_close(it.peer)
            it.peer.close()
            while it.waiting:
                await asyncio.sleep(0.001)
            (error,) = it.errors
            assert error.cause is Cause.SILENT
        assert not clock.pending








async def test_end_within_the_header() -> None:
    async with accepted() as it:
        await it.said(b"PROXY TCP4 ")
        it.peer.shutdown(socket.SHUT_WR)
        while it.waiting:
            await asyncio.sleep(0.001)
        (error,) = it.errors
        assert (str(error), error.cause) == (
            "the connection ended in the PROXY header", Cause.EOF,
        )  # fmt: skip
