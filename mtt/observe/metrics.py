"""What is counted, and how it is said: Prometheus' text format 0.0.4.

Nothing here is called for bytes that pass: those are in the relays, which are asked for them when
somebody wants to know, and once more when they are over.
"""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from mtt.errors import Cause, MttError, NetworkError, PeerError, RefusedError
from mtt.version import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# By labels as `labels()` makes them; a number alone has none.
Values = Mapping[str, float] | float

# The format has these two ways to write what would end a label's value or a line; a quote stands
# for itself in a HELP text.
_IN_TEXT = str.maketrans({"\\": r"\\", "\n": r"\n"})
_IN_LABEL = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def labels(**pairs: str) -> str:
    """Labels as they stand between the braces."""
    return ",".join(f'{name}="{value.translate(_IN_LABEL)}"' for name, value in pairs.items())


def header(name: str, kind: str, about: str) -> str:
    """What precedes the samples of a metric; `kind` is counter, gauge or histogram."""
    return f"# HELP {name} {about.translate(_IN_TEXT)}\n# TYPE {name} {kind}\n"


def sample(name: str, labels: str, value: float) -> str:
    """One line."""
    return f"{name}{f'{{{labels}}}' if labels else ''} {value}\n"


def metric(name: str, kind: str, about: str, values: Values) -> str:
    """All lines of a metric."""
    if isinstance(values, int | float):
        values = {"": values}
    return header(name, kind, about) + "".join(
        sample(name, labels, value) for labels, value in values.items()
    )


UP, DOWN = labels(direction="up"), labels(direction="down")


class Histogram:
    """How often a value came to lie in which of some ranges.

    Args:
        bounds: the upper ends of all ranges but the last, which has none.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, about: str) -> str:
        """The metric `name`."""
        ends = [*map(str, self._bounds), "+Inf"]
        totals = list(accumulate(self._counts))
        return (
            header(name, "histogram", about)
            + "".join(
                sample(f"{name}_bucket", labels(le=end), total)
                for end, total in zip(ends, totals, strict=True)
            )
            + sample(f"{name}_sum", "", self._sum)
            + sample(f"{name}_count", "", totals[-1])
        )


class Counters:
    """What a service counts while it runs, besides what others count for themselves."""

    def __init__(self) -> None:
        self.started = time.time()
        self.tunnels = 0
        self.streams = 0
        self.sessions = 0
        self.session_failures = 0
        self.dial_failures = 0
        self.bytes_up = self.bytes_down = 0  # of the tunnels that are over
        # All are there from the start: a counter that appears with its first event has no rise.
        self.handshake_failures = dict.fromkeys(Cause, 0)

    def failed(self, error: BaseException | None) -> None:
        """A connection did not become a tunnel because of `error`."""
        cause = error.cause if isinstance(error, MttError) else Cause.OTHER
        if isinstance(error, TimeoutError):
            cause = Cause.TIMEOUT
        self.handshake_failures[cause] += 1

    @contextlib.contextmanager
    def dialling(self) -> Iterator[None]:
        """Count what goes wrong inside as a failure to dial."""
        try:
            yield
        except NetworkError:
            self.dial_failures += 1
            raise

    def connection_over(self, error: Exception | None) -> None:
        """A connection to the server has ended."""
        if isinstance(error, RefusedError):  # TLS 1.3 tells the client when it thinks it is in
            self.failed(error)

    def session_over(self, error: Exception | None) -> None:
        """A mux session has ended."""
        self.connection_over(error)
        if isinstance(error, PeerError) and not isinstance(error, RefusedError):
            self.session_failures += 1


class Now(NamedTuple):
    """How a service stands at this moment; totals include what is still open."""

    connections: int
    refused: int
    tunnels_refused: int
    handshakes: int
    tunnels: int
    streams: int
    sessions: int
    bytes_up: int
    bytes_down: int


def page(counters: Counters, now: Now) -> str:
    """The metrics of a service."""
    failures = {
        labels(cause=cause): count for cause, count in counters.handshake_failures.items()
    }
    metrics: list[tuple[str, str, str, Values]] = [
        ("info", "gauge", "The version that runs.", {labels(version=__version__): 1}),
        ("start_time_seconds", "gauge", "Unix time of the start.", counters.started),
        ("connections_total", "counter", "TCP connections that were let in.", now.connections),
        ("connections_refused_total", "counter", "TCP connections that were reset at once because "
         "of -max-conns: not in mtt_connections_total.", now.refused),
        ("tunnels_refused_total", "counter", "Tunnels and visits in connections that had been let "
         "in, refused because of -max-conns: not in mtt_tunnels_opened_total.",
         now.tunnels_refused),
        ("handshakes", "gauge", "Connections between the two ends that are no tunnel yet.",
         now.handshakes),
        ("handshake_failures_total", "counter", "Connections between the two ends, or requests "
         "on them, that became no tunnel, by cause.", failures),
        ("dial_failures_total", "counter", "Outgoing connections that could not be made.",
         counters.dial_failures),
        ("tunnels", "gauge", "Tunnels that are open, visits of -fallback included.", now.tunnels),
        ("tunnels_opened_total", "counter", "Tunnels so far, visits of -fallback included.",
         counters.tunnels),
        ("transferred_bytes_total", "counter", "Bytes taken in to be passed on, up being towards "
         "the destination.", {UP: now.bytes_up, DOWN: now.bytes_down}),
        ("sessions", "gauge", "Multiplexed connections that are open.", now.sessions),
        ("sessions_opened_total", "counter", "Multiplexed connections so far.", counters.sessions),
        ("session_failures_total", "counter", "Multiplexed connections in which the peer broke "
         "the protocol.", counters.session_failures),
        ("streams", "gauge", "Streams that are open in multiplexed connections.", now.streams),
        ("streams_opened_total", "counter", "Streams of multiplexed connections so far.",
         counters.streams),
    ]  # fmt: skip
    return "".join(
        metric(f"mtt_{name}", kind, about, values) for name, kind, about, values in metrics
    )
