"""The end of validity, against what `cryptography` reads."""

from __future__ import annotations

import base64
import datetime
import random

import pytest
from cryptography import x509

from mtt.trust.expiry import not_after
from mtt.trust.identity import _validity
from tests.support.certs import Authority, pem


# Validity beyond 2049 has another form (RFC 5280, 4.1.2.5).
@pytest.mark.parametrize("days", [-1, 1, 90, 12_000, 100_000])
def test_expiry_is_read(days: int) -> None:
    certificate, _ = Authority("CA").issue("a.example", days=days)
    _, expected = _validity(x509.load_pem_x509_certificate(certificate))
    assert not_after(certificate) == expected.timestamp()


def test_the_first_certificate_counts() -> None:
    authority = Authority("CA", days=9)
    first, key = authority.issue("a.example", days=2)
    second = pem(authority.certificate)
    assert not_after(key + first + second) == not_after(first)
    assert not_after(first) != not_after(second)


def test_years_of_two_digits() -> None:
    certificate, _ = Authority("CA").issue("a.example", days=30)
    der = base64.b64decode(b"".join(certificate.splitlines()[1:-1]))
    expiry = not_after(certificate)
    assert expiry is not None
    text = f"{datetime.datetime.fromtimestamp(expiry, datetime.UTC):%y%m%d%H%M%SZ}".encode()
    for year, expected in ((b"49", 2049), (b"50", 1950)):
        changed = der.replace(text, year + text[2:])
        found = not_after(_armour(changed))
        assert found is not None
        assert datetime.datetime.fromtimestamp(found, datetime.UTC).year == expected


def test_damaged_certificates_have_no_expiry() -> None:
    certificate, _ = Authority("CA").issue("a.example")
    der = base64.b64decode(b"".join(certificate.splitlines()[1:-1]))
    for text in (b"", b"nonsense", _armour(b""), _armour(b"\x30"), b"-" + _armour(der)[5:]):
        assert not_after(text) is None
    assert all(not_after(_armour(der[:size])) is None for size in range(len(der)))
    dice = random.Random(1)
    for _ in range(500):  # none raises anything
        changed = bytearray(der)
        for _ in range(3):
            changed[dice.randrange(200)] = dice.randrange(256)
        not_after(_armour(bytes(changed)))


def _armour(der: bytes) -> bytes:
    text = base64.b64encode(der)
    return b"-----BEGIN CERTIFICATE-----\n" + text + b"\n-----END CERTIFICATE-----\n"
