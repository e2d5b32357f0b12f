"""`-fallback`: what is no tunnel goes to a web site, bytes unchanged."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from tests.engine.visitors import (
    GET,
    PATH,
    TUNNEL,
    in_front_of,
    in_front_of_a_site,
    leave,
    visit,
    without_a_site,
)
from tests.support.certs import Certs
from tests.support.gopeer import tls_connect
from tests.support.site import Site
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
async def test_other_requests_reach_the_site_unchanged(request_bytes: bytes, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        in_front_of_a_site(certs, there.port) as (server, site),
    ):
        reader, writer = await visit(port_of(server), certs)
        writer.write(request_bytes)
        assert await reader.readexactly(len(site.ANSWER)) == site.ANSWER
        await eventually(lambda: site.received == request_bytes)
        assert there.count == 0
        await leave(writer)


@pytest.mark.parametrize("request_bytes", [b"GET / HT", GET], ids=["unfinished", "whole"])
async def test_end_of_a_visitor_reaches_the_site(request_bytes: bytes, certs: Certs) -> None:
    async def serve(connection: Tcp) -> None:
        assert await connection.rest() == request_bytes
        await connection.send(Site.ANSWER)

    async with (
        in_front_of(serve, certs, **{"disable-tls": True}) as server,
        await connect(port_of(server)) as visitor,
    ):
        await visitor.send(request_bytes)
        await visitor.finish()
        assert await visitor.rest() == Site.ANSWER
        await eventually(lambda: empty(server))


async def test_visitor_sees_the_end_of_the_site_at_once(
    certs: Certs, short_linger: None
) -> None:
    """close_notify and FIN, as from a web server, while the visitor keeps its side open."""

    async def close_behind_the_answer(connection: Tcp) -> None:
        await connection.until(b"\r\n\r\n")
        await connection.send(Site.ANSWER)

    async with (
        in_front_of(close_behind_the_answer, certs) as server,
        await tls_connect(port_of(server), certs) as visitor,
    ):
        await visitor.send(GET)
        assert await visitor.rest() == Site.ANSWER
        assert await asyncio.get_running_loop().sock_recv(visitor.sock, 1) == b""
        await eventually(lambda: empty(server))


async def test_slow_visitor_gets_no_close_notify(certs: Certs) -> None:
    """As from nginx, which says it to those only whose requests were complete."""

    async def too_slow(connection: Tcp) -> None:
        await connection.read()

    async with in_front_of(too_slow, certs) as server:
        for said in (b"GET / HT", GET):
            async with await tls_connect(port_of(server), certs) as visitor:
                await visitor.send(said)
                if said == GET:
                    assert await visitor.rest() == b""
                else:
                    with pytest.raises(ssl.SSLEOFError):
                        await visitor.read()


async def test_visitor_that_ends_first_gets_no_close_notify(certs: Certs) -> None:
    """As from nginx."""

    async def serve(connection: Tcp) -> None:
        assert await connection.rest() == GET
        await connection.send(Site.ANSWER)

    async with (
        in_front_of(serve, certs) as server,
        await tls_connect(port_of(server), certs) as visitor,
    ):
        await visitor.send(GET)
        await visitor.finish()
        assert await visitor.exactly(len(Site.ANSWER)) == Site.ANSWER
        with pytest.raises(ssl.SSLEOFError):
            await visitor.read()


async def test_client_gets_its_tunnel_beside_the_site(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        in_front_of_a_site(certs, there.port) as (server, site),
        client_of("wss", port_of(server), certs, **{"wss-path": PATH}) as client,
    ):
        await check_works(port_of(client))
        assert site.visits == 0


async def test_visitor_of_a_site_that_is_down_is_cut_with_one_line(certs: Certs) -> None:
    down = {"wss-path": PATH, "fallback": "127.0.0.1:1"}
    async with server_at("wss", 1, certs, **down) as server:
        with logged() as lines:
            async with asyncio.timeout(SOON), await connect(port_of(server)):
                reader, writer = await visit(port_of(server), certs)
                writer.write(GET)
                with pytest.raises((ConnectionError, ssl.SSLError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1)
                writer.close()
                with pytest.raises((ConnectionError, ssl.SSLError)):
                    await writer.wait_closed()
        (line,) = lines
        assert line.endswith(": -fallback: cannot connect to 127.0.0.1:1: connection refused")


async def test_visitors_count_for_max_conns(certs: Certs) -> None:
    """Connections that shook hands before the limit was reached are held to it as well."""
    async with in_front_of_a_site(certs, **{"max-conns": 2}) as (server, site):
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


async def test_answers_without_a_site_are_those_of_nginx(certs: Certs) -> None:
    async with (
        without_a_site(certs, **{"wss-path": PATH}) as server,
        await tls_connect(port_of(server), certs) as visitor,
    ):
        await visitor.send(GET)
        answer = await visitor.until(b"404 page not found\n")
        assert answer.startswith(b"HTTP/1.1 404 Not Found\r\nServer: nginx\r\n")
        await visitor.send(b"no request\r\n")
        answer = await visitor.until(b"</html>\r\n")
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n")
