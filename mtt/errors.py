"""What can go wrong, sorted by whose fault it is.

Every error that a user may see is one of these, and its text is one line that makes sense
without a traceback: it names the option, key or peer, and the fix where there is one.
"""

from __future__ import annotations

import enum
import os
import ssl
from typing import TypeVar

_Error = TypeVar("_Error", bound=Exception)


class Cause(enum.StrEnum):
    """Why a connection did not become a tunnel: what such failures are counted by."""

    TIMEOUT = "timeout"
    SILENT = "silent"  # left without a byte: a port scan, a health check, a probe
    EOF = "eof"  # left in the middle of it, by whatever way
    PLAINTEXT_HTTP = "plaintext_http"  # spoke HTTP where TLS was due
    CERTIFICATE = "certificate"  # either end's, not accepted by the other, or not shown
    TLS = "tls"  # anything else about TLS
    HTTP = "http"  # broke HTTP, or asked for something else than a WebSocket
    PATH = "path"  # asked for a path that leads nowhere, if only for the moment
    PASSWORD = "password"  # showed none that is a user's
    OVERLOAD = "overload"  # cut by us, to make room for others
    OTHER = "other"


class MttError(Exception):
    """Base of all errors of this project; `str()` of it is one line for a person.

    `cause` is for counting, and the class's own unless given.
    """

    cause = Cause.OTHER

    def __init__(self, *args: object, cause: Cause | None = None) -> None:
        super().__init__(*args)
        if cause is not None:
            self.cause = cause


class UsageError(MttError):
    """The user gave something that cannot work: a bad option, key or file (exit code 2)."""


class StartError(MttError):
    """The machine does not let us start: port in use, no permission (exit code 1)."""


class PeerError(MttError):
    """The other end broke the protocol, refused us, or is not who it should be."""


class RefusedError(PeerError):
    """The server wants another certificate from us, or wants one at all."""

    cause = Cause.CERTIFICATE


class NetworkError(MttError):
    """The network failed: refused, unreachable, timed out, reset, gone without a word."""


class StuckError(NetworkError):
    """A tunnel had to be cut because one end took or said nothing any more."""


class NothingSaidError(NetworkError):
    """Somebody connected and left without a byte: a port scan, a health check, a probe."""

    cause = Cause.SILENT


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


def again(error: _Error) -> _Error:
    """A copy of an error that is kept, to be raised.

    What is raised refers to each frame that it passes, and those refer to what has it: a cycle.
    """
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    return copy


def describe(exc: BaseException | None) -> str:
    """Say in a few words what happened, for a log line: no class names, no tracebacks."""
    if exc is None:
        return "connection closed"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        if exc.reason == "CALLBACK_FAILED":  # see trust.certificates.ServerConnection
            return "TLS: no ALPN name of ours, or a server name that is not ASCII"
        return f"TLS: {(exc.reason or str(exc)).replace('_', ' ').lower()}"
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno).lower()
    if isinstance(exc, TimeoutError):
        return str(exc) or "timed out"
    return str(exc) or type(exc).__name__
