"""What failures of TLS mean, how they are counted, and what to do about them."""

from __future__ import annotations

import ssl

from mtt.errors import Cause, PeerError, RefusedError, describe

# The alerts (RFC 8446, 6.2) by which a server says what it thinks of the certificate of its client,
# as OpenSSL names them.
_REFUSALS = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the server wants a client certificate: give it one "
    "with -cert and -key",
    "TLSV1_ALERT_UNKNOWN_CA": "its issuer is not in the server's -client-ca",
    "SSLV3_ALERT_BAD_CERTIFICATE": "it is bad",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "it is not for clients",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "it is revoked",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "it has expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "it is not acceptable",
    "TLSV1_ALERT_ACCESS_DENIED": "it gives no access",
}


def refusal(error: ssl.SSLError) -> RefusedError | None:
    """What a client's TLS `error` means if it is the server's verdict on the client's certificate.

    In TLS 1.3 it comes when the client's handshake is long over: the server sees the certificate
    in the client's last message.
    """
    reason = _REFUSALS.get(error.reason or "")
    if reason is None:
        return None
    if error.reason != "TLSV13_ALERT_CERTIFICATE_REQUIRED":
        reason = f"the server does not accept our certificate (-cert): {reason}"
    return RefusedError(reason)


# What to do where a certificate is not accepted, by OpenSSL's numbers of the reasons (X509_V_ERR_).
_SELF_SIGNED, _NO_ISSUER = (18, 19), (20, 21)
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME = 9, 10, 62
_CLIENT_ADVICE = {
    **dict.fromkeys(
        _SELF_SIGNED, "give the pin that the server prints at start, -pin, or its certificate, -ca"
    ),
    **dict.fromkeys(_NO_ISSUER, "use the full chain as the server's -cert, or give its root, -ca"),
    _NOT_YET_VALID: "check the clocks",
    _EXPIRED: "renew the server's certificate, or check the clock here",
    _WRONG_NAME: "ask for a name that is in it (-n; -sni of anytls-client)",
}
_SERVER_ADVICE = dict.fromkeys(
    (*_SELF_SIGNED, *_NO_ISSUER), "if the client may come in, add its certificate to -client-ca"
)
# What to do where a client tells by an alert that it does not accept the server's.
_DISTRUSTED = "the client does not trust this server; give it the server's -pin, or -ca"
_ALERT_ADVICE = {
    "TLSV1_ALERT_UNKNOWN_CA": _DISTRUSTED,
    "SSLV3_ALERT_BAD_CERTIFICATE": _DISTRUSTED,  # so say Go's clients
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _DISTRUSTED,
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "renew the certificate, or check the client's clock",
}


def tls_failure(error: ssl.SSLError, *, server_side: bool) -> PeerError:
    """A failure of OpenSSL at one end of a connection, with what to do about it."""
    if not server_side and (refused := refusal(error)) is not None:
        return refused
    advice = ""
    if isinstance(error, ssl.SSLCertVerificationError):
        advice = (_SERVER_ADVICE if server_side else _CLIENT_ADVICE).get(error.verify_code, "")
    elif server_side:
        advice = _ALERT_ADVICE.get(error.reason or "", "")
    text = describe(error).removesuffix(".")
    return PeerError(f"{text}; {advice}" if advice else text, cause=tls_cause(error))


def tls_cause(error: ssl.SSLError) -> Cause:
    """What a failure of OpenSSL is counted as."""
    reason = error.reason or ""
    if reason in ("HTTP_REQUEST", "HTTPS_PROXY_REQUEST"):
        return Cause.PLAINTEXT_HTTP
    # Our own verdict, and the alerts by which a peer tells its own, all have it in their names,
    # except for the one about the issuer.
    if "CERTIFICATE" in reason or reason == "TLSV1_ALERT_UNKNOWN_CA":
        return Cause.CERTIFICATE
    return Cause.TLS
