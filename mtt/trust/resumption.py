"""Cache of the TLS session that a client resumes in its next handshake."""

from __future__ import annotations

import ssl
import sys
import time

# Reading SSLObject.session leaks some 6 KiB before 3.12.8 and 3.13.1 (gh-116810).
LEAKS = sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1)
# There, the session is read only if the old one was not resumed, and at most once in this many
# seconds: less than a megabyte a day with a server that never resumes. OpenSSL's tickets live for
# two hours.
READ_INTERVAL = 600.0


class Resumption:
    """Keeps the latest session with one server."""

    def __init__(self) -> None:
        self._context: ssl.SSLContext | None = None
        self._session: ssl.SSLSession | None = None
        self._next = 0.0

    def session(self, context: ssl.SSLContext) -> ssl.SSLSession | None:
        """The session to offer in a handshake; `ssl` accepts it only for its own `context`."""
        return self._session if self._context is context else None

    def keep(self, context: ssl.SSLContext, connection: ssl.SSLObject) -> None:
        """Store the session of a connection of `context` that is about to end."""
        if LEAKS:
            useful = connection.session_reused or time.monotonic() < self._next
            if context is self._context and useful:
                return
            self._next = time.monotonic() + READ_INTERVAL
        session = connection.session
        resumable = session is not None and session.has_ticket
        self._context, self._session = context, session if resumable else None
