"""Certificates and keys in files and in configuration files: permissions, damage, errors."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from mtt.errors import UsageError
from mtt.trust.certificates import client_context, server_context
from mtt.trust.pem import InlinePem
from mtt.trust.tls_options import ClientTls, ServerTls
from tests.support.certs import Certs, key_pem
from tests.support.tunnels import logged
from tests.trust.handshakes import client_of, server_of, shake


@pytest.mark.parametrize(("mode", "count"), [(0o600, 0), (0o640, 0), (0o644, 1), (0o604, 1)])
def test_world_readable_key_causes_a_warning(
    certs: Certs, tmp_path: Path, mode: int, count: int
) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(Path(certs.key).read_bytes())
    key.chmod(mode)
    with logged() as lines:
        server_of(cert=certs.cert, key=str(key))
        client_of(cert=certs.cert, key=str(key))
    line = f"WARNING -key: every user can read {key}; run chmod o-r on it"
    assert lines == [line] * count  # once, although both have read it


def bad_file(kind: str, certs: Certs, directory: Path) -> str:
    path = directory / f"{kind}.pem"
    if kind == "garbage":
        path.write_bytes(b"\0garbage\n")
    elif kind == "der":
        path.write_bytes(ssl.PEM_cert_to_DER_cert(Path(certs.cert).read_text()))
    elif kind == "damaged certificate":
        path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif kind == "damaged key":
        path.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    elif kind == "encrypted":
        path.write_bytes(key_pem(ec.generate_private_key(ec.SECP256R1()), b"secret"))
    elif kind == "directory":
        path.mkdir()
    elif kind == "NUL":
        return "a\0b"
    else:
        assert kind == "missing"
    return str(path)


@pytest.mark.parametrize(
    ("option", "kind", "reason"),
    [
        ("cert", "missing", "cannot read .*: no such file or directory"),
        ("cert", "directory", "cannot read .*: is a directory"),
        ("cert", "NUL", "cannot read "),
        ("cert", "garbage", "has no PEM certificate"),
        ("cert", "der", "has no PEM certificate"),
        ("cert", "damaged certificate", "is damaged"),
        ("key", "missing", "cannot read .*: no such file or directory"),
        ("key", "garbage", "has no PEM private key"),
        ("key", "damaged key", "is damaged"),
        ("key", "encrypted", "is encrypted; decrypt it: openssl pkey"),
    ],
)
def test_bad_certificate_or_key(
    certs: Certs, tmp_path: Path, option: str, kind: str, reason: str
) -> None:
    paths = {"cert": certs.cert, "key": certs.key, option: bad_file(kind, certs, tmp_path)}
    with pytest.raises(UsageError, match=rf"^-{option}: .*{reason}") as caught:
        server_of(**paths)
    assert "\n" not in str(caught.value)


def test_unreadable_key(certs: Certs, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes(Path(certs.key).read_bytes())
    key.chmod(0)
    try:
        key.read_bytes()
    except PermissionError:
        pass
    else:
        pytest.skip("this user may read everything")
    with pytest.raises(UsageError, match=r"^-key: cannot read .*: permission denied"):
        server_of(cert=certs.cert, key=str(key))


@pytest.mark.parametrize("memory", [True, False])
def test_pem_from_a_configuration_file(
    certs: Certs, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)

    def inline(path: str) -> InlinePem:
        return InlinePem("-c: f: tls.x", Path(path).read_text())

    server, identity = server_context(ServerTls(
        cert=inline(certs.cert), key=inline(certs.key), client_ca=inline(certs.other_ca)
    ))
    client = client_context(ClientTls(
        ca=inline(certs.ca), cert=inline(certs.other_cert), key=inline(certs.other_key)
    ))  # fmt: skip
    _, theirs = shake(client, server, certs.name)
    assert theirs.getpeercert()
    assert identity.words.description.startswith(f"certificate for {certs.name}")
    assert "PRIVATE" not in repr(inline(certs.key))


@pytest.mark.parametrize(
    ("cert", "key", "text"),
    [
        ("cert", "other_key", "tls.key does not belong to the certificate -c: f: tls.cert"),
        ("key", "key", "tls.cert has no PEM certificate in it"),
        ("cert", "cert", "tls.key has no PEM private key in it"),
    ],
)
def test_bad_pem_in_a_configuration_file(certs: Certs, cert: str, key: str, text: str) -> None:
    inline_cert = InlinePem("-c: f: tls.cert", Path(getattr(certs, cert)).read_text())
    inline_key = InlinePem("-c: f: tls.key", Path(getattr(certs, key)).read_text())
    with pytest.raises(UsageError) as caught:
        server_of(cert=inline_cert, key=inline_key)
    assert str(caught.value) == f"-c: f: {text}"
    with pytest.raises(UsageError, match=r"^-c: f: tls\.ca has no PEM certificate"):
        client_of(ca=InlinePem("-c: f: tls.ca", "x"))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "cannot read .*: no such file or directory"),
        ("directory", "cannot read .*: is a directory"),
        ("garbage", "has no PEM certificate"),
        ("der", "has no PEM certificate"),
        ("damaged certificate", "has no PEM certificate"),
    ],
)
def test_bad_authority(certs: Certs, tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(UsageError, match=f"^-ca: .*{reason}"):
        client_of(ca=bad_file(kind, certs, tmp_path))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", r"^-client-ca: cannot read .*: no such file or directory"),
        ("garbage", r"^-client-ca: .* has no PEM certificate"),
    ],
)
def test_bad_authority_of_clients(certs: Certs, tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        server_context(ServerTls(
            cert=certs.cert, key=certs.key, client_ca=bad_file(kind, certs, tmp_path)
        ))  # fmt: skip


def test_bad_certificate_of_a_client(certs: Certs, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^-cert: .* has no PEM certificate"):
        client_of(cert=bad_file("garbage", certs, tmp_path), key=certs.key)
    with pytest.raises(UsageError, match=r"^-key: .* does not belong to"):
        client_of(cert=certs.cert, key=certs.other_key)
