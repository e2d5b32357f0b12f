"""`-fallback`: what is no tunnel goes to a web site, bytes unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt.http import server as http_server
from mtt.http.fallback import SITE_TIME
from mtt.http.server import HttpServer
from mtt.layers import tls as tls_layer
from mtt.server import Server
from mtt.wire import upgrade
from mtt.wire.upgrade import MAX_LINE
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.contexts import trusting_context
from tests.support.gopeer import tls_connect
from tests.support.tunnels import (
    SOON,
    Tcp,
    check_works,
    client_of,
    connect,
    echo,
    empty,
    eventually,
    logged,
    port_of,
    server_at,
    serving,
)

PATH = "/secret"
GET = b"GET /page HTTP/1.1\r\nHost: test.local\r\n\r\n"
KEY = "AAAAAAAAAAAAAAAAAAAAAA=="
TUNNEL = upgrade.request(PATH, "test.local", KEY, ("smux_off",))


class Site:
    """A web site that keeps what it gets and answers each chunk of it with a fixed text.

    It says nothing to the first word of a request.
    """

    ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsite"

    def __init__(self) -> None:
        self.received = b""
        self.visits = 0
        self.answers = 0

    async def serve(self, connection: Tcp) -> None:
        self.visits += 1
        while data := await connection.read():
            self.received += data
            if self.received != b"GET ":
                self.answers += 1
                await connection.send(self.ANSWER)


async def visit(port: int, certs: Certs) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = trusting_context(certs.ca)
    return await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=certs.name)


async def leave(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ssl.SSLError):  # asyncio objects to data behind its close_notify
        await writer.wait_closed()


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(GET, id="other path"),
        pytest.param(GET.replace(b"/page", PATH.encode()), id="no upgrade"),
        pytest.param(TUNNEL.replace(b"GET", b"PUT"), id="wrong method"),
        pytest.param(TUNNEL.replace(b"HTTP/1.1", b"HTTP/1.0"), id="old version"),
        pytest.param(TUNNEL.replace(b"Version: 13", b"Version: 8"), id="wrong WebSocket"),
        pytest.param(TUNNEL + b"early", id="early bytes"),
        pytest.param(b"\x00\x01 garbage\r\n\r\n", id="garbage"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(b"GET /" + b"a" * 40_000, id="endless head"),
    ],
)
async def test_whatever_is_no_tunnel_reaches_the_site_unchanged(
    request_bytes: bytes, certs: Certs
) -> None:
    site = Site()
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        serving(site.serve) as web,
        server_at(
            "wss", there.port, certs, **{"wss-path": PATH, "fallback": f"127.0.0.1:{web.port}"}
        ) as server,
    ):
        reader, writer = await visit(port_of(server), certs)
        writer.write(request_bytes)
        assert await reader.readexactly(len(site.ANSWER)) == site.ANSWER
        await eventually(lambda: site.received == request_bytes)
        assert there.count == 0
        await leave(writer)
        await eventually(lambda: empty(server))


@pytest.mark.parametrize("request_bytes", [b"GET / HT", GET], ids=["unfinished", "whole"])
async def test_the_site_hears_that_a_visitor_has_ended(request_bytes: bytes, certs: Certs) -> None:
    async def serve(connection: Tcp) -> None:
        assert await connection.rest() == request_bytes
        await connection.send(Site.ANSWER)

    async with (
        asyncio.timeout(SOON),
        serving(serve) as web,
        server_at(
            "wss",
            1,
            certs,
            **{"wss-path": PATH, "fallback": f"127.0.0.1:{web.port}"},
            **{"disable-tls": True},
        ) as server,
        await connect(port_of(server)) as visitor,
    ):
        await visitor.send(request_bytes)
        await visitor.finish()
        assert await visitor.rest() == Site.ANSWER
        await eventually(lambda: empty(server))


async def test_visitor_sees_the_end_of_the_site_at_once(certs: Certs) -> None:
    """close_notify and FIN, as from a web server, while the visitor keeps its side open."""

    async def close_behind_the_answer(connection: Tcp) -> None:
        await connection.until(b"\r\n\r\n")
        await connection.send(Site.ANSWER)

    async with (
        asyncio.timeout(SOON),
        serving(close_behind_the_answer) as web,
        server_at(
            "wss", 1, certs, **{"wss-path": PATH, "fallback": f"127.0.0.1:{web.port}"}
        ) as server,
        await tls_connect(port_of(server), certs) as visitor,
    ):
        await visitor.send(GET)
        assert await visitor.rest() == Site.ANSWER
        assert await asyncio.get_running_loop().sock_recv(visitor.sock, 1) == b""
        await eventually(lambda: empty(server))


@contextlib.asynccontextmanager
async def in_front_of_a_site(certs: Certs, port: int) -> AsyncIterator[tuple[Server, Site]]:
    """A server with a site, and a tunnel to `port` at PATH."""
    site = Site()
    async with (
        asyncio.timeout(SOON),
        serving(site.serve) as web,
        server_at(
            "wss", port, certs, **{"wss-path": PATH, "fallback": f"127.0.0.1:{web.port}"}
        ) as server,
    ):
        yield server, site
        await eventually(lambda: empty(server))


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
        in_front_of_a_site(certs, 1) as (server, site),
        await tls_connect(port_of(server), certs) as visitor,
    ):
        if first:
            await visitor.send(first)
            await visitor.exactly(len(site.ANSWER))
        await visitor.send(said[:-1])
        await eventually(lambda: site.received == first + said[:-1][: len("GET ")])
        await visitor.send(said[-1:])
        await eventually(lambda: site.received == first + said)


async def test_tunnel_request_may_come_in_pieces_and_stays_unknown_to_the_site(
    certs: Certs,
) -> None:
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
                assert server._frontend.pending == 1  # limited in number until it is clear
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
        assert server._frontend.pending == 2
        late.write(TUNNEL)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert site.received == b""
        assert server._frontend.pending == 1
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


def is_web(server: Server) -> bool:
    """Whether all that is no tunnel yet is waited for, without the site."""
    pending: Any = server._frontend.handshakes._transports
    return bool(pending) and all(type(each.get_protocol()) is HttpServer for each in pending)


async def test_visitor_who_is_too_slow_hears_no_close_notify(certs: Certs) -> None:
    """As from nginx, which says it to those only whose requests were complete."""

    async def too_slow(connection: Tcp) -> None:
        await connection.read()

    async with (
        asyncio.timeout(SOON),
        serving(too_slow) as web,
        server_at(
            "wss", 1, certs, **{"wss-path": PATH, "fallback": f"127.0.0.1:{web.port}"}
        ) as server,
    ):
        for said in (b"GET / HT", GET):
            async with await tls_connect(port_of(server), certs) as visitor:
                await visitor.send(said)
                if said == GET:
                    assert await visitor.rest() == b""
                else:
                    with pytest.raises(ssl.SSLEOFError):
                        await visitor.read()
        await eventually(lambda: empty(server))


async def test_visitor_who_ends_first_hears_no_close_notify(certs: Certs) -> None:
    """As from nginx."""

    async def serve(connection: Tcp) -> None:
        assert await connection.rest() == GET
        await connection.send(Site.ANSWER)

    async with (
        asyncio.timeout(SOON),
        serving(serve) as web,
        server_at(
            "wss", 1, certs, **{"wss-path": PATH, "fallback": f"127.0.0.1:{web.port}"}
        ) as server,
    ):
        async with await tls_connect(port_of(server), certs) as visitor:
            await visitor.send(GET)
            await visitor.finish()
            assert await visitor.exactly(len(Site.ANSWER)) == Site.ANSWER
            with pytest.raises(ssl.SSLEOFError):
                await visitor.read()
        await eventually(lambda: empty(server))


async def test_requests_of_one_connection_go_to_the_site_until_one_begins_a_tunnel(
    certs: Certs,
) -> None:
    """As a CDN does it that keeps connections for whoever comes next."""
    site = Site()
    upload = b"POST /form HTTP/1.1\r\nHost: test.local\r\nContent-Length: 100000\r\n\r\n"
    body = (TUNNEL * 1000)[:100_000]  # bodies are no requests
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        serving(site.serve) as web,
        server_at(
            "wss", there.port, certs, **{"wss-path": PATH, "fallback": f"127.0.0.1:{web.port}"}
        ) as server,
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
        await eventually(lambda: empty(server))


async def test_our_client_gets_its_tunnel_beside_the_site(certs: Certs) -> None:
    site = Site()
    given = {"wss-path": PATH}
    async with (
        serving(echo) as there,
        serving(site.serve) as web,
        server_at("wss", there.port, certs, **given, fallback=f"127.0.0.1:{web.port}") as server,
        client_of("wss", port_of(server), certs, **given) as client,
    ):
        await check_works(port_of(client))
        assert site.visits == 0


async def test_a_site_that_is_down_closes_the_connection_with_one_line(certs: Certs) -> None:
    nobody = {"wss-path": PATH, "fallback": "127.0.0.1:1"}
    async with server_at("wss", 1, certs, **nobody) as server:
        with logged() as lines:
            async with asyncio.timeout(SOON), await connect(port_of(server)):
                reader, writer = await visit(port_of(server), certs)
                writer.write(GET)
                with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1)
                writer.close()
                with pytest.raises((ConnectionError, ssl.SSLError)):
                    await writer.wait_closed()
        assert [line for line in lines if "127.0.0.1:1: connection refused" in line]
        assert len(lines) == 1


async def test_visitors_count_for_max_conns(certs: Certs) -> None:
    """Connections that shook hands before the limit was reached are held to it as well."""
    site = Site()
    given = {"wss-path": PATH, "max-conns": 2}
    async with (
        asyncio.timeout(SOON),
        serving(site.serve) as web,
        server_at("wss", 1, certs, **given, fallback=f"127.0.0.1:{web.port}") as server,
    ):
        visitors = [await visit(port_of(server), certs) for _ in range(4)]
        for number, (reader, writer) in enumerate(visitors):
            writer.write(GET)
            if number < 2:
                assert await reader.readexactly(len(site.ANSWER)) == site.ANSWER
            else:
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1)
        for number, (_, writer) in enumerate(visitors):
            if number < 2:
                await leave(writer)
            else:
                writer.close()
                with pytest.raises((ConnectionError, ssl.SSLError)):
                    await writer.wait_closed()
        await eventually(lambda: empty(server))
        assert site.visits == 2


async def test_without_a_site_every_answer_is_that_of_an_nginx(certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_at("wss", there.port, certs, **{"wss-path": PATH}) as server,
    ):
        async with await tls_connect(port_of(server), certs) as visitor:
            await visitor.send(GET)
            answer = await visitor.until(b"404 page not found\n")
            assert answer.startswith(b"HTTP/1.1 404 Not Found\r\nServer: nginx\r\n")
            await visitor.send(b"no request\r\n")
            answer = await visitor.until(b"</html>\r\n")
            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n")
        await eventually(lambda: empty(server))


# Without TLS, and with names for ALPN that no web server of ours has.

SENT_TO_HTTPS = b"The plain HTTP request was sent to HTTPS port"
BAD_REQUEST = (
    b"<html>\r\n<head><title>400 Bad Request</title></head>\r\n<body>\r\n"
    b"<center><h1>400 Bad Request</h1></center>\r\n<hr><center>nginx</center>\r\n"
    b"</body>\r\n</html>\r\n"
)


async def test_visitor_without_tls_hears_what_is_wrong_from_the_site(certs: Certs) -> None:
    heads = []

    async def nginx(connection: Tcp) -> None:
        heads.append(await connection.until(b"\r\n\r\n"))
        head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(BAD_REQUEST)}\r\n\r\n"
        await connection.send(head.encode() + BAD_REQUEST)

    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        serving(nginx) as web,
        server_at("wss", there.port, certs, fallback=f"127.0.0.1:{web.port}") as server,
    ):
        async with await connect(port_of(server)) as visitor:
            await visitor.send(GET)
            answer = await visitor.rest()
        assert heads == [GET.removesuffix(b"\r\n") + b"Host: a/b\r\n\r\n"]
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert answer.count(SENT_TO_HTTPS) == 2
        await eventually(lambda: empty(server))


async def test_visitor_without_tls_hears_what_is_wrong_without_a_site(certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_at("wss", there.port, certs) as server,
    ):
        async with await connect(port_of(server)) as visitor:
            await visitor.send(GET)
            answer = await visitor.rest()
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n")
        assert answer.count(SENT_TO_HTTPS) == 2
        await eventually(lambda: empty(server))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_visitor_with_other_alpn_names_only_gets_the_alert(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    context = trusting_context(certs.ca)
    context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_at("wss", there.port, certs) as server,
    ):
        with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
            await asyncio.open_connection(
                "127.0.0.1", port_of(server), ssl=context, server_hostname=certs.name
            )
        await eventually(lambda: empty(server))


async def test_silence_before_tls_lasts_as_long_as_at_an_nginx(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, tls_layer)
    async with (
        asyncio.timeout(SOON),
        serving(echo) as there,
        server_at("wss", there.port, certs) as server,
    ):
        async with await connect(port_of(server)) as silent:
            await eventually(lambda: server._frontend.pending == 1)
            await clock.passes(59.9)
            assert server._frontend.pending == 1
            await clock.passes(0.2)
            assert await silent.rest() == b""
        await eventually(lambda: empty(server))
