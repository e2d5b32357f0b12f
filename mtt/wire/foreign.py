"""Recognises peers that speak another protocol, so that the log can name them and the fix."""

from __future__ import annotations

# Bytes needed to recognise a peer.
LONGEST = 14

LATE_V2RAY_PLUGIN = (
    "the client is a v2ray-plugin with its mux, which sent its first data too late to be "
    "recognised; start the server with -v2ray -mux, or set mux=0 in the client's plugin options"
)

# First letters of HTTP methods and of `HTTP/1.1` status lines.
_HTTP = b"GPHDOCT"


def tunnel_advice(first: bytes) -> str:
    """The advice in the error about a tunnel's peer that sends `first` instead of smux."""
    if first[:1] == b"\2":
        return "the peer speaks smux version 2; set it to version 1"
    same_mode = "use the same mode, -mux and -wss, on both ends"
    return f"the peer speaks HTTP; {same_mode}" if first[0] in _HTTP else same_mode


def agent_advice(_: bytes) -> str:
    """The advice in the error about a gateway or agent that agreed to smux but sends other data."""
    return "run the same version of this program at the gateway and the agent"
