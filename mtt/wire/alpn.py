"""The names that TLS handshakes offer and select (ALPN, RFC 7301), the preferred one first.

They are those of ordinary browsers and web servers. A WebSocket needs HTTP/1.1, and with AnyTLS
strangers may get a web site that speaks no other. Where no HTTP follows, the name means nothing;
but the agreement on one tells two ends of ours from the Go programs, which never agree on any in
these modes (see TlsLayer's `half_close`).
"""

from __future__ import annotations

WEBSOCKET = ("http/1.1",)
# What nginx selects from without HTTP/2: for servers that show themselves as web sites.
SITE = ("http/1.1", "http/1.0", "http/0.9")
STREAM = ("h2", "http/1.1")
