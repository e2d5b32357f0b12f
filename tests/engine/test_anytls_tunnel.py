"""AnyTLS as a mode of the tunnel: what is different from the other modes.

What they have in common is tested with the others, `in_every_mode`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from mtt.errors import UsageError
from mtt.layers import anytls_heads, anytls_stream
from mtt.options.tunnel import client_options, server_options
from mtt.outbound.anytls_pool import TUNNEL_DESTINATION
from mtt.wire.addresses import decode
from tests.support.anytlspeer import (
    PSH,
    SERVER_SETTINGS,
    SYNACK,
    UOT,
    AnyTlsPeer,
    frame,
    preamble,
    settings,
)
from tests.support.certs import Certs
from tests.support.gopeer import tls_connect
from tests.support.tunnels import (
    PASSWORD,
    SOON,
    Tcp,
    both_ends,
    check_works,
    client_of,
    connect,
    echo,
    empty,
    eventually,
    listening,
    logged,
    maybe_reset,
    port_of,
    server_at,
    serving,
)

PAGE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"


async def site(connection: Tcp) -> None:
    """A web site."""
    await connection.until(b"\r\n\r\n")
    await connection.send(PAGE)
    await connection.finish()


async def strict(connection: Tcp) -> None:
    """A web site that refuses at the first byte, as nginx."""
    await connection.read()
    await connection.send(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<html>")
    await connection.finish()


@pytest.mark.parametrize("host", ["127.0.0.1", "elsewhere.example", UOT])
async def test_every_stream_leads_to_the_one_destination(host: str, certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        listening() as elsewhere,
        serving(echo) as there,
        server_at("anytls", there.port, certs) as server,
        await tls_connect(port_of(server), certs) as tls,
    ):
        peer = AnyTlsPeer(tls)
        await peer.send(preamble(PASSWORD), settings())
        assert (await peer.frame())[0] == SERVER_SETTINGS
        await peer.open(1, host, elsewhere.port, b"hello")
        assert await peer.frame() == (SYNACK, 1, b"")
        assert await peer.frame() == (PSH, 1, b"hello")
        assert elsewhere.count == 0
        await peer.send(frame(PSH, 1, b"more"))
        assert await peer.frame() == (PSH, 1, b"more")


def test_the_name_that_clients_ask_for_does_not_exist() -> None:
    host, port, end = decode(TUNNEL_DESTINATION) or ("", 0, 0)
    # RFC 6761, 6.4.
    assert host.endswith(".invalid") and port
    assert end == len(TUNNEL_DESTINATION)


async def test_a_session_is_used_again(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        both_ends("anytls", there.port, certs) as (server, client),
    ):
        for _ in range(5):
            await check_works(port_of(client))
            await eventually(lambda: client._upstream.idle == 1)
        assert client.counters.sessions == server.counters.sessions == 1
        assert client.counters.streams == 5


async def test_sessions_are_made_ready(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("anytls", there.port, certs) as server,
        client_of("anytls", port_of(server), certs, warm=2) as client,
    ):
        pool = client._upstream
        await eventually(lambda: pool.idle == 2 and pool._newest_idle())
        await check_works(port_of(client))
        assert client.counters.sessions == 2
        async with asyncio.timeout(SOON):
            await client.drain()  # which nothing that is idle holds up
        await eventually(lambda: empty(server))


async def test_option_dr_makes_a_session_for_each_stream(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_at("anytls", there.port, certs) as server,
        client_of("anytls", port_of(server), certs, dr=True) as client,
    ):
        for _ in range(3):
            await check_works(port_of(client))
        await eventually(lambda: empty(server))
        assert client.counters.sessions == 3


@pytest.mark.parametrize("with_site", [False, True], ids=["alone", "site"])
@pytest.mark.parametrize("warm", [0, 3])
async def test_wrong_password_fails_with_a_reason(
    warm: int, with_site: bool, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application is told that it failed, and the log says why, at once."""
    # Waiting for either fails the test.
    monkeypatch.setattr(anytls_heads, "PREAMBLE_TIME", 60.0)
    monkeypatch.setattr(anytls_stream, "HEARTBEAT_DELAY", 60.0)
    with logged() as lines:
        async with (
            asyncio.timeout(2 * SOON),
            serving(strict) as web,
            serving(echo) as there,
            server_at(
                "anytls",
                there.port,
                certs,
                **({"fallback": f"127.0.0.1:{web.port}"} if with_site else {}),
            ) as server,
            client_of("anytls", port_of(server), certs, p="not that one", warm=warm) as client,
            await connect(port_of(client)) as application,
        ):
            with maybe_reset():
                await application.send(b"GET / HTTP/1.1\r\n\r\n")
                assert await application.rest() == b""
            assert there.count == 0
            await eventually(lambda: empty(server))
    assert any("WARNING" in line and "is the password right?" in line for line in lines), lines
    assert "not that one" not in "".join(lines)


async def test_clients_without_a_password_get_the_site(certs: Certs) -> None:
    async with (
        asyncio.timeout(SOON),
        serving(site) as web,
        serving(echo) as there,
        server_at("anytls", there.port, certs, fallback=f"127.0.0.1:{web.port}") as server,
        client_of("anytls", port_of(server), certs) as client,
    ):
        async with await tls_connect(port_of(server), certs, alpn=["h2", "http/1.1"]) as visitor:
            await visitor.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert await visitor.rest() == PAGE
        await check_works(port_of(client))
        assert (web.count, there.count) == (1, 1)


async def test_a_server_of_another_mode(certs: Certs) -> None:
    async with serving(site) as there, server_at("wss", there.port, certs) as server:
        with logged() as lines:
            async with (
                asyncio.timeout(SOON),
                client_of("anytls", port_of(server), certs) as client,
                await connect(port_of(client)) as application,
            ):
                with maybe_reset():
                    assert await application.rest() == b""
    assert any("is the password right?" in line for line in lines)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"wss": True}, "-anytls and -wss exclude each other"),
        ({"mux": True}, "-anytls and -mux exclude each other"),
        ({"preconnect": 2}, "-anytls and -preconnect exclude each other"),
        ({"disable-tls": True}, "-anytls and -disable-tls exclude each other"),
        ({"p": ""}, "-p is missing"),
        ({"anytls": False}, "-p: only meaningful with -anytls"),
        ({"password-file": "x"}, "exclude each other"),
        ({"m": 257}, "-m: 257"),
        ({"dr": True, "m": 3}, "-dr disables"),
        ({"dr": True, "warm": 3}, "-warm: only meaningful with reuse"),
        ({"warm": -1}, "-warm: -1"),
        ({"padding-scheme": "/nothing"}, "-padding-scheme: cannot read"),
    ],
)
def test_options_that_exclude_each_other(given: dict[str, Any], words: str) -> None:
    server = {"b": ":1", "d": "a:2", "anytls": True, "p": "x"} | given
    client = {"b": ":1", "s": "a:2", "anytls": True, "p": "x"} | given
    errors = []
    if not given.keys() & {"preconnect", "m", "dr", "warm"}:
        with pytest.raises(UsageError) as error:
            server_options(server)
        errors.append(str(error.value))
    if not given.keys() & {"disable-tls", "padding-scheme"}:
        with pytest.raises(UsageError) as error:
            client_options(client)
        errors.append(str(error.value))
    assert errors
    assert all(words in error for error in errors), errors


def test_the_password_is_in_no_representation(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("se;cret\n")
    path.chmod(0o600)
    given = {"b": ":1", "anytls": True, "password-file": str(path)}
    client, server = client_options(given | {"s": "a:2"}), server_options(given | {"d": "a:2"})
    assert client.anytls_password == server.anytls_password == "se;cret"
    assert "se;cret" not in f"{client!r} {server!r}"
