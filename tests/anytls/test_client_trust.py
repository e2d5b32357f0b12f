"""Whom our AnyTLS client trusts, and what it shows of itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.anytls.proxying import check_echo, client_for, reply_of, through
from tests.anytls.serving import empty, server_for
from tests.proxy.clients import TUNNELS
from tests.support.certs import Certs
from tests.support.tunnels import (
    SOON,
    connect,
    echo,
    eventually,
    listening,
    logged,
    port_of,
    serving,
)

GENERAL = 1


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({}, b"test.local"),
        ({"n": "other.example"}, b"other.example"),
        ({"n": "192.0.2.1"}, b""),
        ({"n": ""}, b""),  # the address of -s
        ({"alpn": "h2,http/1.1"}, b"\x02h2\x08http/1.1"),
    ],
)
async def test_the_first_message(options: dict[str, str], shown: bytes, certs: Certs) -> None:
    async with (
        listening() as there,
        client_for(certs, there.port, **options) as client,
        await connect(port_of(client)) as application,
        asyncio.timeout(SOON),
    ):
        await application.send(TUNNELS["socks5"](1)[0])
        hello = await (await there.accept()).read()
        assert shown in hello
        # The types of the extensions (RFC 6066, RFC 7301), with the beginnings of these.
        assert (b"\0\0\0" in hello and b".example" in hello) == (b".example" in shown)
        assert (b"h2" in hello) == ("alpn" in options)
        for name in (b"test.local", b"192.0.2.1", b"127.0.0.1"):
            assert (name in hello) == (name == b"test.local" and options.keys() <= {"alpn"})


async def test_verification(certs: Certs) -> None:
    async with serving(echo) as there, server_for(certs) as server:
        port, pin = port_of(server), server._tls.identity.words.pin  # type: ignore[union-attr]
        for options in ({}, {"pin": (pin,)}, {"sv": True}, {"n": "127.0.0.1"}):
            async with client_for(certs, port, **options) as client:
                with logged() as lines:
                    client.announce()
                assert ("NOT VERIFIED" in lines[0]) == ("sv" in options)
                await check_echo(client, there.port)
        for wrong, words in (
            ({"ca": certs.other_ca}, "certificate not accepted"),
            ({"n": "other.example"}, "certificate not accepted: Hostname mismatch"),
            ({"pin": ("sha256/" + "A" * 43 + "=",)}, f"the server's pin is {pin}"),
        ):
            with logged() as lines:
                async with client_for(certs, port, **wrong) as client:
                    assert await reply_of(client, "127.0.0.1", there.port) == GENERAL
            warnings = "\n".join(line for line in lines if f"127.0.0.1:{port}: " in line)
            assert words in warnings


async def test_tls_sessions_are_resumed(certs: Certs) -> None:
    async with (
        serving(echo) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server), dr=True) as client,
    ):
        await check_echo(client, there.port)
        await eventually(lambda: empty(server))
        async with through(client, there.port):
            (session,) = client._sessions()
            assert session.lower.get_extra_info("ssl_object").session_reused


async def test_certificates_are_read_again(certs: Certs, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Path(certs.other_ca).read_bytes())
    async with (
        serving(echo) as there,
        server_for(certs) as server,
        client_for(certs, port_of(server), ca=str(ca)) as client,
    ):
        assert await reply_of(client, "127.0.0.1", there.port) == GENERAL
        (files,) = client.certificates
        before = files.context()
        ca.write_bytes(Path(certs.ca).read_bytes())
        client.reload()
        await eventually(lambda: files.context() is not before)
        await check_echo(client, there.port)
