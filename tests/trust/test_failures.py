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


def test_a_self_signed_certificate_and_its_alert_say_what_to_do(certs: Certs) -> None:
    found = failures(client_of(certs.ca), server_of())
    assert str(found["client"]) == (
        "certificate not accepted: self-signed certificate; give the pin that the server prints "
        "at start, -pin, or its certificate, -ca"
    )
    assert str(found["server"]) == (
        "TLS: tlsv1 alert unknown ca; the client does not trust this server; give it the server's "
        "-pin, or -ca"
    )
    assert [error.cause for error in found.values()] == [Cause.CERTIFICATE] * 2


def test_a_certificate_of_an_unknown_issuer_says_what_to_do(certs: Certs) -> None:
    found = failures(client_of(certs.other_ca), server_of(certs.cert, certs.key))
    assert "use the full chain as the server's -cert, or give its root, -ca" in str(
        found["client"]
    )


def test_a_certificate_for_another_name_says_what_to_do(certs: Certs) -> None:
    found = failures(client_of(certs.ca), server_of(certs.cert, certs.key), "other.name")
    assert str(found["client"]).startswith("certificate not accepted: Hostname mismatch, ")
    assert str(found["client"]).endswith("'other.name'; ask for a name that is in it (-n; -sni of "
                                         "anytls-client)")  # fmt: skip


def test_an_expired_certificate_says_what_to_do(tmp_path: Path) -> None:
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


def test_an_unknown_client_is_named_with_the_option(certs: Certs) -> None:
    found = failures(
        client_of(certs.ca, certs.other_cert, certs.other_key),
        server_of(certs.cert, certs.key, certs.ca),
    )
    assert str(found["server"]).endswith("add its certificate to -client-ca")
    assert "does not accept our certificate (-cert)" in str(found["client"])


@pytest.mark.parametrize("reason", ["SSLV3_ALERT_BAD_CERTIFICATE", "TLSV1_ALERT_UNKNOWN_CA"])
def test_alerts_mean_another_thing_at_each_end(reason: str) -> None:
    error = ssl.SSLError(1, "")
    error.reason = reason
    assert "-client-ca" not in str(tls_failure(error, server_side=True))
    assert "-cert" in str(tls_failure(error, server_side=False))


@pytest.mark.parametrize(
    "reason",
    ["TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE", "SSLV3_ALERT_CERTIFICATE_UNKNOWN"],
)
def test_alerts_of_clients_that_distrust_a_server_say_what_to_do(reason: str) -> None:
    error = ssl.SSLError(1, "")
    error.reason = reason
    assert "; the client does not trust this server; " in str(tls_failure(error, server_side=True))


def test_a_certificate_from_the_future_says_what_to_do() -> None:
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
