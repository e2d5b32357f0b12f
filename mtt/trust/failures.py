"""TLS failures: their meaning, their cause in the metrics, and the fix."""

from __future__ import annotations

import ssl

from mtt.errors import (
    Cause,
    NetworkError,
    NothingSaidError,
    PeerError,
    RefusedError,
    describe,
)

# Alerts (RFC 8446, 6.2) by which a server rejects the client's certificate, as OpenSSL names them.
# In TLS 1.3 they arrive after the client's handshake: the certificate is in its last flight.
_REFUSALS = {
    alert: f"the server rejected the client certificate (-cert): {reason}"
    for alert, reason in {
        "TLSV1_ALERT_UNKNOWN_CA": "its issuer is not in the server's -client-ca",
        "SSLV3_ALERT_BAD_CERTIFICATE": "it is malformed or does not verify",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "its type or purpose does not fit a client",
        "SSLV3_ALERT_CERTIFICATE_REVOKED": "it is revoked",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the server gave no reason",
        "TLSV1_ALERT_ACCESS_DENIED": "it is valid, but access is denied",
    }.items()
}
_REFUSALS["TLSV13_ALERT_CERTIFICATE_REQUIRED"] = (
    "the server wants a client certificate: set -cert and -key"
)

# Fixes for a rejected certificate, by OpenSSL's verification errors (X509_V_ERR_).
_SELF_SIGNED, _NO_ISSUER = (18, 19), (20, 21)
_OTHER_NAME = (62, 64)  # than the host name, or the IP address, of the server
_TRUST = "set -pin to the pin that the server prints at start, or -ca to its certificate"
_COMPLETE = "use the full chain as the server's -cert, or set -ca to its root certificate"
_CLIENT_ADVICE = {
    **dict.fromkeys(_SELF_SIGNED, _TRUST),
    **dict.fromkeys(_NO_ISSUER, _COMPLETE),
    9: "check the clocks",  # it is not valid yet
    10: "renew the server's certificate, or check the client's clock",
    **dict.fromkeys(_OTHER_NAME, "set -n to a name in the certificate"),
}
_SERVER_ADVICE = dict.fromkeys(
    (*_SELF_SIGNED, *_NO_ISSUER), "to admit the client, add its certificate to -client-ca"
)
# Fixes for other failures at a client. Web servers without a certificate for the name, or without
# any for clients that send none, answer with one of two alerts.
_NO_NAME = "the server may have no certificate for this name; check -n"
_CLIENT_TLS_ADVICE = {
    "WRONG_VERSION_NUMBER": "the server's port does not speak TLS; check -s",
    "TLSV1_ALERT_INTERNAL_ERROR": _NO_NAME,  # Caddy
    "TLSV1_UNRECOGNIZED_NAME": _NO_NAME,
}
# Fixes for alerts by which a client rejects the server's certificate.
_DISTRUSTED = "the client does not trust this server; give it this server's pin or certificate"
_ALERT_ADVICE = {
    "TLSV1_ALERT_UNKNOWN_CA": _DISTRUSTED,
    "SSLV3_ALERT_BAD_CERTIFICATE": _DISTRUSTED,  # sent by Go clients
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _DISTRUSTED,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "renew the certificate, or check the client's clock",
}


def tls_failure(error: ssl.SSLError, *, server_side: bool) -> PeerError:
    """The error for a TLS failure on either side of a connection, with the fix."""
    refusal = _REFUSALS.get(error.reason or "")
    if refusal and not server_side:
        return RefusedError(refusal)
    advice = ""
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = (_SERVER_ADVICE if server_side else _CLIENT_ADVICE).get(error.verify_code, "")
    else:
        advice = (_ALERT_ADVICE if server_side else _CLIENT_TLS_ADVICE).get(error.reason or "", "")
    text = describe(error).removesuffix(".")
    return PeerError(f"{text}; {advice}" if advice else text, cause=tls_cause(error))


def handshake_cut_off(*, has_received: bool) -> NetworkError:
    """The error for a TCP connection that ends during the handshake, or before any data."""
    if has_received:
        return NetworkError("the connection ended during the TLS handshake", cause=Cause.EOF)
    return NothingSaidError("the connection ended before any data")


def tls_cause(error: ssl.SSLError) -> Cause:
    """The cause that a TLS failure is counted under."""
    reason = error.reason or ""
    if reason in ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST"):
        return Cause.PLAINTEXT_HTTP
    # Local verification errors and the peer's alerts about certificates all contain this word,
    # except for the alert about the issuer.
    if "CERTIFICATE" in reason or reason == "TLSV1_ALERT_UNKNOWN_CA":
        return Cause.CERTIFICATE
    return Cause.TLS
