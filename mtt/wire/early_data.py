"""Early data of WebSockets: a stream's first bytes in the request, which saves a round trip.

V2Ray and Xray send them in place of the subprotocol, in Base64 for URLs without padding:

    Sec-WebSocket-Protocol: AAwAAQEBAQAAAX8AAAEABWhlbGxv

A server that accepts early data repeats the header in its answer. Other servers ignore the header.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode

from mtt.wire.mux_cool import is_plugin_head

# Fewer bytes from a client of an unknown kind may be the name of a subprotocol. The longest name
# that looks like Base64, graphql-transport-ws, decodes to 15 bytes.
MIN_SIZE = 24
# The maximum that a client sends: the request must fit into the 8 KiB that nginx and Xray accept.
MAX_SIZE = 4096

# The client's error if the server does not repeat the header.
NOT_TAKEN = (
    "the server did not confirm the early data, so the connection's first bytes may be lost; "
    "remove -early-data, or ?ed= from the path"
)

_BASE64 = re.compile(r"[A-Za-z0-9_-]+")


def encode(data: bytes) -> str:
    """The value of Sec-WebSocket-Protocol for `data`, which is not empty."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def decode(protocol: str, *, sure: bool) -> bytes:
    """The early data in `protocol`; empty if that is the name of a subprotocol.

    `sure`: the client sends early data. Otherwise it may be any program, and only MIN_SIZE bytes or
    more, or the first frame of v2ray-plugin's mux, count as early data.
    """
    if not _BASE64.fullmatch(protocol) or len(protocol) % 4 == 1:
        return b""
    data = urlsafe_b64decode(protocol + "=" * (-len(protocol) % 4))
    if encode(data) != protocol:  # its last bits are not zero
        return b""
    return data if sure or len(data) >= MIN_SIZE or is_plugin_head(data) else b""
