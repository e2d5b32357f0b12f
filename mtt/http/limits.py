"""Time and size limits of the HTTP server; `MAX_HEAD` is the one for heads."""

from __future__ import annotations

from typing import NamedTuple

# A body up to this size is read and dropped to keep the connection, as by Go's net/http: as much
# may be in flight before the client sees the answer.
MAX_DISCARD = 256 * 1024


class Limits(NamedTuple):
    """Limits in seconds."""

    head: float  # from accept, or the first byte of a further request, to the end of its head
    keepalive: float  # between requests
    body: float  # for a request's body, and each wait until the client takes part of an answer


# nginx's. The number of waiting connections is limited elsewhere (mtt.net.admission).
VISITORS = Limits(head=60.0, keepalive=75.0, body=60.0)
# For panels and monitoring, which are near and few.
OPERATORS = Limits(head=10.0, keepalive=60.0, body=30.0)
