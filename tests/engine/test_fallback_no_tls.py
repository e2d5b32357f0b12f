"""`-fallback` and connections without TLS, with other names for ALPN, or without a word."""

from __future__ import annotations

import asyncio
import ssl

import pytest

from mtt.layers import tls as tls_layer
from tests.engine.visitors import GET, in_front_of, without_a_site
from tests.support.certs import Certs
from tests.support.clock import Clock
from tests.support.contexts import trusting_context
from tests.support.metrics import numbers
from tests.support.tunnels import Tcp, connect, eventually, port_of

SENT_TO_HTTPS = b"The plain HTTP request was sent to HTTPS port"
BAD_REQUEST = (
    b"<html>\r\n<head><title>400 Bad Request</title></head>\r\n<body>\r\n"
    b"<center><h1>400 Bad Request</h1></center>\r\n<hr><center>nginx</center>\r\n"
    b"</body>\r\n</html>\r\n"
)


async def test_plain_http_is_answered_as_the_site_does(certs: Certs) -> None:
    heads = []

    async def nginx(connection: Tcp) -> None:
        heads.append(await connection.until(b"\r\n\r\n"))
        head = f"HTTP/1.1 400 Bad Request\r\nContent-Length: {len(BAD_REQUEST)}\r\n\r\n"
        await connection.send(head.encode() + BAD_REQUEST)

    async with in_front_of(nginx, certs) as server:
        async with await connect(port_of(server)) as visitor:
            await visitor.send(GET)
            answer = await visitor.rest()
        assert heads == [GET.removesuffix(b"\r\n") + b"Host: a/b\r\n\r\n"]
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert answer.count(SENT_TO_HTTPS) == 2


async def test_plain_http_without_a_site_is_answered_as_nginx_does(certs: Certs) -> None:
    async with without_a_site(certs) as server:
        async with await connect(port_of(server)) as visitor:
            await visitor.send(GET)
            answer = await visitor.rest()
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n")
        assert answer.count(SENT_TO_HTTPS) == 2


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_visitor_with_other_alpn_names_only_gets_the_alert(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    context = trusting_context(certs.ca)
    context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    async with without_a_site(certs) as server:
        with pytest.raises(ssl.SSLError, match=r"(?i)no.application.protocol"):
            await asyncio.open_connection(
                "127.0.0.1", port_of(server), ssl=context, server_hostname=certs.name
            )


async def test_silence_before_tls_ends_after_60_seconds(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch, tls_layer)
    async with without_a_site(certs) as server, await connect(port_of(server)) as silent:
        await eventually(lambda: numbers(server)["handshakes"] == 1)
        await clock.passes(59.9)
        assert numbers(server)["handshakes"] == 1
        await clock.passes(0.2)
        assert await silent.rest() == b""
