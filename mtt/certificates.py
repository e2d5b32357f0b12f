"""TLS contexts of both ends: who a server says it is, and whom a client believes.

Nothing here parses or makes certificates by hand: OpenSSL (through `ssl`) and `cryptography`
do. `cryptography` is imported where it is needed and not before: that takes 40 ms, and a
shadowsocks that starts us as its plugin may use our port without waiting for it.
"""

from __future__ import annotations

import base64
import datetime
import functools
import hashlib
import importlib.util
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from mtt.errors import PeerError, StartError, UsageError, describe

if TYPE_CHECKING:
    from cryptography import x509

PIN_PREFIX = "sha256/"
PIN_LENGTH = 44  # characters of Base64 for 32 bytes

# How many names of a certificate fit into a log line; those of a CDN may carry a hundred.
NAMES_SHOWN = 3

# OpenSSL's reasons when a key is another certificate's; the last two when even its kind differs.
MISMATCHES = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH")


class Identity:
    """The certificate that a server presents, in words for its start log.

    The words are worked out when they are first asked for, see the top of this module: with a
    certificate from a file, ask after listening has begun.
    """

    def __init__(self, certificate_pem: bytes, *, path: str = "") -> None:
        """`certificate_pem` starts with the server's own certificate, read from `path`.

        Without a path it was made here and is self-signed.
        """
        self._pem = certificate_pem
        self._path = path

    @functools.cached_property
    def description(self) -> str:
        """One line: the names and the last day of validity, or "self-signed for NAME"."""
        certificate = self._certificate
        if certificate is None:
            return f"certificate from {self._path}"
        names = _names(certificate)
        shown = ", ".join(names[:NAMES_SHOWN]) or "nobody"
        if len(names) > NAMES_SHOWN:
            shown += f" and {len(names) - NAMES_SHOWN} more"
        if not self._path:
            return f"self-signed for {shown}"
        expiry = _expiry(certificate)
        verb = "expired on" if expiry < datetime.datetime.now(datetime.UTC) else "valid until"
        return f"certificate for {shown}, {verb} {expiry:%Y-%m-%d}"

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The DNS names and addresses that the certificate is for, where they can be read."""
        return () if self._certificate is None else tuple(_names(self._certificate))

    @functools.cached_property
    def pin(self) -> str | None:
        """What `-pin` takes: "sha256/" and the Base64 of the SHA-256 of the public key.

        The key is hashed as a SubjectPublicKeyInfo (RFC 7469, section 2.4), so the pin outlives
        a renewed certificate. None when `cryptography` is missing or does not know the key.
        """
        return None if self._certificate is None else _pin(self._certificate)

    @functools.cached_property
    def _certificate(self) -> x509.Certificate | None:
        try:
            from cryptography import x509

            return x509.load_pem_x509_certificate(self._pem)
        except (ImportError, ValueError):
            # OpenSSL has accepted it already; a stricter parser must not stop the server.
            return None


def server_context(
    *,
    cert: str,
    key: str,
    name: str,
    alpn: list[str] | None,
    options: tuple[str, str] = ("-cert", "-key"),
) -> tuple[ssl.SSLContext, Identity]:
    """The TLS context of a server, and who it is.

    `cert` and `key` are paths of PEM files, the certificate followed by its chain. When both
    are empty a self-signed certificate for `name` is made in memory; an empty `name` stands for
    a random one. `alpn` lists the protocols to select from, most preferred first: a client that
    offers none of them is served all the same, without ALPN. `options` is what the user knows
    `cert` and `key` by.

    Raises UsageError (an option is wrong) or StartError (no place for temporary files).
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, alpn)
    # Renegotiation lets a client of TLS 1.2 burn our CPU and was never used. Tickets stay on:
    # resumption halves the cost of a connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    if bool(cert) != bool(key):
        given, missing = options if cert else options[::-1]
        raise UsageError(
            f"{given} needs {missing} with it; give both, or none to get a self-signed certificate"
        )
    if cert:
        certificate_pem = _load_files(context, cert, key, options)
        return context, Identity(certificate_pem, path=cert)
    from mtt.selfsigned import random_name, self_signed

    certificate_pem, key_pem = self_signed(name or random_name())
    _load_memory(context, certificate_pem, key_pem)
    return context, Identity(certificate_pem)


def client_context(
    *, ca: str, skip_verify: bool, pins: tuple[str, ...], alpn: list[str] | None
) -> ssl.SSLContext:
    """The TLS context of a client.

    A server is verified against the PEM file `ca`, or against the system's roots, which
    `finish_client_context()` loads. With `pins` the caller must call `check_pin()` after every
    handshake; the certificate's chain and name are then checked only if `ca` was given too.
    With `skip_verify` they are never checked.

    Raises UsageError: `ca` has no usable certificate, or pins cannot be checked.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, alpn)
    # As RFC 6125 and every browser want it: a certificate without subjectAltName names nobody.
    context.hostname_checks_common_name = False
    # A certificate the user trusts is trusted as such, be it an intermediate or a server's own.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if pins and importlib.util.find_spec("cryptography") is None:
        raise UsageError("-pin needs the Python package 'cryptography'; install it with pip")
    if ca:
        _load_authorities(context, ca)
    if skip_verify or (pins and not ca):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def finish_client_context(context: ssl.SSLContext, *, pins: tuple[str, ...]) -> None:
    """Do what takes 30 ms and cannot fail: to be called after listening has begun.

    Loads the system's roots if nothing else is trusted (OpenSSL honours SSL_CERT_FILE and
    SSL_CERT_DIR), and what `check_pin()` needs.
    """
    if context.verify_mode is not ssl.CERT_NONE and not context.cert_store_stats()["x509"]:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if pins:
        from cryptography import x509  # noqa: F401  (so that the first handshake need not)


def _context(protocol: int, alpn: list[str] | None) -> ssl.SSLContext:
    """What both ends have in common."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION  # it leaks plaintext (CRIME)
    # Early CPython 3.11 (Debian 12 has it) tells OpenSSL 3 to take a cut connection for an orderly
    # end. Then anyone on the way could truncate what a tunnel carries, unnoticed.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


def parse_pin(text: str) -> str:
    """The pin in `text`, checked: "sha256/" and the Base64 of 32 bytes; curl's "sha256//" too.

    Raises UsageError.
    """
    encoded = text.removeprefix(PIN_PREFIX)
    if len(encoded) == PIN_LENGTH + 1:  # Base64 itself may begin with a slash
        encoded = encoded.removeprefix("/")
    try:
        digest = base64.b64decode(encoded, validate=True)
    except ValueError:
        digest = b""
    if text.startswith(PIN_PREFIX) and len(digest) == hashlib.sha256().digest_size:
        return PIN_PREFIX + base64.b64encode(digest).decode()
    raise UsageError(
        f"-pin: {text!r} is not a pin; the server prints it at start, like {PIN_PREFIX}B64..."
    )


def check_pin(der_certificate: bytes, pins: tuple[str, ...]) -> None:
    """Accept a server's certificate (DER) if one of `pins` is its key's; else raise PeerError."""
    from cryptography import x509

    try:
        actual = _pin(x509.load_der_x509_certificate(der_certificate))
    except ValueError:
        actual = None
    if actual is None:
        raise PeerError("the server's certificate has a key that no pin can describe")
    if actual not in pins:
        raise PeerError(f"the server's pin is {actual}, not the one given with -pin")


def _load_files(
    context: ssl.SSLContext, cert: str, key: str, options: tuple[str, str]
) -> bytes:
    """Load certificate and key from files; returns the certificate file's content.

    OpenSSL's errors name no file and mostly no reason, hence the detective work.
    """
    cert_option, key_option = options
    certificate_pem, key_pem = _read(cert_option, cert), _read(key_option, key)

    def password() -> str:  # without this OpenSSL would ask on the terminal, and wait
        raise UsageError(
            f"{key_option}: {key} is encrypted; decrypt it: openssl pkey -in {key} -out ..."
        )

    try:
        context.load_cert_chain(cert, key, password)
    except OSError as error:  # SSLError is one
        reason = getattr(error, "reason", None)
        if b"-----BEGIN CERTIFICATE-----" not in certificate_pem:
            raise UsageError(f"{cert_option}: {cert} has no PEM certificate in it") from None
        if b"PRIVATE KEY-----" not in key_pem:
            raise UsageError(f"{key_option}: {key} has no PEM private key in it") from None
        if reason in MISMATCHES:
            raise UsageError(
                f"{key_option}: {key} does not belong to the certificate {cert}"
            ) from None
        if reason is not None or not isinstance(error, ssl.SSLError):
            raise UsageError(
                f"{cert_option}, {key_option}: {cert} and {key}: {describe(error)}"
            ) from None
        good = _is_certificate_file(cert)
        culprit = f"{key_option}: {key}" if good else f"{cert_option}: {cert}"
        raise UsageError(f"{culprit} is damaged: OpenSSL cannot decode it") from None
    return certificate_pem


def _load_memory(context: ssl.SSLContext, certificate_pem: bytes, key_pem: bytes) -> None:
    """Load certificate and key that are in memory only.

    `ssl` takes them from files alone. A directory that nobody else can enter, gone a moment
    later, works on every platform, which memfd_create() does not; and nothing of value can be
    left behind by a crash, as this key serves no other process, and no later one.
    """
    import tempfile  # 4 ms, see the top of this module

    try:
        with tempfile.TemporaryDirectory(prefix="mtt-") as directory:
            path = Path(directory, "identity.pem")
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(certificate_pem + key_pem)
            context.load_cert_chain(path)
    except ssl.SSLError:
        raise  # made here and refused by OpenSSL: a bug, not the user's fault
    except OSError as error:
        raise StartError(
            f"no place for a temporary file ({describe(error)}); set TMPDIR to a writable "
            "directory, or give -cert and -key"
        ) from None


def _load_authorities(context: ssl.SSLContext, ca: str) -> None:
    _read("-ca", ca)
    try:
        context.load_verify_locations(cafile=ca)
    except OSError:
        raise UsageError(f"-ca: {ca} has no PEM certificate that OpenSSL can decode") from None


def _is_certificate_file(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError:
        return False
    return True


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise UsageError(f"{option}: cannot read {path}: {describe(error)}") from None


def _pin(certificate: x509.Certificate) -> str | None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key = certificate.public_key()
    except (UnsupportedAlgorithm, ValueError):
        return None
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PIN_PREFIX + base64.b64encode(hashlib.sha256(info).digest()).decode()


def _names(certificate: x509.Certificate) -> list[str]:
    """The DNS names and addresses a certificate is for; without any, its common names."""
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


def _expiry(certificate: x509.Certificate) -> datetime.datetime:
    try:
        return certificate.not_valid_after_utc
    except AttributeError:  # cryptography before 42, in Debian 12
        return certificate.not_valid_after.replace(tzinfo=datetime.UTC)
