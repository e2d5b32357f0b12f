"""The errors of this project, by the party at fault.

Every error that a user may see is one of these. Its text is one line that makes sense without a
traceback: it names the option, key or peer, and the fix if there is one.
"""

from __future__ import annotations

import enum
import os
from typing import TypeVar

from mtt.outcome import Outcome

_Error = TypeVar("_Error", bound=Exception)


class Cause(enum.StrEnum):
    """Why a connection did not become a tunnel, for the metrics."""

    TIMEOUT = "timeout"
    SILENT = "silent"  # closed without sending a byte: a port scan, a health check, a probe
    EOF = "eof"  # closed, reset or cut during the handshake
    PLAINTEXT_HTTP = "plaintext_http"  # HTTP on a port that expects TLS
    CERTIFICATE = "certificate"  # either side's certificate rejected or missing
    TLS = "tls"  # any other TLS failure
    PROXY_HEADER = "proxy_header"  # a trusted proxy's PROXY header is invalid or missing
    HTTP = "http"  # invalid HTTP, or a request that is not for a WebSocket
    PATH = "path"  # an unknown path, or one without a destination at the moment
    PASSWORD = "password"  # no user's password
    OVERLOAD = "overload"  # cut to make room for other connections
    OTHER = "other"


class MttError(Exception):
    """Base of all errors of this project; `str()` is one readable line.

    `cause` is for the metrics; the default is the class's own.
    """

    cause = Cause.OTHER

    def __init__(self, *args: object, cause: Cause | None = None) -> None:
        super().__init__(*args)
        if cause is not None:
            self.cause = cause


class UsageError(MttError):
    """Invalid input of the operator: an option, key or file (exit code 2)."""


class StartError(MttError):
    """Startup failed: port in use, no permission (exit code 1)."""


class PeerError(MttError):
    """The peer broke the protocol, refused the connection, or has the wrong identity."""


class RefusedError(PeerError):
    """The server, or the proxy before it, does not admit this client: its certificate or login."""

    cause = Cause.CERTIFICATE


class NetworkError(MttError):
    """The network failed: refused, unreachable, timed out, reset, cut.

    `outcome` is set if an attempt to connect failed and the reason is known.
    """

    outcome = Outcome.GENERAL_FAILURE

    def __init__(
        self, *args: object, cause: Cause | None = None, outcome: Outcome | None = None
    ) -> None:
        super().__init__(*args, cause=cause)
        if outcome is not None:
            self.outcome = outcome


class DestinationError(NetworkError):
    """A destination is unreachable for the reason `outcome`, as reported by the dialling side.

    Failures between here and the dialling side are other errors.
    """

    def __init__(self, outcome: Outcome, text: str = "") -> None:
        super().__init__(text or outcome.text, outcome=outcome)


class StuckError(NetworkError):
    """A tunnel was cut because one side no longer read or sent data."""


class NothingSaidError(NetworkError):
    """The client disconnected without sending a byte: a port scan, a health check, a probe."""

    cause = Cause.SILENT


def again(error: _Error) -> _Error:
    """A copy of a stored error, to be raised.

    A raised exception refers to the frames it passes, and they to the object that stores it, which
    would form a reference cycle.
    """
    copy = type(error).__new__(type(error), *error.args)
    copy.__dict__.update(error.__dict__)
    return copy


def describe(exc: BaseException | None) -> str:
    """A short description of an error for a log line, without class names and tracebacks."""
    if exc is None:
        return "connection closed"
    if isinstance(exc, OSError) and type(exc).__module__ == "ssl":  # without importing ssl here
        return _describe_tls(exc)
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno).lower()
    if isinstance(exc, TimeoutError):
        return str(exc) or "timed out"
    return str(exc) or type(exc).__name__


def _describe_tls(exc: OSError) -> str:
    message = getattr(exc, "verify_message", None)
    if message is not None:
        return f"certificate not accepted: {message}"
    reason = getattr(exc, "reason", None)
    if reason == "CALLBACK_FAILED":  # see trust.certificates.ServerConnection
        return "TLS: no common ALPN name, or a server name that is not ASCII"
    return f"TLS: {(reason or str(exc)).replace('_', ' ').lower()}"
