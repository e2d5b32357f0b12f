"""The base class of codec errors: a peer's bytes break the protocol."""

from __future__ import annotations

from mtt.errors import PeerError


class WireError(PeerError):
    """The peer broke a protocol. Each codec has its own subclass.

    Values that this program cannot encode raise ValueError instead.
    """
