"""ALPN names that TLS handshakes offer and select (RFC 7301), in order of preference.

The names are those of ordinary browsers and web servers. WebSocket needs HTTP/1.1, and so does the
fallback site of AnyTLS servers. Where no HTTP follows, the name itself has no meaning, but an
agreed name shows that the peer is this program: the Go programs never agree on one in these modes
(see `half_close` of TlsLayer).
"""

from __future__ import annotations

WEBSOCKET = ("http/1.1",)
# What nginx without HTTP/2 selects from: for servers with a fallback site.
SITE = ("http/1.1", "http/1.0", "http/0.9")
STREAM = ("h2", "http/1.1")
# Where no HTTP follows, a client that offers only this name wants a stream for UDP. To an observer
# it is a WebSocket client; within, the name only says which opening to expect.
DATAGRAMS = WEBSOCKET
