"""Early data of WebSockets: a stream's first bytes in the request, which saves a round trip.

V2Ray and Xray put them, in Base64 for URLs and without padding, where the subprotocol belongs:

    Sec-WebSocket-Protocol: AAwAAQEBAQAAAX8AAAEABWhlbGxv

A server that takes them repeats the header in its answer. One that does not know them ignores it.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode

from mtt.wire.mux_cool import is_plugin_head

# Fewer bytes from a client that need not be V2Ray's may be the name of a subprotocol: the longest
# that looks like Base64, graphql-transport-ws, is 15 bytes.
MIN_SIZE = 24
# The most that a client sends, so that the request fits into the 8 KiB that nginx and Xray accept.
MAX_SIZE = 4096

# What a client says of a server that does not repeat the header.
NOT_TAKEN = (
    "the server does not say that it has taken the early data, so the connection's first bytes may "
    "be lost; remove -early-data, or ?ed= from the path"
)

_BASE64 = re.compile(r"[A-Za-z0-9_-]+")


def encode(data: bytes) -> str:
    """The value of Sec-WebSocket-Protocol for `data`, which is not empty."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(protocol: str, *, sure: bool) -> bytes:
    """The early data in `protocol`; empty if that is the name of a subprotocol.

    Without `sure`, the client may be any program: early data has MIN_SIZE bytes, or is the first
    frame of v2ray-plugin's mux.
    """
    if not _BASE64.fullmatch(protocol) or len(protocol) % 4 == 1:
        return b""
    data = urlsafe_b64decode(protocol + "=" * (-len(protocol) % 4))
    if encode(data) != protocol:  # its last bits are not zero
        return b""
    return data if sure or len(data) >= MIN_SIZE or is_plugin_head(data) else b""
