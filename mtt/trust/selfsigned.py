"""The certificate of a server that was given none, of the kind the original makes.

ECDSA P-384, one name, CA:FALSE, ten years; new at every start unless `-cert-dir` keeps it.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
import string
from typing import Any, NamedTuple

from mtt.address import is_ip
from mtt.errors import UsageError
from mtt.trust import child
from mtt.trust.identity import Words, describe

# As the original does: there is nobody to renew it.
SELF_SIGNED_DAYS = 3652

# Clients with a clock that is a little behind must not find it "not yet valid".
CLOCK_SKEW = datetime.timedelta(hours=1)

# The longest commonName that X.509 allows (RFC 5280, appendix A: ub-common-name).
COMMON_NAME_LIMIT = 64


class SelfSigned(NamedTuple):
    """A certificate and its key, PEM, and what there is to say about it."""

    certificate: bytes
    key: bytes
    words: Words


def new_identity(name: str) -> SelfSigned:
    """A new self-signed certificate for `name`. Raises UsageError, see `self_signed()`."""
    certificate, key, words = child.run(_self_signed_in_words, name)
    return SelfSigned(certificate, key, Words(*words))


def _self_signed_in_words(name: str) -> tuple[bytes, bytes, tuple[Any, ...]]:
    certificate, key = self_signed(name)
    return certificate, key, describe(certificate)


def self_signed(name: str, key_pem: bytes = b"") -> tuple[bytes, bytes]:
    """Make a certificate and its key, both PEM, for the DNS name or IP address `name`.

    An empty `name` stands for a random one. With `key_pem` the certificate is made for this key.

    No keyUsage on purpose: without keyCertSign in it OpenSSL would not take the certificate as
    its own issuer, and a client could not trust it with `-ca`.

    Raises UsageError: no `cryptography`, or a name that cannot stand in a certificate; ValueError:
    `key_pem` is no key of a kind that is used here (elliptic curve or RSA, not encrypted).
    """
    try:
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec, rsa
        from cryptography.x509.oid import NameOID
    except ImportError:
        raise UsageError(
            "a self-signed certificate needs the Python package 'cryptography'; "
            "install it with pip, or give -cert and -key"
        ) from None
    if not key_pem:
        key_pem = ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except (TypeError, UnsupportedAlgorithm) as error:  # TypeError: it is encrypted
        raise ValueError(str(error)) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ValueError("neither an elliptic curve key nor an RSA key")
    name = name or random_name()
    start = datetime.datetime.now(datetime.UTC) - CLOCK_SKEW
    try:
        alternative: x509.GeneralName = (
            x509.IPAddress(ipaddress.ip_address(name)) if is_ip(name) else x509.DNSName(name)
        )
    except ValueError:
        raise UsageError(
            f"-n: {name!r} cannot stand in a certificate; write international names as xn--..."
        ) from None
    # Verifiers look at the alternative name only, so cutting this one harms nobody.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:COMMON_NAME_LIMIT])])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key_pem


def random_name() -> str:
    """A name that says nothing, like the original's: `xxxxx.yy`, 3-7 and 1-3 letters."""

    def letters(least: int, most: int) -> str:
        count = least + secrets.randbelow(most - least + 1)
        return "".join(secrets.choice(string.ascii_lowercase) for _ in range(count))

    return f"{letters(3, 7)}.{letters(1, 3)}"
