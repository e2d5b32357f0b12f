"""The metrics about users, in addition to those of every service."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from mtt.observe.metrics import DOWN, UP, Values, header, labels, metric, sample
from mtt_mu_server.user import fingerprint
from mtt_mu_server.users import Users

PREFIX = "mtt_mu_"

# Users between two yields: their lines take about 1 ms.
SLICE = 100


@dataclass(slots=True)
class Events:
    """Counters since the start that `Users` does not keep."""

    unknown: int = 0  # requests without a user
    full: int = 0  # connections refused because the user was at the limit
    dial_failures: int = 0
    commands: Mapping[str, int] = field(default_factory=dict)  # by result


def render(users: Users, events: Events, *, each: bool) -> Generator[None, None, list[bytes]]:
    """The page in pieces, returned after any number of yields; with `each`, users have lines."""
    for index, path in enumerate(users.live_paths()):
        users.settle(path)
        if index % SLICE == SLICE - 1:
            yield
    metrics: list[tuple[str, str, str, Values]] = [
        ("users", "gauge", "Known users.", len(users)),
        ("tunnels", "gauge", "Open connections of users.", users.tunnels_open),
        ("sessions", "gauge", "Open multiplexed connections.", users.sessions_open),
        ("tunnels_opened_total", "counter", "Opened connections of users.", users.tunnels_total),
        ("transferred_bytes_total", "counter", "Bytes carried for users; up is from the user.",
         {UP: users.bytes_up, DOWN: users.bytes_down}),
        ("refused_total", "counter", "Refused requests and connections.",
         {labels(reason="unknown"): events.unknown, labels(reason="full"): events.full}),
        ("dial_failures_total", "counter", "Failed connections to destinations of users.",
         events.dial_failures),
        ("commands_total", "counter", "Commands of the operator.",
         {labels(result=name): count for name, count in events.commands.items()}),
    ]  # fmt: skip
    text = [
        metric(f"{PREFIX}{name}", kind, about, values) for name, kind, about, values in metrics
    ]
    pieces = ["".join(text).encode("ascii")]
    if each:
        pieces += yield from _each_user(users)
    return pieces


def _each_user(users: Users) -> Generator[None, None, list[bytes]]:
    """The lines of all users seen so far. Their paths are secret, so `id` is a fingerprint."""
    moved: dict[str, int] = {}
    opened: dict[str, int] = {}
    open_now: dict[str, int] = {}
    seen: dict[str, int] = {}
    for index, path in enumerate(users.seen_paths()):
        used = users.statistics(path)
        if used is not None:
            label = labels(id=fingerprint(path))
            moved[f"{label},{UP}"] = used.bytes_up
            moved[f"{label},{DOWN}"] = used.bytes_down
            opened[label] = used.total_conns
            open_now[label] = used.open_conns
            seen[label] = used.last_seen
        if index % SLICE == 0:
            yield
    metrics = (
        ("user_transferred_bytes_total", "counter", "Bytes carried for a user.", moved),
        ("user_tunnels_opened_total", "counter", "Opened connections of a user.", opened),
        ("user_tunnels", "gauge", "Open connections of a user.", open_now),
        ("user_last_seen_timestamp_seconds", "gauge", "Unix time at which a user was last seen.",
         seen),
        ("user_last_seen_seconds", "gauge",
         "Deprecated: use mtt_mu_user_last_seen_timestamp_seconds.", seen),
    )
    pieces = []
    for name, kind, about, values in metrics:
        name = PREFIX + name
        pieces.append(header(name, kind, about).encode("ascii"))
        lines = (sample(name, label, value) for label, value in values.items())
        while some := list(islice(lines, SLICE)):
            pieces.append("".join(some).encode("ascii"))
            yield
    return pieces
