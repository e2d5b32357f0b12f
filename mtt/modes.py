"""The four ways a tunnel can look, and what each says in the handshakes."""

from __future__ import annotations

# WebSocket sub-protocols: the client's choice of plain or multiplexed, the server's preference
# in this order (the original does the same).
SMUX_ON = "smux_on"
SMUX_OFF = "smux_off"
PREFERENCE = (SMUX_ON, SMUX_OFF)

# What ordinary browsers offer, and servers choose from. A WebSocket needs HTTP/1.1. Where no HTTP
# follows the name means nothing, but that one was agreed upon tells two ends of ours from the Go
# programs, which never do that in this mode (see TlsLayer's half_close).
ALPN_WEBSOCKET = ["http/1.1"]
ALPN_STREAM = ["h2", "http/1.1"]


def alpn(*, wss: bool) -> list[str]:
    """The ALPN names for a mode (RFC 7301), preferred one first."""
    return ALPN_WEBSOCKET if wss else ALPN_STREAM


def mode_name(*, wss: bool, mux: bool, tls: bool = True) -> str:
    """The mode for people: `tls`, `wss`, `mux` or `wss+mux`."""
    name = "+".join(part for part, on in (("wss", wss), ("mux", mux)) if on)
    if tls:
        return name or "tls"
    return f"{name} without TLS" if name else "plain TCP"
