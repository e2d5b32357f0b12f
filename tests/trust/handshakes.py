"""Contexts from options, and handshakes in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mtt.trust.certificates import client_context, server_context
from mtt.trust.pem import PemSource
from mtt.trust.reload import TlsFiles
from mtt.trust.tls_options import ClientTls, ServerTls


def shake(
    client: ssl.SSLContext, server: ssl.SSLContext, name: str, session: ssl.SSLSession | None = None
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a handshake in memory. Raises what either end raises."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name, session=session)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for end in (ours, theirs):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        ours.read(1)  # takes the session tickets that follow a handshake of TLS 1.3
    return ours, theirs


def client_of(
    *,
    ca: PemSource = "",
    skip_verify: bool = False,
    pins: tuple[str, ...] = (),
    cert: str = "",
    key: str = "",
) -> ssl.SSLContext:
    return client_context(
        ClientTls(ca=ca, skip_verify=skip_verify, pins=pins, cert=cert, key=key)
    )


def server_of(*, cert: PemSource = "", key: PemSource = "", name: str = "") -> ssl.SSLContext:
    return server_context(ServerTls(cert=cert, key=key, name=name))[0]


def presented(context: ssl.SSLContext) -> x509.Certificate:
    """The certificate that a server with this context shows."""
    client, _ = shake(client_of(skip_verify=True), context, "any.name")
    der = client.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def pin_of(certificate: x509.Certificate) -> str:
    info = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return "sha256/" + base64.b64encode(hashlib.sha256(info).digest()).decode()


def pin(files: TlsFiles) -> str:
    assert files.identity is not None
    assert files.identity.words.pin is not None
    return files.identity.words.pin
