"""Tunnels between ends that ask each other for certificates, and whose certificates change."""

from __future__ import annotations

import asyncio
import functools
import operator
import shutil
import ssl
from pathlib import Path
from typing import Any

import pytest

from mtt import followed
from tests.engine.applications import is_cut
from tests.support.certs import Authority, Certs, pem
from tests.support.contexts import bare_context
from tests.support.gopeer import Tls
from tests.support.tunnels import (
    SOON,
    both_ends,
    check_works,
    client_of,
    connect,
    echo,
    eventually,
    in_every_mode,
    logged,
    port_of,
    server_at,
    serving,
)

# What Go's crypto/tls offers for TLS 1.2 by default (without the CBC suites of old versions).
GO_SUITES = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
]


def ours(certs: Certs) -> dict[str, str]:
    """A certificate that the first authority vouches for, as a client's."""
    return {"cert": certs.cert, "key": certs.key}


def others(certs: Certs) -> dict[str, str]:
    return {"cert": certs.other_cert, "key": certs.other_key}


# Client certificates


@in_every_mode
@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_a_client_with_the_right_certificate_gets_in(
    mode: str, version: str, certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs, **{"client-ca": certs.ca}) as server,
        client_of(mode, port_of(server), certs, **ours(certs)) as client,
    ):
        context = client._connector.files[0].context()
        context.maximum_version = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}[
            version
        ]
        for _ in range(3):  # the later ones resume the session
            await check_works(port_of(client))


@in_every_mode
@pytest.mark.parametrize(
    ("certificate", "reason", "servers_reason"),
    [
        ({}, "the server wants a client certificate: set -cert and -key",
         "TLS: peer did not return a certificate"),
        ("other", "the server rejected the client certificate (-cert): its issuer is not in the "
         "server's -client-ca", "certificate not accepted: unable to get local issuer certificate; "
         "to admit the client, add its certificate to -client-ca"),
    ],
    ids=["none", "of another authority"],
)  # fmt: skip
async def test_client_without_certificate_gets_one_line(
    mode: str, certificate: Any, reason: str, servers_reason: str, certs: Certs
) -> None:
    given = others(certs) if certificate else {}
    async with (
        serving(echo) as there,
        server_at(mode, there.port, certs, **{"client-ca": certs.ca}) as server,
        client_of(mode, port_of(server), certs, **given) as client,
    ):
        for _ in range(3):
            with logged() as lines:
                await is_cut(port_of(client))
                await eventually(functools.partial(operator.getitem, lines, slice(1, None)))
            ends = sorted(line.partition(": ")[2] for line in lines)
            expected = {servers_reason, reason, f"127.0.0.1:{port_of(server)}: {reason}"}
            assert len(ends) == 2
            assert set(ends) < expected
        assert there.count == 0


async def test_client_certificate_may_be_its_own_authority(certs: Certs, tmp_path: Path) -> None:
    """A server's -client-ca may be a client's own certificate, as a client's -ca a server's."""
    async with (
        serving(echo) as there,
        server_at("tls", there.port, certs, **{"client-ca": certs.other_cert}) as server,
        client_of("tls", port_of(server), certs, **others(certs)) as right,
        client_of("tls", port_of(server), certs, **ours(certs)) as wrong,
    ):
        await check_works(port_of(right))
        with logged():
            await is_cut(port_of(wrong))


async def test_expired_client_certificate_is_refused(certs: Certs, tmp_path: Path) -> None:
    authority = Authority("CA")
    certificate, key = authority.issue("client", days=-1)
    for name, content in [("c", certificate), ("k", key), ("ca", pem(authority.certificate))]:
        (tmp_path / name).write_bytes(content)
    given = {"cert": str(tmp_path / "c"), "key": str(tmp_path / "k")}
    async with (
        serving(echo) as there,
        server_at("wss", there.port, certs, **{"client-ca": str(tmp_path / "ca")}) as server,
        client_of("wss", port_of(server), certs, **given) as client,
    ):
        with logged() as lines:
            await is_cut(port_of(client))
            await eventually(lambda: len(lines) == 2)
        assert any(line.endswith("(-cert): it has expired") for line in lines)


# -tls-min


@pytest.mark.parametrize("end", ["client", "server"])
async def test_tls_1_2_is_refused_if_so_asked(end: str, certs: Certs) -> None:
    options = {"client": {}, "server": {}, end: {"tls-min": "1.3"}}
    async with (
        serving(echo) as there,
        server_at("tls", there.port, certs, **options["server"]) as server,
        client_of("tls", port_of(server), certs, **options["client"]) as client,
    ):
        await check_works(port_of(client))
        assert server._tls is not None
        old = server._tls if end == "client" else client._connector.files[0]
        assert old is not None
        old.context().maximum_version = ssl.TLSVersion.TLSv1_2
        with logged() as lines:
            await is_cut(port_of(client))
            await eventually(lambda: len(lines) >= 2)
        assert all("protocol" in line for line in lines)


@pytest.mark.parametrize("suite", GO_SUITES)
async def test_every_suite_of_go_with_tls_1_2(suite: str, certs: Certs, tmp_path: Path) -> None:
    given = ours(certs)
    if "RSA" in suite:
        given = rsa_pair(tmp_path)
    go = bare_context(ssl.PROTOCOL_TLS_CLIENT)
    go.check_hostname = False
    go.verify_mode = ssl.CERT_NONE
    go.maximum_version = ssl.TLSVersion.TLSv1_2
    go.set_ciphers(suite)
    async with (
        serving(echo) as there,
        server_at("tls", there.port, certs, **given) as server,
        Tls(await connect(port_of(server)), go, name=certs.name) as connection,
        asyncio.timeout(SOON),
    ):
        await connection.handshake()
        assert (connection.tls.cipher() or ("",))[0] == suite
        await connection.check_echo(b"hello")


@pytest.mark.parametrize("suite", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256", "DHE"])
async def test_no_suite_without_forward_secrecy_or_aead(suite: str, certs: Certs) -> None:
    old = bare_context(ssl.PROTOCOL_TLS_CLIENT)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_ciphers(suite)
    async with (
        serving(echo) as there,
        server_at("tls", there.port, certs) as server,
        Tls(await connect(port_of(server)), old, name=certs.name) as connection,
        asyncio.timeout(SOON),
    ):
        with logged(), pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
            await connection.handshake()


def rsa_pair(directory: Path) -> dict[str, str]:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import rsa

    from mtt.trust.selfsigned import self_signed
    from tests.support.certs import key_pem

    certificate, key = self_signed("rsa.test", key_pem(rsa.generate_private_key(65537, 2048)))
    assert x509.load_pem_x509_certificate(certificate).public_key()
    (directory / "rsa.pem").write_bytes(certificate + key)
    return {"cert": str(directory / "rsa.pem"), "key": str(directory / "rsa.pem")}


# Renewal


@pytest.fixture
def renewable(tmp_path: Path, certs: Certs, monkeypatch: pytest.MonkeyPatch) -> Certs:
    """The same files at a place of their own, watched closely."""
    monkeypatch.setattr(followed, "CHECK_INTERVAL", 0.02)
    paths = []
    for name in ("ca", "cert", "key", "other_ca", "other_cert", "other_key"):
        paths.append(str(shutil.copy(getattr(certs, name), tmp_path / name)))
    return Certs(*paths)


def renew(certs: Certs, *names: str) -> None:
    for name in names:
        shutil.copy(getattr(certs, f"other_{name}"), getattr(certs, name))


@in_every_mode
async def test_no_connection_notices_a_renewal(mode: str, renewable: Certs) -> None:
    files = renewable
    async with (
        serving(echo) as there,
        both_ends(mode, there.port, files) as (server, client),
        await connect(port_of(client)) as application,
        asyncio.timeout(SOON),
    ):
        assert server._tls is not None
        await application.check_echo(b"before")
        old = server._tls.context(), client._connector.files[0].context()
        renew(files, "cert", "key", "ca")
        await eventually(lambda: server._tls and server._tls.context() is not old[0])
        await eventually(lambda: client._connector.files[0].context() is not old[1])
        for _ in range(3):
            await check_works(port_of(client))
        await application.check_echo(b"after")


async def test_a_session_of_the_old_certificate_is_no_obstacle(renewable: Certs) -> None:
    """The client offers a ticket that the server's new context does not know."""
    async with (
        serving(echo) as there,
        both_ends("tls", there.port, renewable) as (server, client),
    ):
        assert server._tls is not None
        for _ in range(2):
            await check_works(port_of(client))
        await eventually(lambda: client._connector._tls._resumption._session is not None)
        old = server._tls.context()
        server.reload()
        await eventually(lambda: server._tls and server._tls.context() is not old)
        for _ in range(2):
            await check_works(port_of(client))


async def test_client_is_refused_under_a_new_authority(renewable: Certs) -> None:
    """Not even with a session ticket from the time when it was let in."""
    async with (
        serving(echo) as there,
        server_at("tls", there.port, renewable, **{"client-ca": renewable.ca}) as server,
        client_of("tls", port_of(server), renewable, ca="", pin=(pin_of(renewable),),
                  **ours(renewable)) as client,
    ):  # fmt: skip
        for _ in range(2):
            await check_works(port_of(client))
        assert server._tls is not None
        old = server._tls.context()
        renew(renewable, "ca")
        await eventually(lambda: server._tls and server._tls.context() is not old)
        with logged():
            await is_cut(port_of(client))


def pin_of(certs: Certs) -> str:
    from mtt.trust.identity import Identity

    pin = Identity(Path(certs.cert).read_bytes()).words.pin
    assert pin is not None
    return pin


async def test_reload_with_nothing_to_read(certs: Certs) -> None:
    async with serving(echo) as there:
        async with server_at("tls", there.port, certs, cert="", key="") as server:
            with logged() as lines:
                server.reload()
        assert lines == ["INFO not reloaded: certificates: no option names a file"]
