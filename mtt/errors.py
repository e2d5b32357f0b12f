"""What can go wrong, sorted by whose fault it is.

Every error that a user may see is one of these, and its text is one line that makes sense
without a traceback: it names the option, key or peer, and the fix where there is one.
"""

from __future__ import annotations

import enum
import os
from typing import TypeVar

from mtt.outcome import Outcome

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
    """The network failed: refused, unreachable, timed out, reset, gone without a word.

    `outcome` is set where an attempt to connect failed and the reason is known.
    """

    outcome = Outcome.GENERAL_FAILURE

    def __init__(
        self, *args: object, cause: Cause | None = None, outcome: Outcome | None = None
    ) -> None:
        super().__init__(*args, cause=cause)
        if outcome is not None:
            self.outcome = outcome


class DestinationError(NetworkError):
    """A destination cannot be reached, as `outcome` says: the one who tried has reported it.

    Failures on the way to the one who should try are other errors.
    """

    def __init__(self, outcome: Outcome, text: str = "") -> None:
        super().__init__(text or outcome.text, outcome=outcome)


class StuckError(NetworkError):
    """A tunnel had to be cut because one end took or said nothing any more."""


class NothingSaidError(NetworkError):
    """Somebody connected and left without a byte: a port scan, a health check, a probe."""

    cause = Cause.SILENT


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
    if isinstance(exc, OSError) and type(exc).__module__ == "ssl":  # which is not loaded here
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
        return "TLS: no ALPN name of ours, or a server name that is not ASCII"
    return f"TLS: {(reason or str(exc)).replace('_', ' ').lower()}"
