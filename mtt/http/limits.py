"""How long the HTTP server waits for its clients, and what it takes; see `MAX_HEAD` for heads."""

from __future__ import annotations

from typing import NamedTuple

# A body up to this size is read and dropped to keep the connection, as by Go's net/http: this
# much is under way in any case when the answer gets there.
MAX_DISCARD = 256 * 1024


class Limits(NamedTuple):
    """Seconds that a client has.

    `head`: from accept, or from the first byte of a further request, until its head is complete.
    `keepalive`: between requests. `body`: for the body of a request, and whenever it has to take
    a part of an answer.
    """

    head: float
    keepalive: float
    body: float


# As with nginx. The number of those that wait is limited elsewhere (mtt.net.admission).
VISITORS = Limits(head=60.0, keepalive=75.0, body=60.0)
# Panels and monitors, which are near and few.
OPERATORS = Limits(head=10.0, keepalive=60.0, body=30.0)
