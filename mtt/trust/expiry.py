"""The end of a certificate's validity, read without `cryptography`, for the metrics.

Only as much of DER (X.690) as leads to it: RFC 5280, 4.1.
"""

from __future__ import annotations

import base64
import datetime
import re

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)

_VERSION = 0xA0  # the optional first field
_UTC_TIME = 0x17  # with a year of two digits, from 1950 to 2049
_LONG_LENGTH = 0x80


def not_after(pem: bytes) -> float | None:
    """The Unix time at which the first certificate in `pem` expires; None if it is damaged."""
    found = _PEM.search(pem)
    try:
        return _not_after(base64.b64decode(found[1])) if found else None
    except (ValueError, IndexError):
        return None


def _not_after(der: bytes) -> float:
    _, at, _ = _element(der, 0)  # the certificate
    _, at, _ = _element(der, at)  # what is signed
    tag, _, end = _element(der, at)
    if tag != _VERSION:
        end = at
    for _ in ("serial number", "algorithm", "issuer"):
        _, _, end = _element(der, end)
    _, at, _ = _element(der, end)  # validity
    _, _, at = _element(der, at)  # not before
    tag, start, end = _element(der, at)
    text = der[start:end].decode("ascii")
    if tag == _UTC_TIME:
        text = ("19" if text >= "5" else "20") + text
    moment = datetime.datetime.strptime(text, "%Y%m%d%H%M%SZ")
    return moment.replace(tzinfo=datetime.UTC).timestamp()


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the element at `at`, and where its content starts and ends."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length >= _LONG_LENGTH:
        size = length - _LONG_LENGTH
        length = int.from_bytes(der[start : start + size])
        start += size
    if start + length > len(der):
        raise ValueError("the certificate is cut off")
    return tag, start, start + length
