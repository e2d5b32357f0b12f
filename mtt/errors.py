"""What can go wrong, sorted by whose fault it is.

Every error that a user may see is one of these, and its text is one line that makes sense
without a traceback: it names the option, key or peer, and the fix where there is one.
"""

from __future__ import annotations

import os
import ssl


class MttError(Exception):
    """Base of all errors of this project; `str()` of it is one line for a person."""


class UsageError(MttError):
    """The user gave something that cannot work: a bad option, key or file (exit code 2)."""


class StartError(MttError):
    """The machine does not let us start: port in use, no permission (exit code 1)."""


class PeerError(MttError):
    """The other end broke the protocol, refused us, or is not who it should be."""


class NetworkError(MttError):
    """The network failed: refused, unreachable, timed out, reset, gone without a word."""


class NothingSaidError(NetworkError):
    """Somebody connected and left without a byte: a port scan, a health check, a probe."""


def describe(exc: BaseException | None) -> str:
    """Say in a few words what happened, for a log line: no class names, no tracebacks."""
    if exc is None:
        return "connection closed"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return f"TLS: {(exc.reason or str(exc)).replace('_', ' ').lower()}"
    if isinstance(exc, OSError) and exc.errno:
        return os.strerror(exc.errno).lower()
    if isinstance(exc, TimeoutError):
        return str(exc) or "timed out"
    return str(exc) or type(exc).__name__
