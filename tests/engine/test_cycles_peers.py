"""What other programs leave behind: v2ray-plugin's clients, proxies on either side, hostile peers.

As in `test_cycles`, nothing may wait for the garbage collector.
"""

from __future__ import annotations

import contextlib

import pytest

from mtt.errors import MttError
from mtt.wire import datagrams
from mtt.wire.early_data import encode as early
from mtt.wire.mux_cool import data_frames, end, keep_alive, new
from mtt.wire.proxy_protocol import V1, V2, encode
from tests.support.certs import Certs
from tests.support.garbage import collector_off
from tests.support.gopeer import tls_connect, upgrade_request, ws_frame
from tests.support.tunnels import (
    Tcp,
    client_of,
    connect,
    echo,
    empty,
    eventually,
    maybe_reset,
    port_of,
    server_at,
    serving,
    settled,
)

TIMES = 4  # ended by FIN and by RST in turn
USER, OWN = ("203.0.113.7", 4711), ("198.51.100.1", 443)
HEADER = encode(V2, USER, OWN)
STREAM = new(1) + data_frames(1, b"hello")

FIRST = {
    "nothing": b"",
    "stream": STREAM,
    "ended": STREAM + end(1),
    "reset": STREAM + end(1, error=True),
    "half a frame": STREAM[:-1],
    "twice": STREAM + STREAM,
    "malformed": new(1) + b"\xff\xff" + bytes(9),
    "other": new(1) + keep_alive(1) + data_frames(9, b"unknown") + data_frames(1, b"x"),
    "plain": b"hello, this is no mux at all",
}


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
@pytest.mark.parametrize("mode", ["wss", "v2ray+mux"])
async def test_foreign_clients(mode: str, first: bytes, certs: Certs) -> None:
    async with serving(echo) as there, server_at(mode, there.port, certs) as server:
        with collector_off() as left:
            for number in range(TIMES):
                protocol = early(first) if first and number == 0 else ""
                client = await tls_connect(port_of(server), certs)
                await client.send(upgrade_request(certs.name, "/", protocol))
                await client.until(b"\r\n\r\n")
                if not protocol and first:
                    await client.send(ws_frame(2, first, client=True))
                    with contextlib.suppress(OSError):
                        await client.read()
                client.reset() if number % 2 else client.close()
            await eventually(lambda: empty(server))
            await settled()
            del client
        assert not left


@pytest.mark.parametrize(
    "said", [b"", HEADER[:20], HEADER, HEADER + b"\x16\x03\x01", b"PROXY nonsense\r\n", b"GET / "]
)
@pytest.mark.parametrize("mode", ["tls", "wss"])
async def test_proxies_in_front(mode: str, said: bytes, certs: Certs) -> None:
    options = {"trusted-proxies": "127.0.0.0/8", "proxy-protocol": V1}
    async with serving(echo) as there, server_at(mode, there.port, certs, **options) as server:
        with collector_off() as left:
            for number in range(TIMES):
                proxy = await connect(port_of(server))
                await proxy.send(said)
                proxy.reset() if number % 2 else proxy.close()
            await eventually(lambda: empty(server))
            await settled()
            del proxy
        assert not left


ANSWERS = {
    "http": (b"", b"HTTP/1.1 403 Forbidden\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"SSH-2.0-x\r\n"),
    "socks5": (b"", b"\5\0\5\2\0\1", b"\5\0\5\0\0\1" + bytes(6), b"\5\xff", b"SSH-2.0-x\r\n"),
    "https": (b"", b"\x15\x03\x03\0\2\2\x28"),
}


@pytest.mark.parametrize("mode", ["tls", "wss+mux"])
@pytest.mark.parametrize("scheme", ANSWERS)
async def test_proxies_that_fail(scheme: str, mode: str, certs: Certs) -> None:
    answers = iter(ANSWERS[scheme])

    async def proxy(connection: Tcp) -> None:
        await connection.read()
        await connection.send(next(answers))

    async with serving(proxy) as there:
        url = f"{scheme}://user:password@127.0.0.1:{there.port}"
        async with client_of(mode, 443, certs, proxy=url) as client:
            with collector_off() as left:
                for _ in ANSWERS[scheme]:
                    async with await connect(port_of(client)) as application:
                        with maybe_reset():
                            assert await application.rest() == b""
                await eventually(lambda: not client.tunnels)
                await settled()
            assert not left


@pytest.mark.parametrize(
    "said",
    [
        datagrams.HEAD[:9],
        datagrams.HEAD,
        datagrams.HEAD + datagrams.encode(1, b"x") * 1000,
        datagrams.HEAD + b"\xff\xff" + bytes(4),
    ],
    ids=["half a head", "head", "flood", "malformed"],
)
async def test_links_of_datagrams(said: bytes, certs: Certs) -> None:
    async with serving(echo) as there, server_at("tls", there.port, certs, udp=True) as server:
        with collector_off() as left:
            for number in range(TIMES):
                client = await tls_connect(port_of(server), certs, alpn=["http/1.1"])
                await client.send(said)
                if len(said) > len(datagrams.HEAD):
                    with contextlib.suppress(OSError, MttError):
                        await client.read()
                client.reset() if number % 2 else client.close()
            await eventually(lambda: empty(server))
            await settled()
            del client
        assert not left
