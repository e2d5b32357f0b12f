"""`-fallback`: when a connection is known to begin a tunnel, and when it is the site's."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest

from mtt.http import server as http_server
from mtt.http.fallback import SITE_TIME
from mtt.wire.upgrade import MAX_LINE
from tests.engine.visitors import GET, PATH, TUNNEL, in_front_of_a_site, is_web, leave, visit
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.gopeer import tls_connect
from tests.support.metrics import numbers
from tests.support.tunnels import SOON, echo, empty, eventually, port_of, server_at, serving


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"\0", id="one byte"),
        pytest.param(b"H", id="other method"),
        pytest.param(b"GET /\1", id="control character"),
        pytest.param(b"GET /secret HTTX", id="no HTTP"),
        pytest.param(b"GET /" + b"a" * (MAX_LINE - 4), id="long line"),
        pytest.param(b"GET /secret HTTP/1.1\r\nHost: te/st\r\n", id="bad host"),
        pytest.param(b"GET /secret HTTP/1.1\r\nHost: test\r\n:", id="bad header"),
    ],
)
@pytest.mark.parametrize("first", [b"", GET], ids=["first request", "second request"])
async def test_site_judges_at_the_first_byte_that_begins_no_tunnel(
    said: bytes, first: bytes, certs: Certs
) -> None:
    async with (
        in_front_of_a_site(certs) as (server, site),
        await tls_connect(port_of(server), certs) as visitor,
    ):
        if first:
            await visitor.send(first)
            await visitor.exactly(len(site.ANSWER))
        await visitor.send(said[:-1])
        await eventually(lambda: site.received == first + said[:-1][: len("GET ")])
        await visitor.send(said[-1:])
        await eventually(lambda: site.received == first + said)


async def test_tunnel_request_in_pieces_is_hidden_from_the_site(certs: Certs) -> None:
    """All that the site hears is that a request has begun, so that its clock runs."""
    async with (
        serving(echo) as there,
        in_front_of_a_site(certs, there.port) as (server, site),
        await tls_connect(port_of(server), certs) as client,
    ):
        for at in range(len(TUNNEL)):
            await client.send(TUNNEL[at : at + 1])
            if at == len(TUNNEL) - 2:
                await eventually(lambda: site.received == b"GET ")
                assert numbers(server)["handshakes"] == 1  # limited in number until it is clear
        assert b"HTTP/1.1 101 " in await client.until(b"\r\n\r\n")


async def test_silent_visitor_is_given_to_the_site(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, http_server)
    async with serving(echo) as there, in_front_of_a_site(certs, there.port) as (server, site):
        _, silent = await visit(port_of(server), certs)
        reader, late = await visit(port_of(server), certs)
        await eventually(lambda: is_web(server))
        await clock.passes(SITE_TIME - 0.01)
        assert not site.visits
        await clock.passes(0.02)
        await eventually(lambda: site.visits == 2)
        assert numbers(server)["handshakes"] == 2
        late.write(TUNNEL)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert site.received == b""
        assert numbers(server)["handshakes"] == 1
        await leave(silent)
        await leave(late)


async def test_slow_tunnel_is_served_when_the_site_is_down(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, http_server)
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_at(
            "wss", there.port, certs, **{"wss-path": PATH, "fallback": "127.0.0.1:1"}
        ) as server,
    ):
        for begun in (b"", TUNNEL[:10]):
            reader, writer = await visit(port_of(server), certs)
            writer.write(begun)
            if not begun:
                await eventually(lambda: is_web(server))
                await clock.passes(SITE_TIME + 0.01)
            await eventually(lambda: server.counters.dial_failures == 1 and is_web(server))
            server.counters.dial_failures = 0
            writer.write(TUNNEL[len(begun) :])
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            await leave(writer)
        await eventually(lambda: empty(server))


async def test_requests_go_to_the_site_until_one_begins_a_tunnel(certs: Certs) -> None:
    """As from a CDN that uses connections again."""
    upload = b"POST /form HTTP/1.1\r\nHost: test.local\r\nContent-Length: 100000\r\n\r\n"
    body = (TUNNEL * 1000)[:100_000]  # bodies are no requests
    async with (
        serving(echo) as there,
        in_front_of_a_site(certs, there.port) as (server, site),
    ):
        reader, writer = await visit(port_of(server), certs)
        writer.write(GET)
        await reader.readexactly(len(site.ANSWER))
        writer.write(upload + body)
        await eventually(lambda: site.received == GET + upload + body)
        for _ in range(site.answers - 1):  # to the pieces of the upload
            await reader.readexactly(len(site.ANSWER))
        writer.write(TUNNEL)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(b"\x82\x85\0\0\0\0hello")
        assert await reader.readexactly(7) == b"\x82\x05hello"
        assert site.received == GET + upload + body
        assert (site.visits, there.count) == (1, 1)
        with contextlib.suppress(ssl.SSLError):  # the WebSocket says its last word behind our end
            await leave(writer)
