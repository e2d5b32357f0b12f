"""What a client's context trusts, and the certificate that it presents."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from mtt.trust.certificates import finish_client_context, server_context, shared_client_context
from mtt.trust.tls_options import ClientTls, ServerTls
from tests.support.certs import Authority, Certs, pem
from tests.trust.handshakes import client_of, presented, server_of, shake


@pytest.mark.parametrize("name", ["test.local", "localhost", "127.0.0.1", "::1"])
def test_client_accepts_every_name_of_the_certificate(certs: Certs, name: str) -> None:
    server = server_of(cert=certs.cert, key=certs.key)
    client, _ = shake(client_of(ca=certs.ca), server, name)
    assert client.version() is not None


@pytest.mark.parametrize("name", ["other.local", "x.test.local", "127.0.0.2"])
def test_client_refuses_another_name(certs: Certs, name: str) -> None:
    server = server_of(cert=certs.cert, key=certs.key)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake(client_of(ca=certs.ca), server, name)


def test_client_refuses_another_authority(certs: Certs) -> None:
    server = server_of(cert=certs.other_cert, key=certs.other_key)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake(client_of(ca=certs.ca), server, certs.name)


def test_client_refuses_an_expired_certificate(tmp_path: Path) -> None:
    authority = Authority("CA")
    certificate, key = authority.issue("old.test", days=-1)
    for name, content in [("c", certificate), ("k", key), ("ca", pem(authority.certificate))]:
        (tmp_path / name).write_bytes(content)
    server = server_of(cert=str(tmp_path / "c"), key=str(tmp_path / "k"))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake(client_of(ca=str(tmp_path / "ca")), server, "old.test")


def test_client_ignores_the_common_name(tmp_path: Path) -> None:
    authority = Authority("CA")
    certificate, key = authority.issue(common_name="plain.test")
    for name, content in [("c", certificate), ("k", key), ("ca", pem(authority.certificate))]:
        (tmp_path / name).write_bytes(content)
    server = server_of(cert=str(tmp_path / "c"), key=str(tmp_path / "k"))
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake(client_of(ca=str(tmp_path / "ca")), server, "plain.test")


def test_client_trusts_a_servers_own_certificate_given_as_authority(
    certs: Certs, tmp_path: Path
) -> None:
    client, _ = shake(
        client_of(ca=certs.cert), server_of(cert=certs.cert, key=certs.key), certs.name
    )
    assert client.version() is not None
    server = server_of(name="self.test")
    saved = tmp_path / "saved.pem"
    saved.write_bytes(pem(presented(server)))
    client, _ = shake(client_of(ca=str(saved)), server, "self.test")
    assert client.version() is not None


def test_client_uses_the_roots_of_the_system(certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    server = server_of(cert=certs.cert, key=certs.key)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake(client_of(), server, certs.name)
    monkeypatch.setenv("SSL_CERT_FILE", certs.ca)
    context = client_of()
    finish_client_context(context, pins=())
    client, _ = shake(context, server, certs.name)
    assert client.version() is not None


def test_a_given_authority_replaces_those_of_the_system(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certs.ca)
    server = server_of(cert=certs.cert, key=certs.key)
    context = client_of(ca=certs.other_ca)
    finish_client_context(context, pins=())
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake(context, server, certs.name)


def test_skip_verify_accepts_anything(certs: Certs) -> None:
    for context in (client_of(skip_verify=True), client_of(skip_verify=True, ca=certs.ca)):
        client, _ = shake(context, server_of(name="a.b"), "quite.different")
        assert client.version() is not None


def test_the_server_sees_the_clients_certificate(certs: Certs) -> None:
    server, _ = server_context(ServerTls(cert=certs.cert, key=certs.key, client_ca=certs.other_ca))
    client = client_of(skip_verify=True, cert=certs.other_cert, key=certs.other_key)
    _, theirs = shake(client, server, certs.name)
    expected = ssl.PEM_cert_to_DER_cert(Path(certs.other_cert).read_text())
    assert theirs.getpeercert(binary_form=True) == expected


def test_clients_of_the_same_roots_share_them(
    certs: Certs, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = shared_client_context(ClientTls(server_name="a"))
    assert shared_client_context(ClientTls(server_name="b")) is one
    others = [
        shared_client_context(ClientTls(server_name="a", alpn=("h2",))),
        shared_client_context(ClientTls(server_name="a", skip_verify=True)),
        shared_client_context(ClientTls(server_name="a", ca=certs.ca)),
        shared_client_context(ClientTls(server_name="a", ca=certs.ca)),
        shared_client_context(ClientTls(cert=certs.cert, key=certs.key)),
    ]
    monkeypatch.setenv("SSL_CERT_FILE", certs.ca)
    others.append(shared_client_context(ClientTls(server_name="a")))
    assert len({id(each) for each in (one, *others)}) == 7
