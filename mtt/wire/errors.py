"""What a codec raises when the bytes of a peer break its protocol."""

from __future__ import annotations

from mtt.errors import PeerError


class WireError(PeerError):
    """The peer broke a protocol: each codec has a class of its own, which says how.

    What this program cannot put on the wire is a ValueError instead.
    """
