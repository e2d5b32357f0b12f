"""The metrics, in Prometheus' text format 0.0.4.

Nothing here is called on the data path: relays count their own bytes, which are read at a scrape
and when a relay ends.
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

# Values by labels, as `labels()` returns them; a plain number has no labels.
Values = Mapping[str, float] | float

# The format's escapes for characters that would end a label value or a line; HELP texts need none
# for quotes.
_IN_TEXT = str.maketrans({"\\": r"\\", "\n": r"\n"})
_IN_LABEL = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def labels(**pairs: str) -> str:
    """Labels as written between the braces."""
    return ",".join(f'{name}="{value.translate(_IN_LABEL)}"' for name, value in pairs.items())


def header(name: str, kind: str, about: str) -> str:
    """The HELP and TYPE lines of a metric; `kind` is counter, gauge or histogram."""
    return f"# HELP {name} {about.translate(_IN_TEXT)}\n# TYPE {name} {kind}\n"


def sample(name: str, labels: str, value: float) -> str:
    """One sample line."""
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
    """Counts of values by bucket; `bounds` are the upper bounds of all but the last."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, about: str) -> str:
        """The lines of the metric `name`."""
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
    """The counters of a service that no other object keeps."""

    def __init__(self) -> None:
        self.started = time.time()
        self.tunnels = 0
        self.streams = 0
        self.sessions = 0
        self.session_failures = 0
        self.dial_failures = 0
        self.bytes_up = self.bytes_down = 0  # of ended tunnels
        # All exist from the start: a counter that appears with its first event shows no increase.
        self.handshake_failures = dict.fromkeys(Cause, 0)

    def failed(self, error: BaseException | None) -> None:
        """Count a connection that did not become a tunnel because of `error`."""
        cause = error.cause if isinstance(error, MttError) else Cause.OTHER
        if isinstance(error, TimeoutError):
            cause = Cause.TIMEOUT
        self.handshake_failures[cause] += 1

    @contextlib.contextmanager
    def dialling(self) -> Iterator[None]:
        """Count exceptions inside as dial failures."""
        try:
            yield
        except NetworkError:
            self.dial_failures += 1
            raise

    def connection_over(self, error: Exception | None) -> None:
        """Count the end of a connection to the server."""
        if isinstance(error, RefusedError):  # in TLS 1.3 it arrives after the client's handshake
            self.failed(error)

    def session_over(self, error: Exception | None) -> None:
        """Count the end of a mux session."""
        self.connection_over(error)
        if isinstance(error, PeerError) and not isinstance(error, RefusedError):
            self.session_failures += 1


class Snapshot(NamedTuple):
    """The current state of a service; totals include open tunnels."""

    connections: int
    refused: int
    tunnels_refused: int
    handshakes: int
    tunnels: int
    streams: int
    sessions: int
    bytes_up: int
    bytes_down: int


def page(counters: Counters, now: Snapshot) -> str:
    """The metrics of a service."""
    failures = {labels(cause=cause): count for cause, count in counters.handshake_failures.items()}
    metrics: list[tuple[str, str, str, Values]] = [
        ("info", "gauge", "Deprecated: use mtt_build_info.", {labels(version=__version__): 1}),
        ("start_time_seconds", "gauge", "Deprecated: use process_start_time_seconds.",
         counters.started),
        ("connections_total", "counter", "Accepted TCP connections.", now.connections),
        ("connections_refused_total", "counter", "TCP connections reset because of -max-conns; "
         "not in mtt_connections_total.", now.refused),
        ("tunnels_refused_total", "counter", "Tunnels and fallback visits in accepted connections "
         "refused because of -max-conns; not in mtt_tunnels_opened_total.",
         now.tunnels_refused),
        ("handshakes", "gauge", "Connections between client and server that are not tunnels yet.",
         now.handshakes),
        ("handshake_failures_total", "counter", "Connections between client and server, or "
         "requests on them, that did not become tunnels, by cause.", failures),
        ("dial_failures_total", "counter", "Failed outgoing connections.",
         counters.dial_failures),
        ("tunnels", "gauge", "Open tunnels, visits of -fallback included.", now.tunnels),
        ("tunnels_opened_total", "counter", "Opened tunnels, visits of -fallback included.",
         counters.tunnels),
        ("transferred_bytes_total", "counter", "Bytes received for forwarding; up is towards the "
         "destination.", {UP: now.bytes_up, DOWN: now.bytes_down}),
        ("sessions", "gauge", "Open multiplexed connections.", now.sessions),
        ("sessions_opened_total", "counter", "Opened multiplexed connections.", counters.sessions),
        ("session_failures_total", "counter", "Multiplexed connections in which the peer broke "
         "the protocol.", counters.session_failures),
        ("streams", "gauge", "Open streams of multiplexed connections.", now.streams),
        ("streams_opened_total", "counter", "Opened streams of multiplexed connections.",
         counters.streams),
    ]  # fmt: skip
    return metric(
        "process_start_time_seconds", "gauge", "Unix time of the start.", counters.started
    ) + "".join(metric(f"mtt_{name}", kind, about, values) for name, kind, about, values in metrics)
