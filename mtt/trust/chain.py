"""The order of certificates in a file: the server's own, then the issuer of each (RFC 8446, 4.4.2).

OpenSSL takes the first one as the server's own and sends the others in file order.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*-----", re.DOTALL)


def chain(pem: bytes) -> list[x509.Certificate]:
    """The certificates in `pem`. Raises ImportError and ValueError."""
    from cryptography import x509

    return [x509.load_pem_x509_certificate(found + b"\n") for found in _CERTIFICATE.findall(pem)]


def is_ordered(certificates: list[x509.Certificate]) -> bool:
    """Whether every certificate precedes its issuer."""
    for index, certificate in enumerate(certificates):
        earlier = [other.subject for other in certificates[:index]]
        later = [other.subject for other in certificates[index + 1 :]]
        issuer = certificate.issuer
        if issuer != certificate.subject and issuer in earlier and issuer not in later:
            return False
    return True


def ordered(pem: bytes, key_pem: bytes) -> bytes | None:
    """The chain in `pem` that starts with the certificate of the key; None if there is none."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization

        certificates = chain(pem)
        found_key = _KEY.search(key_pem)
        owner_pem = found_key[0] + b"\n" if found_key else b""
        owner = serialization.load_pem_private_key(owner_pem, None).public_key()
        form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        own = owner.public_bytes(*form)
        found = [each for each in certificates if each.public_key().public_bytes(*form) == own]
    except (ImportError, TypeError, ValueError, UnsupportedAlgorithm):
        return None
    in_order: list[x509.Certificate] = []
    while found and found[0] not in in_order:
        in_order.append(found[0])
        found = [each for each in certificates if each.subject == in_order[-1].issuer]
    return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in in_order) or None
