"""Metrics about certificates."""

from __future__ import annotations

from collections.abc import Iterable

from mtt.observe.metrics import labels, metric
from mtt.trust.reload import TlsFiles

NAME = "mtt_certificate_not_after_timestamp_seconds"


def certificate_lines(certificates: Iterable[TlsFiles]) -> str:
    """The expiry of the certificates that this side presents; empty without any."""
    found: dict[str, float] = {}
    for files in certificates:
        presented = files.presented
        expiry = presented.words.not_after if presented is not None else None
        if presented is not None and expiry is not None:
            # Several ports may have the same certificate; one in memory has no file.
            found[labels(file=presented.path) if presented.path else ""] = expiry
    if not found:
        return ""
    return metric(NAME, "gauge", "Unix time at which the own certificate expires, by file.",
                  found)  # fmt: skip
