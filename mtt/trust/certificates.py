"""TLS contexts of both ends: who a server says it is, and whom a client believes.

Nothing here parses or makes certificates by hand: OpenSSL (through `ssl`) and `cryptography`
do. `cryptography` is imported where it is needed and not before: that takes 40 ms, and a
shadowsocks that starts us as its plugin may use our port without waiting for it.
"""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtt.errors import UsageError, describe
from mtt.trust import child
from mtt.trust.chain import ordered
from mtt.trust.identity import Identity
from mtt.trust.pem import PemSource, labelled, memory_file, pem_path, read_pem
from mtt.trust.tls_options import TLS_VERSIONS, ClientTls, ServerTls

if TYPE_CHECKING:
    from mtt.trust.selfsigned import SelfSigned

VERSIONS = dict(zip(TLS_VERSIONS, (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3), strict=True))

# For TLS 1.2: forward secrecy and authenticated encryption, and nothing else. Go's crypto/tls and
# every browser of the last ten years have these. (TLS 1.3 has no other; and of the curves OpenSSL's
# own choice is left alone, with X25519 first, or its post-quantum hybrid where there is one.)
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

# The TLS alert for ALPN names of which none is ours (RFC 7301, 3.2).
NO_APPLICATION_PROTOCOL = 120

# OpenSSL's reasons when a key is another certificate's; the last two when even its kind differs.
MISMATCHES = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH")


class ServerConnection(ssl.SSLObject):
    """A server's end of a connection, which can refuse the client's ALPN names.

    `ssl` always continues without ALPN when there is no name in common (RFC 7301, 3.2, wants an
    alert), and leaves a server one place to say no: where the server name is judged.
    """

    _alert: int | None = None

    def refuse_alpn(self) -> None:
        """Let the handshake fail, provided that the rest of the ClientHello is well-formed."""
        self._alert = NO_APPLICATION_PROTOCOL

    def alert(self) -> int | None:
        """The alert that ends the handshake; None to go on."""
        return self._alert


def server_context(
    tls: ServerTls, made: SelfSigned | None = None
) -> tuple[ssl.SSLContext, Identity]:
    """The TLS context of a server, and who it is.

    Without a certificate a self-signed one is made in memory, unless it was `made` before.
    `cert_dir` is not looked at.

    Raises UsageError (an option is wrong) or StartError (no place for temporary files).
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, tls.alpn, tls.tls_min)
    # Renegotiation lets a client of TLS 1.2 burn our CPU and was never used. Tickets stay on:
    # resumption halves the cost of a connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # As nginx, Apache and most servers with OpenSSL: the server name is acknowledged, whatever it
    # is, and a full handshake of TLS 1.3 brings two tickets.
    context.sni_callback = _accept_name
    # As nginx: the client's order of cipher suites counts. Python's default is the server's.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.sslobject_class = ServerConnection
    context.num_tickets = 2
    if bool(tls.cert) != bool(tls.key):
        given, missing = tls.options if tls.cert else tls.options[::-1]
        raise UsageError(
            f"{given} needs {missing} with it; give both, or none to get a self-signed certificate"
        )
    if tls.client_ca:
        _load_authorities(context, "-client-ca", tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    if tls.cert:
        in_use, in_order = _load_files(context, tls.cert, tls.key, tls.options)
        return context, Identity(in_use, path=str(tls.cert), in_order=in_order)
    if made is None:
        from mtt.trust.selfsigned import new_identity

        made = new_identity(tls.name)
    _load_memory(context, made.certificate, made.key)
    return context, Identity(made.certificate, words=made.words)


def client_context(tls: ClientTls) -> ssl.SSLContext:
    """The TLS context of a client.

    The system's roots are left to `finish_client_context()`. With pins the caller must call
    `check_pin()` (identity) after every handshake.

    Raises UsageError: a file cannot be used, or pins cannot be checked.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, tls.alpn, tls.tls_min)
    # As RFC 6125 and every browser want it: a certificate without subjectAltName names nobody.
    context.hostname_checks_common_name = False
    if tls.pins and importlib.util.find_spec("cryptography") is None:
        raise UsageError("-pin needs the Python package 'cryptography'; install it with pip")
    if tls.ca:
        _load_authorities(context, "-ca", tls.ca)
    if tls.cert:
        _load_files(context, tls.cert, tls.key, ("-cert", "-key"))
    if tls.skip_verify or (tls.pins and not tls.ca):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def finish_client_context(context: ssl.SSLContext, *, pins: tuple[str, ...]) -> None:
    """Do what takes 30 ms and cannot fail: to be called after listening has begun.

    Loads the system's roots if nothing else is trusted (OpenSSL honours SSL_CERT_FILE and
    SSL_CERT_DIR), and what `mtt.trust.identity.check_pin()` needs.
    """
    if context.verify_mode is not ssl.CERT_NONE and not context.cert_store_stats()["x509"]:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if pins:
        from cryptography import x509  # noqa: F401  (so that the first handshake need not)


def _accept_name(
    connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext
) -> int | None:
    """Take any server name: without a callback OpenSSL does not acknowledge it, for all to see."""
    return connection.alert() if isinstance(connection, ServerConnection) else None


def _context(protocol: int, alpn: Sequence[str], tls_min: str) -> ssl.SSLContext:
    """What both ends have in common."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = VERSIONS[tls_min]
    context.set_ciphers(CIPHERS)
    # A certificate the user trusts is trusted as such, be it an intermediate or a peer's own.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_COMPRESSION  # it leaks plaintext (CRIME)
    # Early CPython 3.11 (Debian 12 has it) tells OpenSSL 3 to take a cut connection for an orderly
    # end. Then anyone on the way could truncate what a tunnel carries, unnoticed.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _load_files(
    context: ssl.SSLContext, cert: PemSource, key: PemSource, options: tuple[str, str]
) -> tuple[bytes, bool]:
    """Load certificate and key; returns the chain in use, and whether it is in the file's order.

    OpenSSL's errors name no file and mostly no reason, hence the detective work.
    """
    cert_option, key_option = options
    certificate_pem = read_pem(cert_option, cert)
    key_pem = read_pem(key_option, key, secret=True)
    cert_label, key_label = labelled(cert_option, cert), labelled(key_option, key)

    def password() -> str:  # without this OpenSSL would ask on the terminal, and wait
        file = key if isinstance(key, str) else "FILE"
        raise UsageError(f"{key_label} is encrypted; decrypt it: openssl pkey -in {file} -out ...")

    try:
        with pem_path(cert) as cert_path, pem_path(key) as key_path:
            context.load_cert_chain(cert_path, key_path, password)
    except OSError as error:  # SSLError is one
        reason = getattr(error, "reason", None)
        if b"-----BEGIN CERTIFICATE-----" not in certificate_pem:
            raise UsageError(f"{cert_label} has no PEM certificate in it") from None
        if b"PRIVATE KEY-----" not in key_pem:
            raise UsageError(f"{key_label} has no PEM private key in it") from None
        if reason in MISMATCHES:
            reordered = child.run(ordered, certificate_pem, key_pem)
            if reordered is not None:
                with memory_file(reordered) as cert_path, pem_path(key) as key_path:
                    context.load_cert_chain(cert_path, key_path, password)
                return reordered, False
            raise UsageError(f"{key_label} does not belong to the certificate {cert}") from None
        if reason is not None or not isinstance(error, ssl.SSLError):
            raise UsageError(
                f"{cert_option}, {key_option}: {cert} and {key}: {describe(error)}"
            ) from None
        culprit = key_label if _is_certificate(cert) else cert_label
        raise UsageError(f"{culprit} is damaged: OpenSSL cannot decode it") from None
    return certificate_pem, True


def _load_memory(context: ssl.SSLContext, certificate_pem: bytes, key_pem: bytes) -> None:
    """Load certificate and key that are in memory only."""
    with memory_file(certificate_pem + key_pem) as path:
        context.load_cert_chain(path)


def _load_authorities(context: ssl.SSLContext, option: str, source: PemSource) -> None:
    read_pem(option, source)
    try:
        with pem_path(source) as path:
            context.load_verify_locations(cafile=path)
    except OSError:
        raise UsageError(
            f"{labelled(option, source)} has no PEM certificate that OpenSSL can decode"
        ) from None


def _is_certificate(source: PemSource) -> bool:
    try:
        with pem_path(source) as path:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError:
        return False
    return True

