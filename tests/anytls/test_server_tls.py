"""What comes without TLS, or with names for ALPN that the server does not have."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

from tests.anytls.serving import empty, server_for
from tests.anytls.strangers import in_front_of_a_site
from tests.support.certs import Certs
from tests.support.contexts import bare_context
from tests.support.gopeer import tls_connect
from tests.support.metrics import failures, numbers
from tests.support.tunnels import SOON, connect, eventually, logged, port_of


async def test_a_plain_http_request_is_answered_as_by_a_web_server(certs: Certs) -> None:
    async with asyncio.timeout(SOON), server_for(certs) as server:
        async with await connect(port_of(server)) as browser:
            await browser.send(b"GET / HTTP/1.1\r\nHost: test.local\r\n\r\n")
            answer = await browser.rest()
            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\n")
            assert b"The plain HTTP request was sent to HTTPS port" in answer
        await eventually(lambda: empty(server))
        found = failures(numbers(server))
        assert found == {"plaintext_http": 1}


async def test_visitor_without_tls_is_led_to_the_site(certs: Certs) -> None:
    """Which cannot serve the request: that it came without TLS is what nginx complains of."""
    async with in_front_of_a_site(certs) as (server, site):
        async with await connect(port_of(server)) as visitor:
            await visitor.send(b"GET / HT")
            await eventually(lambda: site.received == b"GET / HT")
            await visitor.send(b"TP/1.1\r\nHost: test.local\r\n\r\n")
            await eventually(
                lambda: site.received == b"GET / HTTP/1.1\r\nHost: test.local\r\nHost: a/b\r\n\r\n"
            )
            assert (await visitor.exactly(len(site.ANSWER))) == site.ANSWER
        found = failures(numbers(server))
        assert found == {"plaintext_http": 1}


@pytest.mark.parametrize(
    ("options", "offered", "agreed"),
    [
        ({}, ["h2", "http/1.1"], "http/1.1"),
        ({}, ["http/1.0"], "http/1.0"),
        ({}, [], None),
        ({"alpn": "custom"}, ["http/1.1", "custom"], "custom"),
        ({"alpn": ("h2", "http/1.1")}, ["h2", "http/1.1"], "http/1.1"),  # as a file has it
        ({"alpn": ("h2",)}, ["h2"], None),
    ],
)
async def test_alpn_is_that_of_a_site_without_http_2(
    options: dict[str, Any], offered: list[str], agreed: str | None, certs: Certs
) -> None:
    async with (
        server_for(certs, **options) as server,
        await tls_connect(port_of(server), certs, alpn=offered) as visitor,
    ):
        assert visitor.tls.selected_alpn_protocol() == agreed


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_clients_with_other_alpn_names_only_are_refused(
    version: ssl.TLSVersion, certs: Certs
) -> None:
    context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = version
    context.set_alpn_protocols(["h2", "other"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=certs.name).do_handshake()
    hello = outgoing.read()
    async with asyncio.timeout(SOON), server_for(certs) as server:
        with logged() as lines:
            async with await connect(port_of(server)) as client:
                await client.send(hello[:100])
                await client.send(hello[100:])
                assert await client.rest() == bytes.fromhex("15 03 03 00 02 02 78")
            await eventually(lambda: empty(server))
        (line,) = lines
        assert "no common ALPN name" in line
