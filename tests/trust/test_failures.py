"""What people are told about failures of TLS, and what to do about them."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest

from mtt.errors import Cause, PeerError
from mtt.trust.certificates import client_context, server_context
from mtt.trust.failures import tls_failure
from mtt.trust.tls_options import ClientTls, ServerTls
from tests.support.certs import Authority, Certs, pem


def failures(
    client: ssl.SSLContext, server: ssl.SSLContext, name: str = "test.local"
) -> dict[str, PeerError]:
    """What a handshake in memory says at both ends."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = {
        "client": client.wrap_bio(to_client, to_server, server_hostname=name),
        "server": server.wrap_bio(to_server, to_client, server_side=True),
    }
    found: dict[str, PeerError] = {}
    for _ in range(4):
        for end, tls in ends.items():
            if end in found:
                continue
            try:
                with contextlib.suppress(ssl.SSLWantReadError):
                    tls.do_handshake()
                    tls.read(1)
            except ssl.SSLError as error:
                found[end] = tls_failure(error, server_side=end == "server")
    return found


def client_of(ca: str = "", cert: str = "", key: str = "") -> ssl.SSLContext:
    return client_context(ClientTls(ca=ca, cert=cert, key=key))


def server_of(cert: str = "", key: str = "", client_ca: str = "") -> ssl.SSLContext:
    return server_context(ServerTls(cert=cert, key=key, name="test.local", client_ca=client_ca))[0]


def test_advice_for_self_signed_certificates(certs: Certs) -> None:
    found = failures(client_of(certs.ca), server_of())
    assert str(found["client"]) == (
        "certificate not accepted: self-signed certificate; set -pin to the pin that the server "
        "prints at start, or -ca to its certificate"
    )
    assert str(found["server"]) == (
        "TLS: tlsv1 alert unknown ca; the client does not trust this server; give it this "
        "server's pin or certificate"
    )
    assert [error.cause for error in found.values()] == [Cause.CERTIFICATE] * 2


def test_advice_for_unknown_issuers(certs: Certs) -> None:
    found = failures(client_of(certs.other_ca), server_of(certs.cert, certs.key))
    assert "use the full chain as the server's -cert, or set -ca to its root certificate" in str(
        found["client"]
    )


def test_advice_for_wrong_names(certs: Certs) -> None:
    found = failures(client_of(certs.ca), server_of(certs.cert, certs.key), "other.name")
    assert str(found["client"]).startswith("certificate not accepted: Hostname mismatch, ")
    assert str(found["client"]).endswith("'other.name'; set -n to a name in the certificate")


def test_advice_for_wrong_addresses(certs: Certs) -> None:
    found = failures(client_of(certs.ca), server_of(certs.cert, certs.key), "192.0.2.1")
    assert str(found["client"]).endswith("'192.0.2.1'; set -n to a name in the certificate")


def test_advice_for_expired_certificates(tmp_path: Path) -> None:
    authority = Authority("a CA")
    cert, key = authority.issue("test.local", days=-1)
    paths = {"ca": pem(authority.certificate), "cert": cert, "key": key}
    for name, content in paths.items():
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_bytes(content)
    ca, server_cert, server_key = (str(tmp_path / name) for name in paths)
    found = failures(client_of(ca), server_of(server_cert, server_key))
    assert "renew the server's certificate" in str(found["client"])
    assert "renew the certificate" in str(found["server"])


def test_advice_for_unknown_client_certificates(certs: Certs) -> None:
    found = failures(
        client_of(certs.ca, certs.other_cert, certs.other_key),
        server_of(certs.cert, certs.key, certs.ca),
    )
    assert str(found["server"]).endswith("add its certificate to -client-ca")
    assert "the server rejected the client certificate (-cert)" in str(found["client"])


@pytest.mark.parametrize("reason", ["SSLV3_ALERT_BAD_CERTIFICATE", "TLSV1_ALERT_UNKNOWN_CA"])
def test_advice_depends_on_the_side(reason: str) -> None:
    error = ssl.SSLError(1, "")
    error.reason = reason
    assert "-client-ca" not in str(tls_failure(error, server_side=True))
    assert "-cert" in str(tls_failure(error, server_side=False))


@pytest.mark.parametrize(
    "reason",
    ["TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_UNKNOWN"],
)
def test_advice_for_alerts_of_distrusting_clients(reason: str) -> None:
    error = ssl.SSLError(1, "")
    error.reason = reason
    assert "; the client does not trust this server; " in str(tls_failure(error, server_side=True))


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("WRONG_VERSION_NUMBER", "; the server's port does not speak TLS; check -s"),
        ("TLSV1_ALERT_INTERNAL_ERROR", "may have no certificate for this name; check -n"),
        ("TLSV1_UNRECOGNIZED_NAME", "may have no certificate for this name; check -n"),
    ],
)
def test_advice_for_answers_of_other_servers(reason: str, advice: str) -> None:
    error = ssl.SSLError(1, "")
    error.reason = reason
    assert str(tls_failure(error, server_side=False)).endswith(advice)
    assert ";" not in str(tls_failure(error, server_side=True))


def test_advice_for_not_yet_valid_certificates() -> None:
    error = ssl.SSLCertVerificationError(1, "")
    error.reason = "CERTIFICATE_VERIFY_FAILED"
    error.verify_code, error.verify_message = 9, "certificate is not yet valid"
    assert str(tls_failure(error, server_side=False)) == (
        "certificate not accepted: certificate is not yet valid; check the clocks"
    )


def test_other_failures_have_no_advice() -> None:
    error = ssl.SSLError(1, "")
    error.reason = "WRONG_VERSION_NUMBER"
    assert str(tls_failure(error, server_side=True)) == "TLS: wrong version number"
