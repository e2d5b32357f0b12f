"""Strangers at a server without -fallback: to them it is an nginx that has no page."""

from __future__ import annotations

import asyncio
import functools
import ssl
from typing import Any

import pytest

from anytls.server import Server
from mtt.http import nginx
from mtt.http import server as http_server
from mtt.http.limits import VISITORS
from mtt.http.server import HttpServer
from mtt.inbound import anytls_reader
from mtt.layers import anytls_heads
from mtt.layers import tls as tls_layer
from tests.anytls.serving import empty, server_for
from tests.anytls.strangers import NEVER, SHORT_REQUEST, WRONG, has_heard, waits
from tests.support.anytlspeer import (
    hashed,
    preamble,
)
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.gopeer import tls_connect
from tests.support.metrics import failures, numbers
from tests.support.tunnels import (
    SOON,
    connect,
    eventually,
    logged,
    port_of,
)

NOW = "Thu, 01 Jan 2026 00:00:00 GMT"
BAD_REQUEST = nginx.encode(nginx.error_reply(400), None, date=NOW, close=True)
NOTHING_HERE = b"HTTP/1.1 404 Not Found\r\nServer: nginx\r\n"
REQUEST = b"GET /a/long/path/for/more/than/a/hash HTTP/1.1\r\nHost: test.local\r\n\r\n"


@pytest.fixture(autouse=True)
def one_date(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (http_server, anytls_reader):
        monkeypatch.setattr(module, "http_date", lambda: NOW)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(WRONG, id="wrong password"),
        pytest.param(hashed("not it"), id="wrong hash and nothing else"),
        pytest.param(hashed()[:31] + b"\0", id="almost a hash"),
        pytest.param(hashed()[:31], id="less than a hash"),
        pytest.param(hashed("not it")[:31], id="less than a wrong hash"),
        pytest.param(b"\x16", id="one byte"),
        pytest.param(bytes(100_000), id="more than is read"),
        pytest.param(b"\x16\x03\x01" + b"GET / HTTP/1.1\r\n\r\n" * 3, id="a request too late"),
        pytest.param(b"GET /\1 HTTP/1.1\r\nHost: test.local\r\n\r\n", id="half a request"),
    ],
)
async def test_non_user_is_refused_at_once_as_bad_request(
    said: bytes, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch, preamble=NEVER)
    async with asyncio.timeout(SOON), server_for(certs) as server:
        with logged() as lines:
            async with await tls_connect(port_of(server), certs) as stranger:
                await stranger.send(said)
                # And close_notify, or this would raise.
                assert await stranger.rest() == BAD_REQUEST
            await eventually(lambda: empty(server))
        assert failures(numbers(server)) == {"password": 1}
        (line,) = lines
        assert "authentication failed (wrong password, or a scanner)" in line


async def test_a_web_visitor_finds_no_page(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    waits(monkeypatch, preamble=NEVER)
    async with asyncio.timeout(SOON), server_for(certs) as server:
        async with await tls_connect(port_of(server), certs) as visitor:
            for request in (REQUEST, REQUEST.replace(b"GET", b"POST")):
                await visitor.send(request)
                answer = await visitor.until(b"\r\n\r\n404 page not found\n")
                assert answer.startswith(NOTHING_HERE)
                assert numbers(server)["handshakes"] == 1
            await visitor.send(SHORT_REQUEST)
            answer = await visitor.rest()  # HTTP/1.0
            assert answer.startswith(NOTHING_HERE)
            assert b"\r\nConnection: close\r\n" in answer
        await eventually(lambda: empty(server))
        assert failures(numbers(server)) == {"path": 3}


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        pytest.param(b"SSH-2.0\r\n", BAD_REQUEST, id="ssh"),
        pytest.param(b"QUIT\r\n", BAD_REQUEST, id="command"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BAD_REQUEST, id="h2"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 Bad Request", id="no host"),
    ],
)
async def test_text_that_is_not_a_request(
    said: bytes, answer: bytes, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch, preamble=NEVER)
    async with asyncio.timeout(SOON), server_for(certs) as server:
        async with await tls_connect(port_of(server), certs) as visitor:
            await visitor.send(said)
            assert (await visitor.rest()).startswith(answer)
        await eventually(lambda: empty(server))
        assert failures(numbers(server)) == {"http": 1}


@pytest.mark.parametrize("size", [5, 31, 32, 40])
async def test_a_request_may_come_slowly(
    size: int, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch, preamble=NEVER)
    async with asyncio.timeout(SOON), server_for(certs) as server:
        async with await tls_connect(port_of(server), certs) as visitor:
            await visitor.send(REQUEST[:size])
            await eventually(lambda: is_web(server))
            await visitor.send(REQUEST[size:])
            answer = await visitor.until(b"not found\n")
            assert answer.startswith(NOTHING_HERE)
            await visitor.finish()
            with pytest.raises(ssl.SSLEOFError):  # no close_notify, as from nginx
                await visitor.read()
        await eventually(lambda: empty(server))


def is_web(server: Server) -> bool:
    """Whether its only connection is a web visitor's."""
    pending: Any = server._frontend.handshakes._transports
    return [type(tls.upper) for tls in pending] == [HttpServer]


async def test_slow_and_finished_visitors_are_closed(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the web server's own deadlines."""
    web = functools.partial(HttpServer, limits=VISITORS._replace(head=10, keepalive=10))
    monkeypatch.setattr(anytls_reader, "HttpServer", web)
    waits(monkeypatch, preamble=NEVER)
    clock = Clock(monkeypatch, http_server)
    async with asyncio.timeout(SOON), server_for(certs) as server:
        for said in (b"GET / HT", REQUEST[:-2], REQUEST):
            async with await tls_connect(port_of(server), certs) as visitor:
                await visitor.send(said)
                await eventually(lambda: is_web(server))
                if said == REQUEST:
                    answer = await visitor.until(b"not found\n")
                    assert answer.startswith(NOTHING_HERE)
                await clock.passes(9.99)
                assert is_web(server)
                await clock.passes(0.02)
                if said == REQUEST:
                    assert await visitor.rest() == b""
                else:
                    with pytest.raises(ssl.SSLEOFError):  # no close_notify, as from nginx
                        await visitor.read()
        await eventually(lambda: empty(server))
        assert failures(numbers(server)) == {"timeout": 2, "path": 1}


@pytest.mark.parametrize(
    ("said", "answer", "cause"),
    [
        pytest.param(b"", b"", "silent", id="nothing"),
        pytest.param(preamble()[:-1], BAD_REQUEST, "timeout", id="preamble but for one byte"),
    ],
)
async def test_incomplete_start_is_closed_at_the_deadline(
    said: bytes, answer: bytes, cause: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch, preamble=10)
    clock = Clock(monkeypatch, anytls_heads)
    async with asyncio.timeout(SOON), server_for(certs) as server:
        async with await tls_connect(port_of(server), certs) as stranger:
            await stranger.send(said)
            await eventually(lambda: has_heard(server, said))
            await clock.passes(9.99)
            assert has_heard(server, said)
            await clock.passes(0.02)
            assert await stranger.rest() == answer
        await eventually(lambda: empty(server))
        assert failures(numbers(server)) == {cause: 1}


async def test_client_that_disconnects_is_closed_at_once(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits(monkeypatch, preamble=NEVER)
    async with asyncio.timeout(SOON), server_for(certs) as server:
        with logged() as lines:
            for said, answer in ((b"", b""), (preamble()[:-1], BAD_REQUEST)):
                async with await tls_connect(port_of(server), certs) as stranger:
                    await stranger.send(said)
                    await stranger.finish()
                    if answer:
                        assert await stranger.exactly(len(answer)) == answer
                    with pytest.raises(ssl.SSLEOFError):  # no close_notify, as from nginx
                        await stranger.read()
            stranger = await tls_connect(port_of(server), certs)
            await stranger.send(hashed())
            await eventually(lambda: has_heard(server, hashed()))
            stranger.reset()
            await eventually(lambda: empty(server))
        found = failures(numbers(server))
        assert found == {"silent": 1, "eof": 2}
        assert [line.partition(" ")[0] for line in lines] == ["WARNING"] * 2


async def test_visitor_that_disconnects_is_closed_at_once(certs: Certs) -> None:
    async with asyncio.timeout(SOON), server_for(certs) as server:
        async with await tls_connect(port_of(server), certs) as visitor:
            await visitor.send(b"GET / HT")
            await visitor.finish()
            with pytest.raises(ssl.SSLEOFError):  # and not a word, as from nginx
                await visitor.read()
        visitor = await tls_connect(port_of(server), certs)
        await visitor.send(REQUEST)
        await visitor.until(b"\r\n\r\n")
        visitor.reset()
        await eventually(lambda: empty(server))
        assert failures(numbers(server)) == {"eof": 1, "path": 1}


async def test_silent_connection_lasts_as_long_as_with_nginx(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before TLS and after its handshake."""
    clock = Clock(monkeypatch, anytls_heads, tls_layer)
    async with asyncio.timeout(SOON), server_for(certs) as server:
        for connecting in (connect(port_of(server)), tls_connect(port_of(server), certs)):
            async with await connecting as silent:
                await eventually(lambda: numbers(server)["handshakes"] == 1)
                await clock.passes(59.9)
                assert numbers(server)["handshakes"] == 1
                await clock.passes(0.2)
                assert await silent.rest() == b""
            await eventually(lambda: empty(server))
