"""What other programs say where they expect another server than ours: to name them in the log."""

from __future__ import annotations

import re

# The first frame of v2ray-plugin's client with its mux, which is on by default. Mux.Cool of V2Ray:
# length of the metadata, session 1, status New, with data or without, TCP, and 127.0.0.1:0 for the
# destination. No 14 other bytes are taken for it.
_V2RAY_PLUGIN_MUX = re.compile(rb"\x00\x0c\x00\x01\x01[\x00\x01]\x01\x00\x00\x01\x7f\x00\x00\x01")
# How many bytes are looked at.
LONGEST = 14

V2RAY_PLUGIN_MUX = (
    "the client is a v2ray-plugin with its mux, which only a v2ray-plugin server understands; set "
    "mux=0 in the client's plugin options"
)

# First letters of HTTP's methods, and of its answers.
_HTTP = b"GPHDOCT"


def is_v2ray_plugin_mux(first: bytes) -> bool:
    """Whether a stream that begins with `first` is from a v2ray-plugin with its mux."""
    return _V2RAY_PLUGIN_MUX.match(first) is not None


def advice(first: bytes) -> str:
    """What to do about a peer that should have spoken smux and begins with `first`."""
    if is_v2ray_plugin_mux(first):
        return V2RAY_PLUGIN_MUX
    if first[:1] == b"\2":
        return "the peer speaks smux version 2; set it to version 1"
    same_mode = "use the same mode, -mux and -wss, on both ends"
    return f"the peer speaks HTTP; {same_mode}" if first[0] in _HTTP else same_mode
