"""The user's address: from proxies in front to the destination, the site and the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mtt.server import Server
from mtt.wire.proxy_protocol import V1, V2, encode
from tests.engine.visitors import GET, PATH, TUNNEL, in_front_of_a_site
from tests.mu.panel import multi_user_server
from tests.support.certs import Certs
from tests.support.tunnels import (
    SOON,
    Listening,
    Tcp,
    both_ends,
    cancel,
    client_of,
    connect,
    empty,
    eventually,
    in_every_mode,
    listening,
    logged,
    port_of,
    running,
    server_at,
    server_options,
    serving,
)

USER, OWN = ("203.0.113.7", 4711), ("198.51.100.1", 443)
LINE = encode(V1, USER, OWN)
HERE, ELSEWHERE = "127.0.0.0/8,10.0.0.0/8", "192.0.2.0/24"


@contextlib.asynccontextmanager
async def proxy(server: int, header: bytes) -> AsyncIterator[int]:
    """A TCP proxy in front of a port, which sends `header` first; its port."""

    async def pump(source: Tcp, target: Tcp) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read():
                await target.send(data)
            await target.finish()

    async def serve(user: Tcp) -> None:
        async with await connect(server) as far:
            await far.send(header)
            back = asyncio.create_task(pump(far, user))
            try:
                await pump(user, far)
                await back
            finally:
                await cancel(back)

    async with serving(serve) as there:
        yield there.port


async def served(there: Listening, port: int, header: bytes) -> None:
    """Check that the destination of a tunnel gets `header`, then what the application sends."""
    async with asyncio.timeout(SOON), await connect(port) as application:
        await application.send(b"data")
        destination = await there.accept()
        assert await destination.exactly(len(header) + 4) == header + b"data"
        await destination.send(b"answer")
        assert await application.exactly(6) == b"answer"
        destination.close()


@in_every_mode
async def test_header_passes_from_proxy_to_destination(mode: str, certs: Certs) -> None:
    options = {"trusted-proxies": HERE, "proxy-protocol": V1}
    async with (
        listening() as there,
        server_at(mode, there.port, certs, **options) as server,
        proxy(port_of(server), encode(V2, USER, OWN)) as front,
        client_of(mode, front, certs) as client,
    ):
        with logged(logging.DEBUG) as lines:
            await served(there, port_of(client), LINE)
            await eventually(lambda: any("closed after" in line for line in lines))
        assert any(line.startswith("DEBUG 203.0.113.7:4711: open") for line in lines)
        assert any(line.startswith("DEBUG 203.0.113.7:4711: closed after") for line in lines)


@in_every_mode
@pytest.mark.parametrize("version", [V1, V2])
async def test_destination_is_told_the_peer(mode: str, version: str, certs: Certs) -> None:
    async with (
        listening() as there,
        server_at(mode, there.port, certs, **{"proxy-protocol": version}) as server,
        client_of(mode, port_of(server), certs) as client,
        await connect(port_of(client)) as application,
    ):
        await application.send(b"data")
        destination = await there.accept()
        sample = encode(version, ("127.0.0.1", 12345), ("127.0.0.1", port_of(server)))
        header = await destination.exactly(len(sample))
        if version == V1:
            assert header.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
            assert header.endswith(b" %d\r\n" % port_of(server))
        else:
            assert (header[:24], header[26:]) == (sample[:24], sample[26:])
        assert await destination.exactly(4) == b"data"


@in_every_mode
async def test_no_header_to_destination_by_default(mode: str, certs: Certs) -> None:
    async with listening() as there, both_ends(mode, there.port, certs) as (_, client):
        await served(there, port_of(client), b"")


@pytest.mark.parametrize("tls", [True, False])
@pytest.mark.parametrize("mode", ["tls", "wss"])
async def test_untrusted_header_is_treated_as_a_probe(mode: str, tls: bool, certs: Certs) -> None:
    """The answer, the log and the metrics are as without the option."""
    seen = []
    for proxies in ({}, {"trusted-proxies": ELSEWHERE}):
        given: dict[str, Any] = {"disable-tls": not tls, **proxies}
        async with (
            listening() as there,
            server_at(mode, there.port, certs, **given) as server,
            await connect(port_of(server)) as prober,
        ):
            with logged() as lines:
                await prober.send(LINE + b"\r\n")
                if mode == "tls" and not tls:  # all bytes are for the destination
                    destination = await there.accept()
                    answer = await destination.exactly(len(LINE) + 2)
                else:
                    answer = await prober.until(b"\r\n\r\n")
                await prober.finish()
            said = [line.partition(f":{prober.sock.getsockname()[1]}: ")[2] for line in lines]
            counted = {cause: n for cause, n in server.counters.handshake_failures.items() if n}
            seen.append((answer.partition(b"Date:")[0], said, counted))
    assert seen[0] == seen[1]


async def request(port: int, *lines: bytes, header: bytes = b"") -> bytes:
    """Ask for a WebSocket with further header `lines`; returns the head of the answer."""
    async with asyncio.timeout(SOON), await connect(port) as peer:
        await peer.send(header + TUNNEL.replace(b"\r\n\r\n", b"\r\n" + b"".join(lines) + b"\r\n"))
        return await peer.until(b"\r\n\r\n")


@pytest.mark.parametrize(
    "header, lines, user",
    [
        (b"", [b"X-Forwarded-For: 198.51.100.9, 203.0.113.7, 10.0.0.2\r\n"], b"203.0.113.7 "),
        (b"", [b'Forwarded: for=198.51.100.9, for="[2001:db8::7]:4711"\r\n'], b"2001:db8::7 "),
        (b"", [], b"127.0.0.1 "),
        # Both: the connection's address comes first, and is believed only if it is a proxy's.
        (encode(V2, ("10.0.0.9", 5), OWN), [b"X-Forwarded-For: 203.0.113.7\r\n"], b"203.0.113.7 "),
        (encode(V2, USER, OWN), [b"X-Forwarded-For: 192.0.2.9\r\n"], b"203.0.113.7 "),
        (encode(V1, None, None), [b"X-Forwarded-For: 203.0.113.7\r\n"], b"203.0.113.7 "),
    ],
)  # fmt: skip
async def test_http_proxies_name_the_user(
    header: bytes, lines: list[bytes], user: bytes, certs: Certs
) -> None:
    options = {"trusted-proxies": HERE, "proxy-protocol": V1, "disable-tls": True}
    async with (
        listening() as there,
        server_at("wss", there.port, certs, **options) as server,
    ):
        assert b" 101 " in await request(port_of(server), *lines, header=header)
        destination = await there.accept()
        assert (await destination.until(b"\r\n")).split(b" ", 2)[2].startswith(user)


@pytest.mark.parametrize("proxies", [{}, {"trusted-proxies": ELSEWHERE}])
async def test_others_cannot_name_a_user(proxies: dict[str, str], certs: Certs) -> None:
    options = {"proxy-protocol": V1, "disable-tls": True, **proxies}
    async with (
        listening() as there,
        server_at("wss", there.port, certs, **options) as server,
    ):
        await request(port_of(server), b"X-Forwarded-For: 203.0.113.7\r\n")
        assert b" TCP4 127.0.0.1 " in await (await there.accept()).until(b"\r\n")


async def test_proxy_sends_requests_of_several_users(certs: Certs) -> None:
    """nginx keeps connections: the upgrade comes behind a request of somebody else."""
    options = {"trusted-proxies": HERE, "proxy-protocol": V1, "disable-tls": True}
    async with (
        listening() as there,
        server_at("wss", there.port, certs, **options, **{"wss-path": PATH}) as server,
        await connect(port_of(server)) as peer,
    ):
        with logged(logging.DEBUG) as lines:
            for number in (1, 2):
                user = b"Host: a\r\nX-Forwarded-For: 192.0.2.%d:80" % number
                await peer.send(GET.replace(b"Host: test.local", user))
                await peer.until(b"not found\n")
        assert [line.partition(": ")[0] for line in lines] == [
            "DEBUG 192.0.2.1:80", "DEBUG 192.0.2.2:80",
        ]  # fmt: skip
        await peer.send(TUNNEL.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n"))
        destination = await there.accept()
        line = await destination.until(b"\r\n")
        assert line == b"PROXY TCP4 203.0.113.7 127.0.0.1 0 %d\r\n" % port_of(server)


async def test_unix_socket_behind_an_http_proxy(certs: Certs, tmp_path: Any) -> None:
    path = str(tmp_path / "socket")
    async with listening() as there:
        server = Server(server_options({
            "bind-unix": path, "d": f"127.0.0.1:{there.port}", "wss": True, "disable-tls": True,
            "trusted-proxies": "unix", "proxy-protocol": V1,
        }))  # fmt: skip
        async with running(server):
            reader, writer = await asyncio.open_unix_connection(path)
            head = b"\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n"
            writer.write(TUNNEL.replace(b"\r\n\r\n", head))
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            line = await (await there.accept()).until(b"\r\n")
            assert line == b"PROXY TCP4 203.0.113.7 0.0.0.0 0 0\r\n"
            writer.close()


async def test_site_is_told_the_address(certs: Certs) -> None:
    options = {"trusted-proxies": HERE, "fallback-proxy-protocol": V2, "disable-tls": True}
    header = encode(V2, USER, OWN)
    async with in_front_of_a_site(certs, **options) as (server, site):
        async with proxy(port_of(server), LINE) as front, await connect(front) as visitor:
            await visitor.send(GET)
            assert await visitor.exactly(len(site.ANSWER)) == site.ANSWER
            assert site.received == header + GET
        await eventually(lambda: empty(server))


async def test_health_checks_are_not_logged(certs: Certs) -> None:
    options = {"trusted-proxies": HERE}
    async with listening() as there, server_at("tls", there.port, certs, **options) as server:
        with logged() as lines:
            for header in (b"", encode(V2, None, None), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"):
                async with await connect(port_of(server)) as check:
                    await check.send(header)
                    await check.finish()
                    assert await check.rest() == b""
            await eventually(lambda: empty(server))
        assert not lines
        assert server.counters.handshake_failures["silent"] == 3


async def test_missing_header_is_reported_with_its_fix(certs: Certs) -> None:
    options = {"trusted-proxies": HERE}
    async with listening() as there, server_at("tls", there.port, certs, **options) as server:
        with logged() as lines:
            async with await connect(port_of(server)) as peer:
                await peer.send(b"\x16\x03\x01")
                with pytest.raises(ConnectionResetError):
                    await peer.read()
        (line,) = lines
        assert "configure it to (HAProxy: send-proxy-v2, nginx: proxy_protocol on)" in line


async def test_multi_user_server_tells_the_destination(certs: Certs) -> None:
    options = {"trusted-proxies": HERE, "proxy-protocol": V1}
    async with (
        listening() as there,
        multi_user_server(certs, **options) as (server, panel),
        proxy(port_of(server), encode(V2, USER, OWN)) as front,
    ):
        await panel.add("/a", there.port)
        async with client_of("wss", front, certs, **{"wss-path": "/a"}) as client:
            await served(there, port_of(client), LINE)
