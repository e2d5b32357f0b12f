"""TLS contexts of the tests' own peers."""

from __future__ import annotations

import contextlib
import ssl


def bare_context(protocol: int) -> ssl.SSLContext:
    """A context for a client or server that trusts and presents nothing yet."""
    return reports_cuts(ssl.SSLContext(protocol))


def trusting_context(ca: str | None = None) -> ssl.SSLContext:
    """A context as Python's own clients make it; `ca` replaces the system's authorities."""
    return reports_cuts(ssl.create_default_context(cafile=ca))


def reports_cuts(context: ssl.SSLContext) -> ssl.SSLContext:
    """Make a connection that ends without close_notify an error.

    Early CPython 3.11 (Debian 12 has it) sets this option by default with OpenSSL 3.
    """
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


def client_hello(context: ssl.SSLContext, name: str) -> bytes:
    """The first message of OpenSSL's client to a server `name`."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()
