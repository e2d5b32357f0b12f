"""Metrics about certificates."""

from __future__ import annotations

from collections.abc import Iterable

from mtt.observe.metrics import labels, metric
from mtt.trust.expiry import not_after
from mtt.trust.reload import TlsFiles

NAME = "mtt_certificate_not_after_timestamp_seconds"


def certificate_lines(certificates: Iterable[TlsFiles]) -> str:
    """When the certificates that a server presents expire; empty for clients."""
    found: dict[str, float] = {}
    for files in certificates:
        identity = files.identity
        expiry = not_after(identity.pem) if identity is not None else None
        if identity is not None and expiry is not None:
            # Several ports may have the same certificate; one in memory has no file.
            found[labels(file=identity.path) if identity.path else ""] = expiry
    if not found:
        return ""
    return metric(NAME, "gauge", "Unix time at which the server's certificate expires, by file.",
                  found)  # fmt: skip
