"""Certificates for the tests, made at run time and gone with the test session."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

SERVER_NAME = "test.local"

_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True)
class Certs:
    """Paths of PEM files: what signs, and what a server presents."""

    ca: str
    cert: str
    key: str
    other_ca: str  # a CA that has nothing to do with the first, and a server it signed
    other_cert: str
    other_key: str

    name: str = SERVER_NAME


class Authority:
    """A certificate authority that lives in memory.

    Certificates carry the key identifiers and usages that VERIFY_X509_STRICT, on by default
    in `ssl.create_default_context()` since CPython 3.13, asks for.
    """

    def __init__(self, name: str, *, issuer: Authority | None = None, days: int = 1) -> None:
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        key_id = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        self._issued_by = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)
        by = issuer or self
        builder = (
            _builder(self._name, by._name, self._key.public_key(), days=days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_SIGNS_CERTIFICATES, critical=True)
            .add_extension(key_id, critical=False)
        )
        if issuer is not None:
            builder = builder.add_extension(issuer._issued_by, critical=False)
        self.certificate = builder.sign(by._key, hashes.SHA256())

    def issue(
        self, *names: str, days: int = 1, common_name: str | None = None
    ) -> tuple[bytes, bytes]:
        """Certificate and unencrypted key, both PEM, for `names` (DNS names or IP addresses).

        A negative `days` makes a certificate that has expired. Without names there is no
        subjectAltName at all; `common_name` is then all that names the holder.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        common = common_name or (names[0] if names else "nobody")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
        builder = (
            _builder(subject, self._name, key.public_key(), days=days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(self._issued_by, critical=False)
        )
        if names:
            alternatives = x509.SubjectAlternativeName([_general_name(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return pem(certificate), key_pem(key)


def make_certs(directory: Path) -> Certs:
    """Write two unrelated authorities and a server certificate of each into `directory`."""
    paths = []
    for prefix in ("", "other-"):
        authority = Authority(f"{prefix}test CA")
        certificate, key = authority.issue(SERVER_NAME, "localhost", "127.0.0.1", "::1")
        contents = {"ca": pem(authority.certificate), "cert": certificate, "key": key}
        for kind, content in contents.items():
            path = directory / f"{prefix}{kind}.pem"
            path.touch(0o600)  # or the key would cost a warning
            path.write_bytes(content)
            paths.append(str(path))
    return Certs(*paths)


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, password: bytes | None = None
) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption()
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    start, end = sorted((now, now + datetime.timedelta(days=days)))
    # An hour before: machines and containers disagree about the time.
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - datetime.timedelta(hours=1))
        .not_valid_after(end if days > 0 else now - datetime.timedelta(minutes=1))
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
