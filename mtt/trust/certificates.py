"""TLS contexts of servers and clients: the server's identity and the client's trust."""

from __future__ import annotations

import importlib.util
import ssl
from collections.abc import Sequence
from dataclasses import replace
from weakref import WeakValueDictionary

from mtt.errors import UsageError, describe
from mtt.trust import child
from mtt.trust.chain import ordered
from mtt.trust.identity import Identity
from mtt.trust.pem import PemSource, labelled, memory_file, pem_path, read_pem
from mtt.trust.tls_options import TLS_VERSIONS, ClientTls, ServerTls

VERSIONS = dict(zip(TLS_VERSIONS, (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3), strict=True))

# For TLS 1.2: only forward secrecy with authenticated encryption. Go's crypto/tls and every browser
# of the last ten years support these. (TLS 1.3 has no others. The curves are OpenSSL's default:
# X25519 first, or its post-quantum hybrid where available.)
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

# The TLS alert for a client with no common ALPN name (RFC 7301, 3.2).
NO_APPLICATION_PROTOCOL = 120

# OpenSSL's reasons for a key that does not match the certificate; the last two if the key types
# differ.
MISMATCHES = ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED", "KEY_TYPE_MISMATCH")


# Contexts of clients, see `shared_client_context()`.
_shared_contexts: WeakValueDictionary[object, ssl.SSLContext] = WeakValueDictionary()


class ServerConnection(ssl.SSLObject):
    """The server side of a connection, which can refuse the client's ALPN names.

    Without a common name, `ssl` always continues without ALPN (RFC 7301, 3.2, requires an alert).
    The only place where a server can send an alert is the server name callback.
    """

    alert: int | None = None  # ends the handshake

    def refuse_alpn(self) -> None:
        """Fail the handshake, provided that the rest of the ClientHello is well-formed."""
        self.alert = NO_APPLICATION_PROTOCOL


def server_context(
    tls: ServerTls, made: tuple[bytes, Identity] | None = None
) -> tuple[ssl.SSLContext, Identity]:
    """The TLS context and identity of a server, without a look at `cert_dir`.

    Without a certificate, uses the self-signed one that `new_identity()` has `made`, or a new one.
    Raises UsageError (an option is wrong) or StartError (no place for temporary files).
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, tls.alpn, tls.tls_min)
    # Renegotiation lets a TLS 1.2 client waste the server's CPU, and no client uses it. Tickets
    # stay on: resumption halves the cost of a connection.
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Like nginx, Apache and most servers with OpenSSL: acknowledge any server name, and send two
    # tickets after a full TLS 1.3 handshake.
    context.sni_callback = _accept_name
    # Like nginx: prefer the client's order of cipher suites. Python's default is the server's.
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.sslobject_class = ServerConnection
    context.num_tickets = 2
    if bool(tls.cert) != bool(tls.key):
        given, missing = tls.options if tls.cert else tls.options[::-1]
        raise UsageError(
            f"{given} needs {missing}; give both, or neither to get a self-signed certificate"
        )
    if tls.client_ca:
        _load_authorities(context, tls.ca_option, tls.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    if tls.cert:
        return context, _load_files(context, tls.cert, tls.key, tls.options)
    if made is None:
        from mtt.trust.selfsigned import new_identity

        made = new_identity(tls.name)
    pem, identity = made
    with memory_file(pem) as path:
        context.load_cert_chain(path)
    return context, identity


def client_context(tls: ClientTls) -> ssl.SSLContext:
    """The TLS context of a client, to be completed by `finish_client_context()`.

    With pins, the caller must call `identity.check_pin()` after every handshake.
    Raises UsageError: a file is unusable, or pins cannot be checked.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, tls.alpn, tls.tls_min)
    # As in RFC 6125 and every browser: a certificate without subjectAltName matches no name.
    context.hostname_checks_common_name = False
    if tls.pins and importlib.util.find_spec("cryptography") is None:
        raise UsageError("-pin needs the Python package 'cryptography'; install it with pip")
    if tls.ca:
        _load_authorities(context, tls.ca_option, tls.ca)
    if tls.cert:
        _load_files(context, tls.cert, tls.key, tls.options)
    if tls.skip_verify or (tls.pins and not tls.ca):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def shared_client_context(tls: ClientTls) -> ssl.SSLContext:
    """As `client_context()`, or the result of an earlier call with the same options.

    With the system's roots, a context takes 1 MB and 20 ms, and a process may have many tunnels.
    """
    if tls.ca or tls.cert:  # files, which may change
        return client_context(tls)
    # OpenSSL's variables decide where the system's roots are.
    key = replace(tls, server_name=""), ssl.get_default_verify_paths()
    context = _shared_contexts.get(key)
    if context is None:
        context = _shared_contexts[key] = client_context(tls)
    return context


def finish_client_context(context: ssl.SSLContext, *, pins: tuple[str, ...]) -> None:
    """Finish a context; takes 30 ms and cannot fail, so call it after listening has begun.

    Loads the system's roots if nothing else is trusted (OpenSSL honours SSL_CERT_FILE and
    SSL_CERT_DIR), and imports what `check_pin()` needs.
    """
    if context.verify_mode is not ssl.CERT_NONE and not context.cert_store_stats()["x509"]:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if pins:
        from cryptography import x509  # noqa: F401  (speeds up the first handshake)


def _accept_name(connection: ssl.SSLObject, _name: object, _context: object) -> int | None:
    """Accept any server name: without a callback OpenSSL does not acknowledge it, visibly."""
    return connection.alert if isinstance(connection, ServerConnection) else None


def _context(protocol: int, alpn: Sequence[str], tls_min: str) -> ssl.SSLContext:
    """The settings shared by clients and servers."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = VERSIONS[tls_min]
    context.set_ciphers(CIPHERS)
    # Any certificate that the operator trusts is a trust anchor, also an intermediate or a leaf.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_COMPRESSION  # it leaks plaintext (CRIME)
    # Early CPython 3.11 (in Debian 12) makes OpenSSL 3 treat a cut connection as an orderly end.
    # An attacker on the path could then truncate a tunnel's data unnoticed.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _load_files(
    context: ssl.SSLContext, cert: PemSource, key: PemSource, options: tuple[str, str]
) -> Identity:
    """Load certificate and key; returns the identity in them.

    OpenSSL's errors name no file and usually no reason, so the causes are checked one by one.
    """
    cert_option, key_option = options
    certificate_pem = read_pem(cert_option, cert)
    key_pem = read_pem(key_option, key, secret=True)
    cert_label, key_label = labelled(cert_option, cert), labelled(key_option, key)

    def password() -> str:  # without this, OpenSSL would prompt on the terminal and block
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
                return Identity(reordered, path=str(cert), in_order=False)
            raise UsageError(f"{key_label} does not belong to the certificate {cert}") from None
        if reason is not None or not isinstance(error, ssl.SSLError):
            both = f"{cert_option}, {key_option}: {cert} and {key}"
            raise UsageError(f"{both}: {describe(error)}") from None
        is_certificate = _trusts(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), cert)
        culprit = key_label if is_certificate else cert_label
        raise UsageError(f"{culprit} is damaged: OpenSSL cannot decode it") from None
    return Identity(certificate_pem, path=str(cert))


def _load_authorities(context: ssl.SSLContext, option: str, source: PemSource) -> None:
    read_pem(option, source)
    if not _trusts(context, source):
        where = labelled(option, source)
        raise UsageError(f"{where} has no PEM certificate that OpenSSL can decode")


def _trusts(context: ssl.SSLContext, source: PemSource) -> bool:
    """Trust the certificates in `source`; returns whether there are any."""
    try:
        with pem_path(source) as path:
            context.load_verify_locations(cafile=path)
    except OSError:
        return False
    return True
