"""The numbers of both ends while tunnels fail."""

from __future__ import annotations

import contextlib
import functools

import pytest

from mtt.layers import tls
from mtt.net import admission
from mtt.outbound import connector
from tests.engine.applications import lost
from tests.engine.scraping import METRICS, address, failing, until
from tests.support.certs import Certs
from tests.support.metrics import failures, scrape
from tests.support.tunnels import (
    both_ends,
    client_of,
    connect,
    echo,
    in_every_mode,
    listening,
    maybe_reset,
    port_of,
    server_at,
    serving,
)


@in_every_mode
async def test_failures_to_dial(mode: str, certs: Certs, refused_port: int) -> None:
    async with (
        both_ends(mode, refused_port, certs, **METRICS) as (server, client),
        client_of(mode, refused_port, certs, **METRICS) as astray,
    ):
        for _ in range(3):
            await lost(port_of(client))
            await lost(port_of(astray))
        for service, count in ((server, 3), (client, 0), (astray, 3)):
            samples = await scrape(address(service))
            assert samples["dial_failures_total"] == count
            assert not failures(samples)
            assert samples["handshakes"] == 0


@in_every_mode
async def test_certificates_that_are_not_accepted(mode: str, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs, **METRICS) as server,
        client_of(mode, port_of(server), certs, ca=certs.other_ca, **METRICS) as client,
    ):
        for _ in range(2):
            await lost(port_of(client))
        assert await failing(client) == {"certificate": 2}
        samples = await until(server, lambda samples: sum(failures(samples).values()) == 2)
        assert failures(samples) == {"certificate": 2}


@in_every_mode
async def test_client_certificates_that_are_missing(mode: str, certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs, **METRICS, **{"client-ca": certs.ca}) as server,
        client_of(mode, port_of(server), certs, **METRICS) as client,
    ):
        await lost(port_of(client))
        assert await failing(server) == {"certificate": 1}
        assert await failing(client) == {"certificate": 1}


async def test_a_wrong_pin(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("tls", there.port, certs) as server,
        client_of("tls", port_of(server), certs, pin=["sha256/" + "A" * 43 + "="],
                  **METRICS) as client,
    ):  # fmt: skip
        await lost(port_of(client))
        assert await failing(client) == {"certificate": 1}


@pytest.mark.parametrize(
    ("mode", "said", "cause"),
    [
        ("tls", b"", "silent"),
        ("wss", b"", "silent"),
        ("tls", b"\x16\x03\x01", "eof"),
        ("tls", b"SSH-2.0-OpenSSH_9.2p1\r\n", "tls"),
        ("wss", b'GET /"} 1 HTTP/1.1\r\nHost: a\r\n\r\n', "plaintext_http"),
        ("wss", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", "plaintext_http"),
    ],
)
async def test_failed_handshakes_are_counted_by_cause(
    mode: str, said: bytes, cause: str, certs: Certs
) -> None:
    async with listening() as there, server_at(mode, there.port, certs, **METRICS) as server:
        async with await connect(port_of(server)) as stranger:
            await stranger.send(said)
            with maybe_reset():
                await stranger.finish()
                await stranger.rest()
        assert await failing(server) == {cause: 1}


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "http"),
        (b"GET /ws HTTP/1.1\r\nHost: a\r\n\r\n", "http"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "path"),
    ],
)
async def test_failures_behind_a_proxy_are_counted_by_cause(
    said: bytes, cause: str, certs: Certs
) -> None:
    options = {"disable-tls": True, "wss-path": "/ws", **METRICS}
    async with listening() as there, server_at("wss", there.port, certs, **options) as server:
        async with await connect(port_of(server)) as stranger:
            await stranger.send(said)
            await stranger.finish()
            await stranger.rest()
        assert await failing(server) == {cause: 1}


async def test_handshakes_that_take_too_long(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    short = functools.partialmethod(tls.TlsLayer.__init__, handshake_time=0.2)
    monkeypatch.setattr(tls.TlsLayer, "__init__", short)
    monkeypatch.setattr(connector, "DIAL_TIME", 0.2)
    async with (
        listening() as silent,
        server_at("tls", silent.port, certs, **METRICS) as server,
        client_of("tls", silent.port, certs, **METRICS) as client,
        await connect(port_of(server)),
    ):
        assert (await scrape(address(server)))["handshakes"] == 1
        assert await failing(server) == {"timeout": 1}
        await lost(port_of(client))
        assert await failing(client) == {"timeout": 1}


async def test_handshakes_that_are_cut_to_make_room(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission.Pending.__init__, "__defaults__", (5,))
    async with (
        listening() as there,
        server_at("wss", there.port, certs, **METRICS) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(12):
            await stack.enter_async_context(await connect(port_of(server)))
        samples = await until(server, lambda samples: samples["connections_total"] == 12)
        assert failures(samples) == {"overload": 7}


async def test_a_path_that_is_not_there(certs: Certs) -> None:
    async with (
        listening() as there,
        server_at("wss", there.port, certs, **METRICS, **{"wss-path": "/a"}) as server,
        client_of("wss", port_of(server), certs, **METRICS, **{"wss-path": "/b"}) as client,
    ):
        await lost(port_of(client))
        assert await failing(server) == {"path": 1}
        assert await failing(client) == {"http": 1}


async def test_ends_in_different_modes(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("mux", there.port, certs, **METRICS) as server,
        client_of("wss", port_of(server), certs) as client,
    ):
        await lost(port_of(client))
        samples = await until(server, lambda samples: samples["session_failures_total"] > 0)
        assert (samples["session_failures_total"], samples["sessions"]) == (1, 0)
