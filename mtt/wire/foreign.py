"""Recognises peers that speak another protocol, so that the log can name them and the fix."""

from __future__ import annotations

import re

# The first frame of a v2ray-plugin client with mux, which is on by default. V2Ray's Mux.Cool:
# metadata length, session 1, status New, with or without data, TCP, destination 127.0.0.1:0.
# All 14 bytes must match.
_V2RAY_PLUGIN_MUX = re.compile(rb"\x00\x0c\x00\x01\x01[\x00\x01]\x01\x00\x00\x01\x7f\x00\x00\x01")
# Bytes needed to recognise a peer.
LONGEST = 14

V2RAY_PLUGIN_MUX = (
    "the client is a v2ray-plugin with its mux, which only a v2ray-plugin server understands; set "
    "mux=0 in the client's plugin options"
)

# First letters of HTTP methods and of `HTTP/1.1` status lines.
_HTTP = b"GPHDOCT"


def is_v2ray_plugin_mux(first: bytes) -> bool:
    """Whether a stream that begins with `first` comes from a v2ray-plugin client with mux."""
    return _V2RAY_PLUGIN_MUX.match(first) is not None


def tunnel_advice(first: bytes) -> str:
    """The fix for a tunnel's peer that should speak smux but sends `first`, for an error text."""
    if is_v2ray_plugin_mux(first):
        return V2RAY_PLUGIN_MUX
    if first[:1] == b"\2":
        return "the peer speaks smux version 2; set it to version 1"
    same_mode = "use the same mode, -mux and -wss, on both ends"
    return f"the peer speaks HTTP; {same_mode}" if first[0] in _HTTP else same_mode


def agent_advice(_: bytes) -> str:
    """The fix for a gateway or an agent that has agreed to speak smux, and does not."""
    return "run the same version of this program at the gateway and the agent"
