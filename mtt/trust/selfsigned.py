"""The self-signed certificate of a server without `-cert`, as the original makes it.

ECDSA P-384, one name, CA:FALSE, ten years; new at every start unless `-cert-dir` keeps it.
"""

from __future__ import annotations

import datetime
import ipaddress
import string
from random import SystemRandom  # `secrets` would load `hashlib`, half a megabyte
from typing import Any

from mtt.address import is_ip
from mtt.errors import UsageError
from mtt.trust import child
from mtt.trust.identity import Identity, Words, describe

# Like the original's: nothing renews it.
SELF_SIGNED_DAYS = 3652

# Backdated, so that clients whose clock is slow do not find it "not yet valid".
CLOCK_SKEW = datetime.timedelta(hours=1)

# The longest commonName that X.509 allows (RFC 5280, appendix A: ub-common-name).
COMMON_NAME_LIMIT = 64


def new_identity(name: str) -> tuple[bytes, Identity]:
    """A new self-signed certificate for `name`: itself with its key, PEM, and its identity.

    Raises UsageError, see `self_signed()`.
    """
    certificate, key, words = child.run(_self_signed_in_words, name)
    identity = Identity(certificate)
    identity.words = Words(*words)
    return certificate + key, identity


def _self_signed_in_words(name: str) -> tuple[bytes, bytes, tuple[Any, ...]]:
    certificate, key = self_signed(name)
    return certificate, key, describe(certificate)


def self_signed(name: str, key_pem: bytes = b"") -> tuple[bytes, bytes]:
    """Make a certificate and its key, both PEM, for the DNS name or IP address `name`.

    An empty `name` means a random one. With `key_pem`, the certificate is made for that key.

    It has no keyUsage: with one that lacks keyCertSign, OpenSSL would not accept the certificate as
    its own issuer, and clients could not trust it with `-ca`.

    Raises UsageError if `cryptography` is missing or a certificate cannot hold the name, and
    ValueError if `key_pem` is not an unencrypted elliptic curve or RSA key.
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
            f"-n: {name!r} is not a valid certificate name; write international names as xn--..."
        ) from None
    # Verifiers use only the alternative name, so this one may be truncated.
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
    """A random name, like the original's: `xxxxx.yy`, 3-7 and 1-3 letters."""

    random = SystemRandom()

    def letters(least: int, most: int) -> str:
        count = random.randint(least, most)
        return "".join(random.choice(string.ascii_lowercase) for _ in range(count))

    return f"{letters(3, 7)}.{letters(1, 3)}"
