"""A server's identity: the names and pin of its certificate, and clients' checks of pins.

`cryptography` decodes certificates. It is imported only where it is needed: the import takes 40 ms,
and shadowsocks may connect to its plugin as soon as it has started it.
"""

from __future__ import annotations

import base64
import datetime
import functools
import time
from typing import TYPE_CHECKING, NamedTuple

from mtt.errors import Cause, PeerError, UsageError
from mtt.trust import child
from mtt.trust.chain import chain, is_ordered

if TYPE_CHECKING:
    from cryptography import x509

PIN_PREFIX = "sha256/"
DIGEST_LENGTH = 32  # bytes of SHA-256
PIN_LENGTH = 44  # characters of Base64 for them

# Seconds for which a description is right: it says whether the certificate has expired.
WORDS_TIME = 60

# Names of a certificate shown in a log line; a CDN's certificate may have a hundred.
NAMES_SHOWN = 3


class Words(NamedTuple):
    """A certificate described for the log."""

    description: str  # one line: the names and the last day of validity, or "self-signed for NAME"
    warnings: tuple[str, ...] = ()  # why clients would refuse it, as log lines
    names: tuple[str, ...] = ()  # the DNS names and addresses that it is for, where readable
    # The value for `-pin`: "sha256/" and the Base64 SHA-256 of the public key, hashed as a
    # SubjectPublicKeyInfo (RFC 7469, section 2.4), so that the pin survives a renewed certificate.
    # None if `cryptography` is missing or does not support the key.
    pin: str | None = None
    not_after: float | None = None  # the Unix time of its expiry; None where not readable


class Identity:
    """The certificate that this side presents.

    `certificate_pem` starts with it. `path` is its file; empty if it is self-signed and was made
    here. `in_order`: it comes first in the file, too.
    """

    def __init__(self, certificate_pem: bytes, *, path: str = "", in_order: bool = True) -> None:
        self.pem = certificate_pem
        self.path = path
        self._in_order = in_order

    @functools.cached_property
    def words(self) -> Words:
        """Its description. Slow on first use: ask for that of a file after listening has begun."""
        return _words(self.pem, self.path, self._in_order, int(time.time() // WORDS_TIME))


# Cached for the tunnels of a process that have one certificate: all read it again on SIGHUP, and
# name lookups would wait for as many child processes.
@functools.lru_cache(maxsize=16)
def _words(pem: bytes, path: str, in_order: bool, _period: int) -> Words:
    return Words(*child.run(describe, pem, path, in_order))


def describe(
    pem: bytes, path: str = "", in_order: bool = True
) -> tuple[str, tuple[str, ...], tuple[str, ...], str | None, float | None]:
    """The `Words` about a certificate, see `Identity`, as a plain tuple."""
    try:
        from cryptography import x509

        certificate = x509.load_pem_x509_certificate(pem)
    except (ImportError, ValueError):
        # OpenSSL has already accepted it; a stricter parser must not stop the server.
        return f"certificate from {path}", (), (), None, None
    names = tuple(_names(certificate))
    warnings = _warnings(pem, path, in_order) if path else ()
    _, expiry = _validity(certificate)
    description = _description(certificate, names, path)
    return description, warnings, names, _pin(certificate), expiry.timestamp()


def _description(certificate: x509.Certificate, names: tuple[str, ...], path: str) -> str:
    shown = ", ".join(names[:NAMES_SHOWN]) or "no name"
    if len(names) > NAMES_SHOWN:
        shown += f" and {len(names) - NAMES_SHOWN} more"
    if not path:
        return f"self-signed for {shown}"
    _, expiry = _validity(certificate)
    verb = "expired on" if expiry < datetime.datetime.now(datetime.UTC) else "valid until"
    return f"certificate for {shown}, {verb} {expiry:%Y-%m-%d}"


def _warnings(pem: bytes, path: str, in_order: bool) -> tuple[str, ...]:
    try:
        certificates = chain(pem)
    except ValueError:
        return ()
    found = []
    if not (in_order and is_ordered(certificates)):
        found.append(
            f"the certificates in {path} are in the wrong order; put the server's own "
            "first, and after each the one of its issuer"
        )
    now = datetime.datetime.now(datetime.UTC)
    for number, certificate in enumerate(certificates, 1):
        which = "the certificate" if number == 1 else f"certificate {number}"
        start, expiry = _validity(certificate)
        if expiry < now:
            found.append(
                f"{which} in {path} expired on {expiry:%Y-%m-%d}, so clients refuse it; renew it"
            )
        elif now < start:
            found.append(
                f"{which} in {path} is not valid before {start:%Y-%m-%d %H:%M} UTC, so "
                "clients refuse it; check the clock"
            )
    return tuple(found)


def parse_pin(text: str) -> str:
    """The pin in `text`, checked: "sha256/" and the Base64 of 32 bytes; curl's "sha256//" too.

    Raises UsageError.
    """
    encoded = text.removeprefix(PIN_PREFIX)
    if len(encoded) == PIN_LENGTH + 1:  # the Base64 itself may start with a slash
        encoded = encoded.removeprefix("/")
    try:
        digest = base64.b64decode(encoded, validate=True)
    except ValueError:
        digest = b""
    if text.startswith(PIN_PREFIX) and len(digest) == DIGEST_LENGTH:
        return PIN_PREFIX + base64.b64encode(digest).decode()
    raise UsageError(
        f"-pin: {text!r} is not a pin; the server prints it at start, like {PIN_PREFIX}B64..."
    )


def check_pin(der_certificate: bytes, pins: tuple[str, ...]) -> None:
    """Raise PeerError unless the key of a server's certificate (DER) matches one of `pins`."""
    actual = _pin_of(der_certificate)
    if actual in pins:
        return
    text = (
        f"the server's pin is {actual}, not the one given with -pin; compare it with the pin in "
        "the server's log"
    )
    if actual is None:
        text = "the server's certificate has a key of an unsupported type"
    raise PeerError(text, cause=Cause.CERTIFICATE)


# Cached: parsing a certificate takes a tenth of the time of a new connection, and a server has one,
# or a few behind a load balancer.
@functools.lru_cache(maxsize=16)
def _pin_of(der_certificate: bytes) -> str | None:
    from cryptography import x509

    try:
        return _pin(x509.load_der_x509_certificate(der_certificate))
    except ValueError:
        return None


def _pin(certificate: x509.Certificate) -> str | None:
    import hashlib

    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key = certificate.public_key()
    except (UnsupportedAlgorithm, ValueError):
        return None
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PIN_PREFIX + base64.b64encode(hashlib.sha256(info).digest()).decode()


def _names(certificate: x509.Certificate) -> list[str]:
    """The DNS names and addresses of a certificate; without any, its common names."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = [str(name) for name in found.get_values_for_type(x509.DNSName)]
        names += [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    except (x509.ExtensionNotFound, ValueError):
        names = []
    if not names:
        common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        names = [str(attribute.value) for attribute in common]
    return names


def _validity(certificate: x509.Certificate) -> tuple[datetime.datetime, datetime.datetime]:
    """The first and the last moment at which a certificate is valid."""
    try:
        return certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except AttributeError:  # cryptography before 42, in Debian 12
        start, expiry = certificate.not_valid_before, certificate.not_valid_after
        return start.replace(tzinfo=datetime.UTC), expiry.replace(tzinfo=datetime.UTC)
