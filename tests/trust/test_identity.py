"""Identities: their description, warnings and pins."""

from __future__ import annotations

import base64
import datetime
import importlib.util
import re
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mtt.errors import PeerError, UsageError
from mtt.trust.certificates import server_context
from mtt.trust.identity import Identity, _validity, check_pin, parse_pin
from mtt.trust.tls_options import ServerTls
from tests.support.certs import Authority, Certs, pem
from tests.trust.handshakes import client_of, pin_of, shake

UNRELATED_PIN = "sha256/" + base64.b64encode(bytes(32)).decode()


def test_expired_certificate_says_so() -> None:
    certificate, _ = Authority("CA").issue("old.test", days=-1)
    assert re.fullmatch(
        r"certificate for old\.test, expired on \d{4}-\d\d-\d\d",
        Identity(certificate, path="old.pem").words.description,
    )


def test_description_falls_back_to_the_common_name() -> None:
    certificate, _ = Authority("CA").issue(common_name="plain")
    words = Identity(certificate, path="x").words
    assert words.description.startswith("certificate for plain, valid")


def test_identity_tolerates_certificates_only_openssl_can_parse() -> None:
    identity = Identity(b"?", path="/etc/strange.pem")
    assert identity.words.description == "certificate from /etc/strange.pem"
    assert identity.words.pin is None
    assert identity.words.not_after is None


@pytest.mark.parametrize("days", [-1, 90, 12_000, 100_000])  # also beyond 2049 (RFC 5280, 4.1.2.5)
def test_expiry_is_read_from_the_first_certificate(days: int) -> None:
    authority = Authority("CA", days=9)
    certificate, _ = authority.issue("a.test", days=days)
    _, expiry = _validity(x509.load_pem_x509_certificate(certificate))
    words = Identity(certificate + pem(authority.certificate)).words
    assert words.not_after == expiry.timestamp()


def test_not_yet_valid_certificate_causes_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, _ = Authority("CA").issue("new.test")

    class Past(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Past:
            return cls(2020, 1, 1, tzinfo=tz)

    monkeypatch.setattr("mtt.trust.identity.datetime.datetime", Past)
    (line,) = Identity(certificate, path="new.pem").words.warnings
    assert line.startswith("the certificate in new.pem is not valid before ")


# Pins


def test_pin_replaces_verification() -> None:
    server, identity = server_context(ServerTls(name="a.b"))
    assert identity.words.pin is not None
    client, _ = shake(client_of(pins=(identity.words.pin,)), server, "quite.different")
    der = client.getpeercert(binary_form=True)
    assert der is not None
    check_pin(der, (UNRELATED_PIN, identity.words.pin))
    text = f"the server's pin is {identity.words.pin}, not"
    with pytest.raises(PeerError, match=re.escape(text)):
        check_pin(der, (UNRELATED_PIN,))


def test_pin_does_not_replace_a_given_authority(certs: Certs) -> None:
    server, identity = server_context(ServerTls(name="a.b"))
    assert identity.words.pin is not None
    with pytest.raises(ssl.SSLCertVerificationError):
        shake(client_of(ca=certs.ca, pins=(identity.words.pin,)), server, "a.b")


def test_pin_of_a_certificate_that_cannot_be_decoded() -> None:
    with pytest.raises(PeerError, match="has a key of an unsupported type"):
        check_pin(b"\x30\x03garbage", (UNRELATED_PIN,))


def test_pin_without_cryptography(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UsageError, match=r"^-pin needs the Python package 'cryptography'"):
        client_of(pins=(UNRELATED_PIN,))


def test_pin_hashes_the_key_as_encoded_in_the_certificate(certs: Certs) -> None:
    certificate = x509.load_pem_x509_certificate(Path(certs.cert).read_bytes())
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key in certificate.public_bytes(Encoding.DER)
    assert Identity(Path(certs.cert).read_bytes()).words.pin == pin_of(certificate)


@pytest.mark.parametrize("digest", [bytes(32), b"\xff" * 32])  # Base64 "AAA...", "///..."
@pytest.mark.parametrize("prefix", ["sha256/", "sha256//"])
def test_parse_pin(prefix: str, digest: bytes) -> None:
    encoded = base64.b64encode(digest).decode()
    assert parse_pin(prefix + encoded) == "sha256/" + encoded


def test_parse_pin_accepts_only_canonical_base64() -> None:
    """The last character has bits that Base64 does not use."""
    assert parse_pin(UNRELATED_PIN.replace("A=", "B=")) == UNRELATED_PIN


@pytest.mark.parametrize(
    "text",
    ["", "sha256/", "sha256/AAAA", UNRELATED_PIN[7:], UNRELATED_PIN + "A", "sha256/" + "ü" * 44,
     UNRELATED_PIN.replace("sha256", "sha1"), "sha256/" + "!" * 44],
)  # fmt: skip
def test_parse_pin_refuses_invalid_pins(text: str) -> None:
    with pytest.raises(UsageError, match=r"^-pin: "):
        parse_pin(text)
