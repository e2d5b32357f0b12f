"""The ways a tunnel can look, and what each says in the handshakes."""

from __future__ import annotations

# WebSocket sub-protocols: the client's choice of plain or multiplexed, the server's preference
# in this order (the original does the same).
SMUX_ON = "smux_on"
SMUX_OFF = "smux_off"
PREFERENCE = (SMUX_ON, SMUX_OFF)

# What ordinary browsers offer, and servers choose from. A WebSocket needs HTTP/1.1, and with AnyTLS
# strangers may get a web site that speaks no other. Where no HTTP follows the name means nothing,
# but that one was agreed upon tells two ends of ours from the Go programs, which never do that in
# this mode (see TlsLayer's half_close).
ALPN_WEBSOCKET = ("http/1.1",)
# What nginx selects from without HTTP/2: for servers that show themselves as web sites.
ALPN_SITE = ("http/1.1", "http/1.0", "http/0.9")
ALPN_STREAM = ("h2", "http/1.1")


def alpn(*, wss: bool, anytls: bool = False) -> tuple[str, ...]:
    """The ALPN names for a mode (RFC 7301), preferred one first."""
    return ALPN_WEBSOCKET if wss or anytls else ALPN_STREAM


def server_alpn(*, wss: bool, anytls: bool = False) -> tuple[str, ...]:
    """The same for a server."""
    return ALPN_SITE if wss or anytls else ALPN_STREAM


def mode_name(*, wss: bool, mux: bool, anytls: bool = False, tls: bool = True) -> str:
    """The mode for people: `tls`, `wss`, `mux`, `wss+mux` or `anytls`."""
    parts = (("wss", wss), ("mux", mux), ("anytls", anytls))
    name = "+".join(part for part, on in parts if on)
    if tls:
        return name or "tls"
    return f"{name} without TLS" if name else "plain TCP"
